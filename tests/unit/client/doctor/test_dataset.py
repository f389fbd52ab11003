import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from client.doctor.check import Check
from client.doctor.dataset import check_dataset
from federation.data.description import describe_dataset
from federation.data.joint_names import JOINTS
from federation.errors import DatasetError
from tests.synthetic import blank_frames, record_dataset

pytestmark = pytest.mark.slow

CAMERAS = ("top", "wrist")


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A dataset of this test alone, to be damaged."""
    return Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))


def _checks(
    root: Path, cameras: Sequence[str], names: Mapping[str, str] | None = None, **full: bool
) -> list[Check]:
    checks, description = check_dataset(root, cameras, names, **full)
    assert (description is None) == any(
        check.level == "error" and check.what == "dataset" for check in checks
    )
    return checks


def _one(checks: list[Check], what: str) -> Check:
    found = [check for check in checks if check.what == what]
    assert len(found) == 1, checks
    return found[0]


def _rewrite(root: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change columns of the dataset's table in place."""
    (file,) = (root / "data").glob("*/*.parquet")
    table = pq.read_table(file)
    columns = {name: np.array(table[name].to_pylist()) for name in ("timestamp", "action")}
    change(columns)
    for name, values in columns.items():
        index = table.column_names.index(name)
        column = pa.array(values.tolist(), table.schema.field(name).type)
        table = table.set_column(index, table.schema.field(name), column)
    pq.write_table(table, file)


def test_a_good_data_set_passes_every_check(data: Path) -> None:
    checks = _checks(data / "site-a", CAMERAS)
    assert {check.level for check in checks} == {"ok"}
    assert [check.what for check in checks] == [
        *(
            "dataset",
            "cameras",
            "tasks",
            "state",
            "action",
            "joint units",
            "frame rate",
            "motion",
        )
    ]
    assert "3 episodes, 120 frames, 30 fps" in checks[0].text


def test_another_rate_is_no_fault_of_the_site_and_the_run_must_be_of_it(tmp_path: Path) -> None:
    checks = _checks(record_dataset(tmp_path / "site-a", fps=15), CAMERAS)
    assert {check.level for check in checks} == {"ok"}
    assert _one(checks, "frame rate").text == "site-a: 15 frames/s: policy.fps of the run must be 15"


def test_a_folder_that_is_no_data_set_is_one_error(tmp_path: Path) -> None:
    (check,) = _checks(tmp_path, CAMERAS)
    assert check.level == "error"
    assert "no meta/info.json there" in check.text


def test_a_missing_camera_is_named_with_those_there_are(data: Path) -> None:
    check = _one(_checks(data / "site-a", ("top", "front")), "cameras")
    assert check.level == "warning"
    assert "top, front=none (recorded: top, wrist); only a run with policy.empty_cameras = 1" in check.text
    (check,) = _checks(data / "site-a", ("side", "front"))
    assert check.level == "error"
    assert "lacks the camera side, front (it has top, wrist)" in check.text


def test_a_site_may_say_which_camera_is_which(data: Path) -> None:
    check = _one(_checks(data / "site-a", ("side", "wrist"), {"side": "top"}), "cameras")
    assert check.level == "ok"
    assert "side=top, wrist (recorded: top, wrist)" in check.text


def test_an_episode_with_nan_is_left_out_and_named(tmp_path: Path) -> None:
    root = record_dataset(tmp_path / "site", episodes=5)
    _rewrite(root, lambda columns: columns["action"].__setitem__((45, 2), np.nan))
    checks = _checks(root, CAMERAS)
    assert "nan" not in _one(checks, "action").text
    check = _one(checks, "episodes")
    assert check.level == "warning"
    assert "1 of 5 episodes excluded (1: action is NaN or infinite in frame 5); make repair" in check.text


def test_too_many_episodes_with_nan_are_an_error(copy: Path) -> None:
    _rewrite(copy, lambda columns: columns["action"].__setitem__((45, 2), np.nan))
    check = _one(_checks(copy, CAMERAS), "dataset")
    assert check.level == "error"
    assert "1 of 3 episodes cannot be trained on, the first is 1 (action is NaN or infinite" in check.text


def _in_range(actions: np.ndarray) -> None:
    """As 2001 ticks between the ends of each joint give them."""
    actions[:, :5] = np.rint((actions[:, :5] + 100) * 20.01 / 2) / 20.01 * 2 - 100


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda actions: actions.__imul__(1 / 60),
            "the five joints of action stay within -1.00 to 1.00: these are",
        ),
        (lambda actions: actions.__imul__(0), "the action was not recorded"),
        (
            lambda actions: actions.__imul__(11.38).__iadd__(2048),
            "action goes from 1365 to 2731: these are motor ticks",
        ),
        (
            lambda actions: actions[:, 5].__iadd__(60).__imul__(1 / 120),
            "gripper of action goes from 0.00 to 1.00",
        ),
        (
            lambda actions: actions.__imul__(20),
            "3 of 3 episodes cannot be trained on, the first is 0 (action of",
        ),
    ],
)
def test_numbers_no_arm_has_are_refused_as_the_join_refuses_them(
    copy: Path, change: Callable[[np.ndarray], object], text: str
) -> None:
    _rewrite(copy, lambda columns: change(columns["action"]))
    (check,) = _checks(copy, CAMERAS)
    assert (check.level, check.what) == ("error", "dataset")
    assert text in check.text
    with pytest.raises(DatasetError, match=f"^dataset {re.escape(check.text)}$"):
        describe_dataset(copy)


