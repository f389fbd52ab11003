"""The tables of a LeRobot v3 dataset as NumPy arrays, read without torch or LeRobot."""

from pathlib import Path
from typing import Any

import numpy as np

from federation.errors import DatasetError, one_line

__all__ = ["read_episodes", "read_frames", "read_tasks"]

_VECTORS = ("observation.state", "action")
_COLUMNS = ("episode_index", "frame_index", "index", "timestamp", "task_index", *_VECTORS)


def read_episodes(root: Path) -> list[dict[str, Any]]:
    """One row for each episode: its index, length, tasks, files and where in them it lies.

    Raises:
        DatasetError: a file in meta/episodes is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not tables:
        raise DatasetError(f"dataset {root}: no file in meta/episodes; copy the dataset again")
    rows: list[dict[str, Any]] = []
    for table in tables:
        try:
            names = [name for name in pq.read_schema(table).names if not name.startswith("stats/")]
            rows.extend(pq.read_table(table, columns=names, partitioning=None).to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise _cannot_read(root, table, error) from None
    return rows


def read_tasks(root: Path) -> list[str]:
    """The tasks, in the order in which frames number them.

    Raises:
        DatasetError: meta/tasks.parquet is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = root / "meta" / "tasks.parquet"
    try:
        table = pq.read_table(file)
        # The text is the index of a data frame, under whatever name that had.
        (text,) = [name for name in table.column_names if name != "task_index"]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _cannot_read(root, file, error) from None
    return [str(task or "") for task in table[text].to_pylist()]


def read_frames(root: Path) -> dict[str, np.ndarray]:
    """All frames, float64: state and action (frames, joints), numbers and times (frames,).

    A missing value is NaN. Tens of milliseconds for fifty episodes.

    Raises:
        DatasetError: a file in data/ is missing or damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts: list[dict[str, np.ndarray]] = []
    for file in sorted((root / "data").glob("*/*.parquet")):
        try:
            # Without `partitioning` pyarrow would take folder names for columns.
            table = pq.read_table(file, columns=list(_COLUMNS), partitioning=None)
            parts.append({name: _values(table, name) for name in _COLUMNS})
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise _cannot_read(root, file, error) from None
    if not parts:
        raise DatasetError(f"dataset {root}: no file in data/; copy the dataset again")
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
    except ValueError:
        raise DatasetError(f"dataset {root}: files in data/ differ in their joints; record again") from None


def _values(table: Any, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    rows = len(column)
    while hasattr(column, "flatten") and column.type.num_fields:
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return values.reshape(rows, -1) if name in _VECTORS else values


def _cannot_read(root: Path, file: Path, error: Exception) -> DatasetError:
    reason = one_line(error)
    return DatasetError(f"dataset {root}: {file.relative_to(root)} cannot be read ({reason}); copy it again")
