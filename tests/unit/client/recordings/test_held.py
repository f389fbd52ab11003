"""Several recordings of a site: judged one by one, used together, left out by name."""

import dataclasses
import errno
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from client.private_paths import hide_paths
from client.recordings import held as held_module
from client.recordings.held import judge_recordings, mixing_faults
from client.recordings.hub import remove_downloads
from client.recordings.opened import (
    Recording,
    copies_kept,
    folder_key,
    open_recordings,
    private_folders,
)
from client.recordings.samples import JoinedSamples, open_recorded_samples
from client.recordings.sources import Source
from client.repair.main import repair_dataset
from federation.data.cameras import CameraChoice
from federation.data.description import describe_dataset
from federation.data.joint_units import JointUnits
from federation.data.sample_cache import SampleCache
from federation.data.statistics import check_statistics, statistics_of_frames
from federation.data.tables import read_frames
from federation.errors import DatasetError
from federation.judgement.judge import describe_fitting
from federation.judgement.kept_description import kept_description
from federation.settings import PolicyConfig
from tests.synthetic import as_format_2, record_dataset, set_info

TINY = PolicyConfig(size="tiny", fps=30)
OTHER = {"top": "phone", "wrist": "hand"}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of format 2.1 with other cameras and another size of frames. Do not change it."""
    root = tmp_path_factory.mktemp("old") / "kitchen"
    record_dataset(root, episodes=2, frames=20, cameras=("phone", "hand"), seed=7, size=(48, 48))
    return as_format_2(root)


@pytest.fixture(autouse=True)
def _no_look_at_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are looked at in `test_judge.py`; here a description does."""

    def describe(uses: Any) -> list[Any]:
        found: list[Any] = []
        for use in uses:
            try:
                found.append(describe_fitting(use.root, use.policy, use.names))
            except DatasetError as error:
                found.append(error)
        return found

    monkeypatch.setattr(held_module, "judge_each", describe)


def test_one_recording_is_described_as_before(data: Path, tmp_path: Path) -> None:
    held = judge_recordings([Source(str(data / "site-a"))], TINY, tmp_path)
    description = describe_fitting(data / "site-a", TINY)
    assert held.statistics is held.descriptions[0].statistics
    assert (held.episodes, held.frames, held.is_complete) == (3, description.usable_frames, True)
    assert held.spell_cameras(TINY.camera_names) == ["top", "wrist"]