def test_the_servos_of_the_arm_tell_the_units_that_the_run_must_have(copy: Path) -> None:
    _rewrite(copy, lambda columns: _in_range(columns["action"]))
    text = _one(_checks(copy, CAMERAS), "joint units").text
    assert "joints step by the servo's ticks in range: policy.joint_units of the run must be 'range'" in text


def test_another_number_of_joints_is_one_error_that_is_not_about_cameras(tmp_path: Path) -> None:
    (check,) = _checks(record_dataset(tmp_path / "site-a", dim=5), CAMERAS)
    assert (check.level, check.what) == ("error", "dataset")
    assert "observation.state has 5 values, an SO-100/SO-101 arm has 6" in check.text


def test_a_warning_of_the_shared_judgement_is_shown(copy: Path) -> None:
    _rewrite(copy, lambda columns: columns["action"].__setitem__((slice(None), 2), 0))
    info = json.loads((copy / "meta" / "info.json").read_text())
    for feature in ("observation.state", "action"):
        info["features"][feature]["names"] = [f"main_{joint}" for joint in JOINTS]
    (copy / "meta" / "info.json").write_text(json.dumps(info))
    checks = [check for check in _checks(copy, CAMERAS) if check.what == "dataset"]
    assert [check.level for check in checks] == ["ok", "warning"]
    assert f"dataset {checks[1].text}" == describe_dataset(copy).warnings[0]
    assert checks[1].text.startswith(f"{copy}: joints of observation.state are named main_")


def test_a_timestamp_off_its_frame_is_found(copy: Path) -> None:
    _rewrite(copy, lambda columns: columns["timestamp"].__setitem__(50, 9.0))
    check = _one(_checks(copy, CAMERAS), "dataset")
    assert check.level == "error"
    assert "the first is 1 (frame 10 is at 9.0000 s, must be at 10/30 s)" in check.text


def _wrist_video(root: Path) -> Path:
    return root / "videos" / "observation.images.wrist" / "chunk-000" / "file-000.mp4"


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_lost_video_is_named(copy: Path, damage: str) -> None:
    file = _wrist_video(copy)
    content = file.read_bytes()
    noise = np.random.default_rng(0).bytes(len(content))
    file.write_bytes({"cut": content[: len(content) // 2], "noise": noise, "empty": b""}[damage])
    check = _one(_checks(copy, CAMERAS), "dataset")
    assert check.level == "error"
    assert re.search(
        r"of 3 episodes cannot .* \d \(videos/.*wrist/.*lacks \d+ of its 40 frames\)", check.text
    )


@pytest.mark.parametrize(("damaged", "level"), [(range(52, 56), "warning"), (range(42, 78), "error")])
def test_a_damaged_frame_is_found_by_a_full_look(copy: Path, damaged: range, level: str) -> None:
    blank_frames(_wrist_video(copy), damaged)
    assert _one(_checks(copy, CAMERAS, full=True), "video top").text.endswith(
        "all 120 frames of 3 episodes decoded"
    )
    check = _one(_checks(copy, CAMERAS, full=True), "video wrist")
    assert check.level == level
    found = re.search(r"(\d+) of 120 frames cannot be decoded: (\d+) of episode 1; training", check.text)
    assert found, check.text
    assert int(found[1]) == int(found[2]) >= len(damaged)


def test_a_single_task_is_shown_without_a_count(copy: Path) -> None:
    pq.write_table(pa.table({"task_index": [0], "task": ["pick the cube"]}), copy / "meta" / "tasks.parquet")
    check = _one(_checks(copy, CAMERAS), "tasks")
    assert (check.level, check.text.partition(": ")[2]) == ("ok", "'pick the cube'")


def test_a_task_without_text_is_told(copy: Path) -> None:
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["pick", " "]}), copy / "meta" / "tasks.parquet")
    check = _one(_checks(copy, CAMERAS), "tasks")
    assert check.level == "warning"
    assert "1 of 2 tasks without text, the first is 1" in check.text


def test_a_joint_that_jumps_is_told_with_the_command_that_shows_it(copy: Path) -> None:
    _rewrite(copy, lambda columns: columns["action"][50:].__setitem__((slice(None), 2), 99.0))
    check = _one(_checks(copy, CAMERAS), "jumps")
    assert check.level == "warning"
    video = copy / "videos/observation.images.top/chunk-000/file-000.mp4"
    assert f"look at {video} from 1.3 s on; make repair DATA={copy} WITHOUT=1 drops it" in check.text
    assert "elbow_flex" in check.text


def test_a_damaged_table_is_an_error_not_a_traceback(copy: Path) -> None:
    (file,) = (copy / "data").glob("*/*.parquet")
    file.write_bytes(file.read_bytes()[:-40])
    assert "has no end, as after a crash" in _one(_checks(copy, CAMERAS), "dataset").text


def test_a_shortened_table_does_not_match_its_description(copy: Path) -> None:
    (file,) = (copy / "data").glob("*/*.parquet")
    pq.write_table(pq.read_table(file).slice(0, 100), file)
    assert "2 (data/ has 20 of its 40 frames)" in _one(_checks(copy, CAMERAS), "dataset").text


def test_images_instead_of_video_are_slow_but_no_error(copy: Path) -> None:
    info = json.loads((copy / "meta" / "info.json").read_text())
    info["features"]["observation.images.wrist"]["dtype"] = "image"
    (copy / "meta" / "info.json").write_text(json.dumps(info))
    check = _one(_checks(copy, CAMERAS), "video wrist")
    assert check.level == "warning"
    assert "prefer video" in check.text


def test_a_data_set_this_user_may_not_read_is_told_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(root: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("federation.data.description.read_episodes", denied)
    (check,) = _checks(data / "site-a", CAMERAS)
    assert check.level == "error"
    assert "Permission denied" in check.text
    assert "SITE_UID" in check.text
