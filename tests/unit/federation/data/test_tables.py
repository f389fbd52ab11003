import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.tables import check_episodes, read_episodes, read_frames, read_tasks
from federation.errors import DatasetError

ROW = {
    "episode_index": 0,
    "length": 10,
    "dataset_from_index": 0,
    "dataset_to_index": 10,
    "videos/top/chunk_index": 0,
    "videos/top/file_index": 0,
    "videos/top/from_timestamp": 0.0,
}


ROOT = Path("site")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(row=st.dictionaries(st.sampled_from(sorted(ROW)), values), gone=st.sets(st.sampled_from(sorted(ROW))))
def test_any_row_of_an_episode_is_taken_or_refused_in_one_line(row: dict[str, Any], gone: set[str]) -> None:
    row = {key: value for key, value in (ROW | row).items() if key not in gone}
    try:
        check_episodes(ROOT, [row], ["top"])
    except DatasetError as error:
        assert str(error).isprintable()
    else:
        assert not gone


@settings(max_examples=50)
@given(
    columns=st.dictionaries(
        st.sampled_from(["task", "task_index", "__index_level_0__"]),
        st.lists(st.integers(-3, 3) | st.none(), min_size=2, max_size=2)
        | st.lists(st.text(max_size=3) | st.none(), min_size=2, max_size=2)
        | st.lists(st.floats() | st.none(), min_size=2, max_size=2),
    )
)
def test_any_table_is_taken_or_refused_in_one_line(
    columns: dict[str, list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tables")
    for name in ("meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), root / name)
    try:
        tasks = read_tasks(root)
    except DatasetError as error:
        assert str(error).isprintable()
    else:
        assert all(isinstance(text, str) for text in tasks.values())
    with pytest.raises(DatasetError, match="meta/episodes lacks"):
        check_episodes(root, read_episodes(root) or [{}], [])


COLUMNS = {"episode_index": 0, "frame_index": 1, "index": 2, "timestamp": 0.5, "task_index": 0}


def _write_frames(root: Path, number: int = 0, **changes: Any) -> Path:
    """One file of two frames of two joints; None drops a column."""
    columns = {name: [value, value] for name, value in COLUMNS.items()}
    columns |= {"observation.state": [[1.0, 2.0], [3.0, 4.0]], "action": [[5.0, 6.0], [7.0, 8.0]]} | changes
    file = root / f"data/chunk-000/file-{number:03d}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), file)
    return file


def test_frames_are_those_of_all_files_in_order_and_a_missing_value_is_nan(tmp_path: Path) -> None:
    _write_frames(tmp_path, 1, **{"observation.state": [None, [9.0, None]], "index": [None, 7]})
    _write_frames(tmp_path, 0)
    frames = read_frames(tmp_path)
    nan = float("nan")
    np.testing.assert_array_equal(frames["observation.state"], [[1, 2], [3, 4], [nan, nan], [9, nan]])
    np.testing.assert_array_equal(frames["index"], [2, 2, nan, 7])
    assert {values.dtype for values in frames.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": None}, "file-001.parquet lacks the column action; copy the dataset again"),
        ({"action": [[1.0], [2.0, 3.0]]}, "action has from 1 to 2 values in a frame"),
        ({"action": [1.0, 2.0]}, "action holds double, must hold lists of numbers"),
        ({"action": [[1.0], [2.0]]}, "files in data/ differ in their joints; record again"),
        ({"episode_index": ["a", "b"]}, "episode_index holds string, must hold numbers"),
    ],
)
def test_frames_that_cannot_be_used_are_refused_by_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _write_frames(tmp_path, 0)
    _write_frames(tmp_path, 1, **changes)
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_frames(tmp_path)


@pytest.mark.parametrize(("rows", "fix"), [(0, "delete it"), (2, "copy the dataset again")])
def test_a_file_that_starts_without_rows_is_refused(tmp_path: Path, rows: int, fix: str) -> None:
    file = _write_frames(tmp_path)
    table = pq.read_table(file, partitioning=None)
    with pq.ParquetWriter(file, table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, rows)):
            writer.write_table(part)
    with pytest.raises(DatasetError, match=f"starts without rows, as LeRobot cannot read; {fix}"):
        read_frames(tmp_path)


def test_what_macos_leaves_beside_a_file_is_named(tmp_path: Path) -> None:
    file = _write_frames(tmp_path)
    file.with_name("._file-000.parquet").write_bytes(b"Mac OS X")
    with pytest.raises(DatasetError, match=r"_file-000.parquet is a leftover of macOS .* delete it"):
        read_frames(tmp_path)


def test_a_dataset_without_tables_is_to_be_copied_again(tmp_path: Path) -> None:
    for read, folder in ((read_frames, "data/"), (read_episodes, "meta/episodes")):
        with pytest.raises(DatasetError, match=f"no file in {folder}; copy the dataset again"):
            read(tmp_path)


def test_a_later_file_of_episodes_with_a_column_more_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "meta/episodes/chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"length": [3], "stats/action/mean": [[1.0]]}), folder / "file-000.parquet")
    pq.write_table(pa.table({"length": [4]}), folder / "file-001.parquet")
    assert read_episodes(tmp_path) == [{"length": 3}, {"length": 4}]
    pq.write_table(pa.table({"length": [4], "new": [1]}), folder / "file-001.parquet")
    with pytest.raises(DatasetError, match=r"file-001.parquet has the column 'new', which the first file"):
        read_episodes(tmp_path)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"task": ["pick", "place"]}, {0: "pick", 1: "place"}),
        ({"task": ["pick", None], "task_index": [4, 2]}, {4: "pick", 2: ""}),
        ({"whatever": ["pick"], "task_index": [0.0]}, {0: "pick"}),
        ({"task": ["a", "b"], "task_index": [1, 1]}, "has two tasks of number 1"),
        ({"task": ["a"], "task_index": [0.5]}, "has a task of number 0.5"),
        ({"task": ["a"], "task_index": [-1]}, "has a task of number -1"),
        ({"one": ["a"], "two": ["b"]}, "no column of texts among one, two"),
    ],
)
def test_each_task_has_one_number(
    tmp_path: Path, columns: dict[str, list[Any]], expected: dict[int, str] | str
) -> None:
    (tmp_path / "meta").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "meta/tasks.parquet")
    if isinstance(expected, dict):
        assert read_tasks(tmp_path) == expected
    else:
        with pytest.raises(DatasetError, match=re.escape(expected)):
            read_tasks(tmp_path)
