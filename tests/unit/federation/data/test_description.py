import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from federation.data.cameras import CameraChoice
from federation.data.description import check_fits, describe_dataset, find_datasets
from federation.data.joint_names import JOINTS
from federation.data.statistics import FEATURES
from federation.errors import DatasetError
from federation.settings import PolicyConfig
from tests.synthetic import record_dataset


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy of site-a to damage."""
    return Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))


def _change_info(root: Path, **changes: object) -> None:
    file = root / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _drop_column(root: Path, name: str) -> None:
    (file,) = (root / "meta" / "episodes").rglob("*.parquet")
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns([name]), file)


def test_it_tells_what_lerobot_recorded(data: Path) -> None:
    description = describe_dataset(data / "site-a")
    assert (description.episodes, description.frames, description.fps) == (3, 120, 30)
    assert description.cameras == ("top", "wrist")
    assert description.statistics["action"]["mean"].shape == (6,)
    assert description.statistics["action"]["count"].tolist() == [120.0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d), "no meta/info.json"),
        (lambda d: (d / "meta/info.json").write_text("{"), "meta/info.json cannot be read"),
        (lambda d: (d / "meta/info.json").write_text("[]"), "must hold a JSON object"),
        (
            lambda d: _change_info(d, codebase_version="v2.1"),
            "format version is v2.1, must be v3.x; make repair DATA=",
        ),
        (lambda d: _change_info(d, codebase_version="v2.0"), "writes it to a new folder in format v3.0"),
        (lambda d: _change_info(d, features={}), "features.observation.state in meta/info.json is missing"),
        (lambda d: _change_info(d, total_episodes=0), "holds 0 episodes"),
        (
            lambda d: _change_info(d, total_frames=127),
            "meta/info.json has 3 episodes, 127 frames, meta/episodes 3, 120",
        ),
        (
            lambda d: _change_info(d, total_episodes=4),
            "has 4 episodes, 120 frames, meta/episodes 3, 120; make repair",
        ),
        (lambda d: _drop_column(d, "videos/observation.images.top/from_timestamp"), "lacks 'videos/obs"),
        (lambda d: _drop_column(d, "length"), "meta/episodes lacks 'length'"),
        (lambda d: (d / "meta/tasks.parquet").write_bytes(b"x" * 100), "meta/tasks.parquet cannot be read"),
        (
            lambda d: (d / "meta/tasks.parquet").unlink(),
            "meta/tasks.parquet is missing; copy it again",
        ),
        (lambda d: shutil.rmtree(d / "meta/episodes"), "meta/episodes is missing, as after a crash"),
        (
            lambda d: next((d / "meta/episodes").rglob("*.parquet")).write_bytes(b"x" * 100),
            "cannot be read",
        ),
        (lambda d: next((d / "data").rglob("*.parquet")).write_bytes(b"x" * 100), "cannot be read"),
        (lambda d: next((d / "data").rglob("*.parquet")).unlink(), "no file in data/"),
        (lambda d: shutil.rmtree(d / "videos"), "2 files are missing, such as videos/"),
    ],
)
def test_damage_is_named_before_lerobot_asks_the_hub(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(DatasetError) as caught:
        describe_dataset(copy)
    assert message in str(caught.value)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_are_those_of_the_frames_whatever_stats_json_says(copy: Path, data: Path) -> None:
    (copy / "meta/stats.json").write_text("{}")
    for feature, named in describe_dataset(data / "site-a").statistics.items():
        np.testing.assert_array_equal(describe_dataset(copy).statistics[feature]["mean"], named["mean"])


def test_files_this_user_may_not_read_are_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path.suffix != ".mp4")
    with pytest.raises(DatasetError, match=r"may not read 2 files, the first is videos/.*chmod -R a\+rX"):
        describe_dataset(data / "site-a")


def test_a_missing_camera_is_named_with_those_there_are(data: Path) -> None:
    with pytest.raises(DatasetError, match=r"site-a: lacks the camera front \(it has top, wrist\)"):
        describe_dataset(data / "site-a", CameraChoice(("top", "front")))


def test_another_robot_is_refused(tmp_path: Path) -> None:
    root = record_dataset(tmp_path / "four-joints", episodes=1, frames=5, dim=4)
    with pytest.raises(DatasetError, match=r"observation.state has 4 values, an SO-100/SO-101 arm has 6"):
        describe_dataset(root)


def test_a_data_set_of_another_rate_is_refused_with_both(data: Path) -> None:
    description = dataclasses.replace(describe_dataset(data / "site-a"), fps=15)
    reason = (
        r"dataset lab: recorded at 15 frames/s, and policy.fps is 30; "
        r"use data recorded with --dataset.fps=30, or fps = 15 with such data at all sites"
    )
    with pytest.raises(DatasetError, match=reason):
        check_fits(description, PolicyConfig(), "lab")
    check_fits(description, PolicyConfig(fps=15), "lab")


def test_data_sets_are_found_by_name(data: Path) -> None:
    assert list(find_datasets(data)) == ["holdout", "site-a", "site-b"]
    assert find_datasets(data / "holdout") == {"holdout": data / "holdout"}


def test_what_a_disk_has_of_its_own_is_no_data_set_and_a_closed_folder_may_be_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lost+found", ".Trashes", "theirs"):
        (tmp_path / name).mkdir()
    (tmp_path / "site-a").symlink_to(data / "site-a")
    is_dir = Path.is_dir

    def denied(path: Path) -> bool:
        if path.name == "meta" and path.parent.name != "site-a" and path.parent != tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", denied)
    assert list(find_datasets(tmp_path)) == ["site-a", "theirs"]


def test_frames_of_an_episode_that_was_never_finished_are_not_used(copy: Path, data: Path) -> None:
    whole = describe_dataset(data / "site-a")
    (file,) = (copy / "data").rglob("*.parquet")
    table = pq.read_table(file)
    rows = table.slice(0, 5).to_pydict()
    rows["episode_index"] = [whole.episodes] * 5
    rows["action"] = [[5000.0] * 6] * 4 + [[float("nan")] * 6]
    pq.write_table(pa.concat_tables([table, pa.table(rows, schema=table.schema)]), file)
    description = describe_dataset(copy)
    assert (description.left_out, description.usable_frames) == ({}, whole.usable_frames)
    for feature, named in description.statistics.items():
        for name, values in named.items():
            np.testing.assert_array_equal(values, whole.statistics[feature][name])
    (warning,) = set(description.warnings) - set(whole.warnings)
    assert f"data/ has 5 frames of episode {whole.episodes}, which meta/episodes lacks" in warning


def test_a_folder_without_data_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset in"):
        find_datasets(tmp_path / "nowhere")


def test_another_arm_is_refused_and_an_old_calibration_warned_of(copy: Path) -> None:
    names = [f"main_{joint}" for joint in JOINTS]
    info = json.loads((copy / "meta" / "info.json").read_text())
    for feature in FEATURES:
        info["features"][feature]["names"] = names
    _change_info(copy, features=info["features"])
    assert "named main_shoulder_pan and so on" in describe_dataset(copy).warnings[0]
    _change_info(copy, robot_type="koch")
    with pytest.raises(DatasetError, match="is 'koch', must be an SO-100 or SO-101 arm"):
        describe_dataset(copy)