def test_two_recordings_of_other_cameras_sizes_and_formats_are_trained_on_together(
    data: Path, old: Path, tmp_path: Path, make_policy: Any
) -> None:
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    sources = [Source(str(data / "site-a")), Source(str(old), OTHER)]
    held = judge_recordings(sources, TINY, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    assert (held.episodes, held.frames) == (5, 160)
    assert held.spell_cameras(TINY.camera_names) == ["top=top/phone", "wrist=wrist/hand"]
    frames = [read_frames(part.recording.root) for part in held.parts]
    pooled = {name: np.concatenate([own[name] for own in frames]) for name in frames[0]}
    exact = statistics_of_frames(pooled)
    check_statistics(held.statistics, 6, 160)
    for feature, named in exact.items():
        for name in ("mean", "std", "min", "max", "count"):
            np.testing.assert_allclose(held.statistics[feature][name], named[name], rtol=1e-9)
        spread = np.ptp(named["sketch"], axis=0)
        assert (abs(held.statistics[feature]["sketch"] - named["sketch"]) < 0.05 * spread).all()

    policy = make_policy()
    samples = open_recorded_samples(held, policy.config, tmp_path, 10**9)
    assert isinstance(samples, JoinedSamples)
    assert len(samples) == 160
    batch = default_collate([samples[0], samples[159]])
    assert batch["observation.images.top"].shape == (2, 3, 64, 64)
    assert batch["observation.images.top_padding_mask"].tolist() == [True, True]
    assert sorted(path.suffix for path in tmp_path.glob("samples/*/*.samples")) == [".samples"] * 2
    copies = list(tmp_path.glob("converted/*/*"))
    again = judge_recordings(sources, TINY, tmp_path)
    assert list(tmp_path.glob("converted/*/*")) == copies  # once for each state of the files

    alone = judge_recordings(sources[:1], TINY, tmp_path)
    with copies_kept(tmp_path):  # somebody adds one, and has not named it yet
        open_recorded_samples(alone, policy.config, tmp_path, 10**9)
        assert list(tmp_path.glob("converted/*/*")) == copies
    samples = open_recorded_samples(alone, policy.config, tmp_path, 10**9)
    assert isinstance(samples, SampleCache)
    assert list(tmp_path.glob("converted/*")) == []
    assert len(list(tmp_path.glob("samples/*"))) == 1
    assert again.frames > alone.frames


def test_a_picture_is_scaled_and_padded_as_the_policy_itself_would(
    data: Path, tmp_path: Path, make_policy: Any
) -> None:
    wide = record_dataset(tmp_path / "wide", episodes=1, frames=10, seed=9, size=(48, 48))
    held = judge_recordings([Source(str(data / "site-a")), Source(str(wide))], TINY, tmp_path)
    policy = make_policy()
    joined = open_recorded_samples(held, policy.config, tmp_path, 0)
    own = joined._parts[1][3]  # type: ignore[union-attr]
    sample = joined[120 + 3]
    (first, *_), _ = policy.prepare_images({key: own[key][None] for key in policy.config.image_features})
    (second, *_), masks = policy.prepare_images(
        {key: value[None] for key, value in sample.items() if key.startswith("observation.images")}
    )
    assert torch.equal(first, second)
    assert all(bool(mask.all()) for mask in masks)


def test_a_bad_recording_is_left_out_by_name_and_the_others_train(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Path(shutil.copytree(data / "site-b", tmp_path / "slow"))
    set_info(slow, fps=15)
    sources = [Source(str(slow)), Source(str(data / "site-a")), Source(str(tmp_path / "unplugged"))]
    with caplog.at_level(logging.WARNING):
        held = judge_recordings(sources, TINY, tmp_path / "scratch")
    assert (held.episodes, held.is_complete) == (3, False)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert any(str(slow) in line and "15" in line for line in lines)
    assert any(str(tmp_path / "unplugged") in line for line in lines)
    with pytest.raises(DatasetError, match="slow"):
        judge_recordings(sources[:1], TINY, tmp_path / "scratch")


def test_a_recording_that_is_put_into_the_folder_is_used_from_then_on(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "arm"
    shutil.copytree(data / "site-a", folder / "one")
    sources = [Source(str(folder))]
    assert judge_recordings(sources, TINY, tmp_path / "scratch").episodes == 3
    shutil.copytree(data / "site-b", folder / "two")
    assert judge_recordings(sources, TINY, tmp_path / "scratch").episodes == 6
    shutil.copytree(data / "site-b", folder / "a copy of two")  # the same frames count once
    assert judge_recordings(sources, TINY, tmp_path / "scratch").episodes == 6
    shutil.rmtree(folder / "one")
    assert judge_recordings(sources, TINY, tmp_path / "scratch").episodes == 3


def test_a_folder_that_is_named_in_two_ways_counts_once(data: Path, tmp_path: Path) -> None:
    sources = [Source(str(data)), Source(str(data / "site-a"))]
    recordings, faults = open_recordings(sources, tmp_path)
    assert len(recordings) == 3
    assert [str(fault) for fault in faults] == [f"dataset {data / 'site-a'}: is named twice; name it once"]


def test_what_may_not_be_mixed_is_refused_as_a_whole(data: Path, tmp_path: Path) -> None:
    real = describe_dataset(data / "site-a")
    simulated = dataclasses.replace(real, simulated=True)
    (line,) = mixing_faults({"a": real, "b": simulated})
    assert "on an arm: a; on a simulated arm: b" in line
    (line,) = mixing_faults({"a": real, "b": dataclasses.replace(real, fps=10), "c": real})
    assert "frames/s 30: a, c; 10: b" in line
    units = [dataclasses.replace(real, joint_units=JointUnits((unit,), "x")) for unit in ("degrees", "range")]
    (line,) = mixing_faults({"a": real, "b": units[0], "c": units[1]})
    assert "joints in degrees: b; in range: c" in line
    assert mixing_faults({"a": real, "b": units[0]}) == []
    copy = Path(shutil.copytree(data / "site-b", tmp_path / "simulated"))
    set_info(copy, robot_type="so101_follower_simulated")
    with pytest.raises(DatasetError, match=r"mixed so: recorded on an arm: \S*site-a; on a simulated"):
        judge_recordings([Source(str(data / "site-a")), Source(str(copy))], TINY, tmp_path / "scratch")


def test_format_2_with_a_lost_episode_is_one_line_with_the_command(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(old, tmp_path / "torn"))
    next(copy.glob("videos/*/*phone/episode_000001.mp4")).unlink()
    for _ in range(2):  # the second time from what was found out the first
        recordings, (fault,) = open_recordings([Source(str(copy))], tmp_path / "scratch")
        assert recordings == []
        assert "episode 1: the video videos/" in str(fault)
        assert f"repair DATA={copy}" in str(fault)
        monkeypatch.setattr("client.repair.main.repair_dataset", None)


@pytest.mark.parametrize("loss", ["missing", "torn"])
def test_an_episode_of_format_2_whose_table_is_lost_is_not_passed_over(
    loss: str, old: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(old, tmp_path / "torn"))
    table = next(copy.glob("data/*/episode_000001.parquet"))
    table.unlink() if loss == "missing" else table.write_bytes(b"PAR1")
    _, (fault,) = open_recordings([Source(str(copy))], tmp_path / "scratch")
    assert "episode 1: data/ has no frames of it that can be read" in str(fault)


def test_a_file_that_may_not_be_read_costs_no_episode_and_is_looked_at_again(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda file, _: Path(file).suffix != ".mp4")
        _, (fault,) = open_recordings([Source(str(old))], tmp_path)
    assert str(fault) == f"dataset {old}: cannot be read (Permission denied); chmod -R a+rX it"
    assert open_recordings([Source(str(old))], tmp_path)[1] == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_disk_that_cannot_be_reached_costs_its_own_recordings_only(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    gone, is_dir = tmp_path / "disk" / "kitchen", Path.is_dir

    def unreachable(path: Path) -> bool:
        if path.is_relative_to(gone):
            raise OSError(number, os.strerror(number))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", unreachable)
    sources = [Source(str(gone)), Source(str(data / "site-a"))]
    held = judge_recordings(sources, TINY, tmp_path / "scratch")
    assert [part.recording.folder.name for part in held.parts] == ["site-a"]
    (fault,) = open_recordings(sources, tmp_path / "scratch")[1]
    assert str(fault).startswith(f"dataset {gone}: cannot be read ({os.strerror(number)}); ")
    assert private_folders(sources) == {"dataset 1": gone, "dataset 2": data / "site-a"}


def test_a_name_that_is_not_utf_8_costs_nothing(data: Path, tmp_path: Path) -> None:
    assert len(folder_key(tmp_path / os.fsdecode(b"W\xfcrfel"))) == 16
    folder = Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))
    (folder / os.fsdecode(b"gr\xfcn.txt")).touch()
    choice = CameraChoice(TINY.camera_names)
    assert kept_description(folder, choice, tmp_path / "scratch").episodes == 3
    assert list((tmp_path / "scratch").rglob("*.json"))


def test_two_processes_that_want_the_same_copy_write_it_once(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def convert(folder: Path, out: Path) -> dict[int, str]:
        calls.append(folder)
        time.sleep(0.2)  # the other one comes meanwhile
        return repair_dataset(folder, out)

    monkeypatch.setattr("client.repair.main.repair_dataset", convert)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: open_recordings([Source(str(old))], tmp_path), range(2)))
    assert len(calls) == 1
    assert found[0] == found[1]
    assert found[0][1] == []


def test_a_download_that_broke_off_goes_once_nobody_names_it(tmp_path: Path) -> None:
    for name in ("whole", "broken", "used"):
        (tmp_path / "hub" / name / "meta").mkdir(parents=True)
    (tmp_path / "hub" / "whole.json").touch()
    remove_downloads(tmp_path, [tmp_path / "hub" / "used", tmp_path / "elsewhere"])
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["used"]


def test_what_is_not_the_datasets_fault_is_tried_again(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("client.repair.main._fill", _raise_memory_error)
        with pytest.raises(MemoryError):
            open_recordings([Source(str(old))], tmp_path)
    assert open_recordings([Source(str(old))], tmp_path)[1] == []


def _raise_memory_error(*_: object) -> None:
    raise MemoryError


def test_the_repair_of_a_copy_is_quoted_for_the_folder_that_the_owner_named() -> None:
    recording = Recording(Source("/my data/pick"), Path("/my data/pick"), Path("/s/converted/a/b"))
    text = "dataset /s/converted/a/b: make repair DATA=/s/converted/a/b WITHOUT=3"
    assert recording.spell(text) == "dataset /my data/pick: make repair DATA='/my data/pick' WITHOUT=3"


def test_a_file_that_only_the_copy_has_keeps_its_path() -> None:
    recording = Recording(Source("/data/pick"), Path("/data/pick"), Path("/s/converted/a/b"))
    text = "dataset /s/converted/a/b: look at /s/converted/a/b/videos/x.mp4; repair /s/converted/a/b"
    assert recording.spell(text) == (
        "dataset /data/pick: look at /s/converted/a/b/videos/x.mp4; repair /data/pick"
    )


def test_a_fault_of_a_copy_is_told_of_the_original_and_none_of_it_to_the_server(
    old: Path, tmp_path: Path
) -> None:
    source = Source(str(old), {"top": "phone", "wrist": "nothing"})
    with pytest.raises(DatasetError) as caught:
        judge_recordings([source], TINY, tmp_path / "scratch")
    assert f"dataset {old}: cameras says wrist=nothing" in str(caught.value)
    sources = [source, Source("hf:ann/pick@v1")]
    kept = {**private_folders(sources), "scratch": tmp_path / "scratch"}
    reason = f"dataset hf:ann/pick@v1: gone; {caught.value}; '{tmp_path}/scratch/hub/x/meta'"
    said = hide_paths(reason, kept)
    assert said.startswith("dataset <dataset 2>: gone; dataset <dataset 1>: cameras says")
    assert said.endswith("'<scratch>/hub/x/meta'")
