"""What the look at samples refuses, warns of and lets pass; whole joins: test_crash_cases.py."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from federation.judgement.judge import DatasetUse, describe_fitting
from federation.judgement.sample_check import judge_samples_of
from federation.judgement.sample_process import Verdict
from federation.settings import PolicyConfig
from tests.synthetic import blank_frames, read_pictures, record_dataset, video_of, write_video

pytestmark = pytest.mark.slow

EPISODES, FRAMES = 4, 20


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    return record_dataset(folder / "site", episodes=EPISODES, frames=FRAMES, cameras=("top", "side"))


@pytest.fixture
def root(recorded: Path, tmp_path: Path) -> Path:
    """A dataset of this test alone, to be damaged."""
    return Path(shutil.copytree(recorded, tmp_path / "site"))


def _judge(root: Path, tmp_path: Path, cache: Path, cameras: str = "top") -> Verdict:
    policy = PolicyConfig(size="tiny", cameras=cameras, chunk_size=10)
    use = DatasetUse(root, policy, cache)
    return judge_samples_of(use, describe_fitting(use.root, use.policy), tmp_path / "decoded")


def _darken(root: Path, frames: Sequence[int], value: int = 0) -> None:
    video = video_of(root, "top")
    pictures = read_pictures(video)
    for frame in frames:
        pictures[frame] = np.full_like(pictures[frame], value)
    write_video(video, pictures)


@pytest.mark.parametrize("value", [0, 90])
def test_a_camera_of_which_no_picture_shows_anything_is_an_error(
    root: Path, tmp_path: Path, cache: Path, value: int
) -> None:
    _darken(root, range(EPISODES * FRAMES), value)
    verdict = _judge(root, tmp_path, cache)
    assert (
        "pictures of the camera top that were looked at show nothing: they are of one colour" in verdict.error
    )
    assert verdict.lasts
    assert not _judge(root, tmp_path, cache, cameras="side").error  # a run that does not use it


def test_a_single_dark_picture_is_none_of_it(root: Path, tmp_path: Path, cache: Path) -> None:
    _darken(root, [0])
    assert _judge(root, tmp_path, cache) == Verdict("", lasts=True, warnings=())


def test_a_camera_that_dies_half_way_is_a_warning(root: Path, tmp_path: Path, cache: Path) -> None:
    _darken(root, range(2 * FRAMES, EPISODES * FRAMES))
    verdict = _judge(root, tmp_path, cache)
    assert not verdict.error
    (warning,) = verdict.warnings
    assert "pictures of the camera top that were looked at are of one colour, the first is frame" in warning


def test_frames_that_cannot_be_decoded_are_a_warning_and_all_of_them_an_error(
    root: Path, tmp_path: Path, cache: Path
) -> None:
    blank_frames(video_of(root, "top"), range(4))
    verdict = _judge(root, tmp_path, cache)
    assert not verdict.error
    (warning,) = verdict.warnings
    assert "1 of 5 frames that were looked at cannot be decoded, the first is frame 0 of episode 0" in warning
    blank_frames(video_of(root, "top"), range(10**6))
    assert "cannot be decoded" in _judge(root, tmp_path, cache).error
    assert "copy its videos again, or encode them anew" in _judge(root, tmp_path, cache).error


def test_a_camera_that_the_run_does_not_use_is_not_looked_at(root: Path, tmp_path: Path, cache: Path) -> None:
    blank_frames(video_of(root, "side"), range(10**6))
    assert _judge(root, tmp_path, cache) == Verdict("", lasts=True, warnings=())


def test_what_nobody_foresaw_is_one_line_too(
    root: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*_: object) -> None:
        raise KeyError("odd") from ValueError("the cause")

    monkeypatch.setattr("federation.judgement.sample_check.default_collate", trip)
    verdict = _judge(root, tmp_path, cache)
    assert "samples make no batch (ValueError: the cause)" in verdict.error
    monkeypatch.setattr("federation.judgement.sample_check._draw", trip)
    verdict = _judge(root, tmp_path, cache)
    assert "its samples cannot be loaded (ValueError: the cause)" in verdict.error
    assert not verdict.lasts


def test_a_full_disk_is_no_lasting_fault_of_the_dataset(
    root: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("federation.data.loading.LeRobotDatasetMetadata", full)
    verdict = _judge(root, tmp_path, cache)
    assert "No space left on device" in verdict.error
    assert not verdict.lasts


def test_a_policy_that_cannot_be_had_is_no_fault_of_the_dataset(root: Path, tmp_path: Path) -> None:
    policy = PolicyConfig(size="pretrained", pretrained=str(tmp_path / "none"), cameras="top")
    use = DatasetUse(root, policy, tmp_path / "scratch")
    verdict = judge_samples_of(use, describe_fitting(use.root, use.policy), tmp_path / "decoded")
    assert verdict.error.startswith("policy.pretrained = ")
    assert not verdict.lasts
