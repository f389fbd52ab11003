"""Datasets that opened and then failed in round 1: each is denied at the join in one line, or trained on."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from tests.one_site import join, train_step
from tests.synthetic import JOINTS, record_dataset, set_episodes, set_info, split_video

pytestmark = pytest.mark.slow

TOP = "observation.images.top"
SHORT = {"policy_cameras": "top", "policy_chunk_size": 10}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_dataset(tmp_path_factory.mktemp("cases") / "site", episodes=4, frames=20, cameras=("top",))


@pytest.fixture
def root(recorded: Path, tmp_path: Path) -> Path:
    """A dataset of this test alone, to be damaged."""
    return Path(shutil.copytree(recorded, tmp_path / "site"))


def _table(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    (file,) = (root / "data").glob("*/*.parquet")
    pq.write_table(change(pq.read_table(file).replace_schema_metadata(None)), file)


def _tasks(root: Path, text: str | None) -> None:
    tasks = pd.DataFrame({"task_index": [0]}, index=pd.Index([text], name="task"))
    tasks.to_parquet(root / "meta" / "tasks.parquet")


def _tasks_without_index(root: Path) -> None:
    tasks = pd.DataFrame({"task_index": [0], "task": ["follow the square"]})
    tasks.to_parquet(root / "meta" / "tasks.parquet", index=False)


def _widths(root: Path, **widths: int) -> None:
    """Make vectors as wide as that, in data/ and in meta/info.json."""
    _widths_in_data(root, **widths)
    for name, width in widths.items():
        key = name.replace("_", ".")
        names = [f"joint_{number}" for number in range(width)]
        set_info(root, features={key: {"shape": [width], "names": names}})


def _widths_in_data(root: Path, **widths: int) -> None:
    def change(table: pa.Table) -> pa.Table:
        for name, width in widths.items():
            key = name.replace("_", ".")
            values = np.stack(table[key].to_numpy())
            column = pa.array(list(np.tile(values, 2)[:, :width]), pa.list_(pa.float32(), width))
            table = table.set_column(table.column_names.index(key), key, column)
        return table

    _table(root, change)


def _shapes(root: Path, shape: list[int]) -> None:
    set_info(root, features={"action": {"shape": shape}, "observation.state": {"shape": shape}})


def _extra_column(name: str) -> Callable[[Path], None]:
    return lambda root: _table(root, lambda t: t.append_column(name, pa.array(np.arange(len(t)))))


def _extra_column_in_one_file(root: Path) -> None:
    (file,) = (root / "data").glob("*/*.parquet")
    table = pq.read_table(file).replace_schema_metadata(None)
    first, second = table.slice(0, 40), table.slice(40)
    pq.write_table(first.append_column("next.done", pa.array([False] * 40)), file)
    pq.write_table(second, file.with_name("file-001.parquet"))
    set_episodes(root, {"data/file_index": [0, 0, 1, 1]})


def _second_file(height: int, width: int) -> Callable[[Path], None]:
    return lambda root: split_video(root, "top", (height, width))


def _byte_order_mark(root: Path) -> None:
    file = root / "meta" / "info.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def _without_stats(root: Path) -> None:
    (root / "meta" / "stats.json").unlink()


def _feature(name: str, entry: dict[str, object]) -> Callable[[Path], None]:
    return lambda root: set_info(root, features={name: entry})


def _info(**changes: object) -> Callable[[Path], None]:
    return lambda root: set_info(root, **changes)


EFFORT = {"dtype": "float32", "shape": [6], "names": None}
CASES: dict[str, Callable[[Path], None]] = {
    "tasks without the index of a data frame": _tasks_without_index,
    "total_tasks is 0": _info(total_tasks=0),
    "fps as text": _info(fps="30"),
    "a feature that data/ lacks": _feature("observation.effort", EFFORT),
    "a feature without dtype": _feature("observation.extra", {"shape": [1], "names": None}),
    "no stats.json": _without_stats,
    "a byte order mark": _byte_order_mark,
    "a column that info.json lacks": _extra_column("observation.effort"),
    "pandas' own column": _extra_column("__index_level_0__"),
    "a column in one of two files": _extra_column_in_one_file,
    "two arms": lambda root: _widths(root, observation_state=12, action=12),
    "state with velocities": lambda root: _widths(root, observation_state=12),
    "end effector": lambda root: _widths(root, observation_state=7, action=7),
    "shape [1, 6]": lambda root: _shapes(root, [1, 6]),
    "info.json has 12, data/ 6": lambda root: _shapes(root, [12]),
    "info.json has 6, data/ 12": lambda root: _widths_in_data(root, observation_state=12, action=12),
    "a task that is null": lambda root: _tasks(root, None),
    "a task in Chinese": lambda root: _tasks(root, "把红色方块放进盒子里 🤖"),
    "a task of 900 characters": lambda root: _tasks(root, "pick up the cube " * 53),
    "a task of two lines": lambda root: _tasks(root, "pick up\nthe cube"),
    "a portrait after a square": _second_file(96, 64),
    "a landscape after a square": _second_file(64, 96),
    "a larger picture that is shrunk to the same": _second_file(128, 128),
}


@pytest.mark.parametrize("change", CASES.values(), ids=CASES.keys())
def test_a_site_that_joins_can_train(
    root: Path, tmp_path: Path, looks: list[Path], change: Callable[[Path], None]
) -> None:
    change(root)
    answer = join(root, tmp_path / "scratch", **SHORT)
    if answer.has_error():
        _is_one_clear_line(answer.error.reason)
    else:
        assert train_step(root, tmp_path / "scratch", **SHORT) > 0


@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
def test_pictures_of_two_sizes_are_denied_with_both_files(
    root: Path, tmp_path: Path, looks: list[Path], size: tuple[int, int]
) -> None:
    _second_file(*size)(root)
    reason = join(root, tmp_path / "scratch", **SHORT).error.reason
    assert re.search(
        rf"camera top differ in size, 64x64 in videos/.*file-000.mp4 and {size[1]}x{size[0]} in videos/"
        r".*file-001.mp4; record",
        reason,
    )


def test_a_larger_picture_that_the_policy_shrinks_to_the_same_joins(
    root: Path, tmp_path: Path, looks: list[Path]
) -> None:
    _second_file(128, 128)(root)
    assert not join(root, tmp_path / "scratch", **SHORT).has_error()


def test_columns_that_training_does_not_read_do_not_matter(
    root: Path, tmp_path: Path, looks: list[Path]
) -> None:
    _extra_column("observation.effort")(root)
    assert train_step(root, tmp_path / "scratch", **SHORT) > 0


def test_a_depth_camera_cannot_pass_for_one_in_colour(tmp_path: Path, looks: list[Path]) -> None:
    root = _record_with_depth(tmp_path / "site")
    depth = join(root, tmp_path / "scratch", cameras="top=top_depth", **SHORT)
    _is_one_clear_line(depth.error.reason)
    assert "top_depth" in depth.error.reason
    assert "depth" in depth.error.reason.replace("top_depth", "")
    assert not join(root, tmp_path / "scratch", **SHORT).has_error()
    assert train_step(root, tmp_path / "scratch", **SHORT) > 0


def _record_with_depth(root: Path) -> Path:
    vector = {"dtype": "float32", "shape": (6,), "names": [f"{joint}.pos" for joint in JOINTS]}
    colour = {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    depth = colour | {"shape": (64, 64, 1), "info": {"is_depth_map": True, "depth_unit": "mm"}}
    features = {"observation.state": vector, "action": vector, TOP: colour, f"{TOP}_depth": depth}
    dataset = LeRobotDataset.create(
        "local/site", root=root, fps=30, robot_type="so101_follower", features=features
    )
    for _ in range(2):
        for t in range(15):
            pose = (60 * np.sin(t / 5 + np.arange(6))).astype(np.float32)
            picture = np.full((64, 64, 3), 90, np.uint8)
            picture[t : t + 12, 10:22] = (200, 40, 40)
            dataset.add_frame(
                {
                    "observation.state": pose,
                    "action": pose,
                    TOP: picture,
                    f"{TOP}_depth": np.full((64, 64, 1), 500 + 10 * t, np.uint16),
                    "task": "follow the square",
                }
            )
        dataset.save_episode(parallel_encoding=False)  # a fork of a process with threads may hang
    dataset.finalize()
    return root


def _is_one_clear_line(reason: str) -> None:
    assert reason.startswith("dataset <dataset>: ")
    assert "\n" not in reason
    assert "copy it again" not in reason
    assert "the log of this SuperNode says more" not in reason
