"""The tables of a LeRobot v3 dataset as NumPy arrays, read without torch or LeRobot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.data.advice import repair
from federation.errors import DatasetError, one_line

__all__ = ["TASKS_FILE", "check_episodes", "read_episodes", "read_frames", "read_tasks"]

TASKS_FILE = "meta/tasks.parquet"
_VECTORS = ("observation.state", "action")
_COLUMNS = ("episode_index", "frame_index", "index", "timestamp", "task_index", *_VECTORS)
_WHOLE = ("episode_index", "length", "dataset_from_index", "dataset_to_index")
_MAX_NUMBER = 10**9  # of a frame, an episode, a file
_MAX_TASKS = 10**5
_RECORD_AGAIN = "copy the dataset again, or record or convert it again with LeRobot 0.6"


def read_episodes(root: Path) -> list[dict[str, Any]]:
    """One row for each episode: its index, length, tasks, files and where in them it lies.

    Raises:
        DatasetError: a file in meta/episodes is missing or damaged, or has columns that the first lacks.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not tables:
        raise DatasetError(f"dataset {root}: no file in meta/episodes; copy the dataset again")
    rows: list[dict[str, Any]] = []
    first: set[str] = set()
    for table in tables:
        try:
            names = pq.read_schema(table).names
            first = first or set(names)
            used = [name for name in names if not name.startswith("stats/")]
            rows.extend(pq.read_table(table, columns=used, partitioning=None).to_pylist())
        except PermissionError:
            raise  # is no damage
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _cannot_read(root, table, error) from None
        if unknown := sorted(set(names) - first):
            raise DatasetError(
                f"dataset {root}: {table.relative_to(root)} has the column {one_line(unknown[0])!r}, which "
                f"the first file of meta/episodes lacks, LeRobot cannot read both; {_fix(root)}"
            )
    return rows


def check_episodes(root: Path, rows: Sequence[Mapping[str, Any]], videos: Sequence[str]) -> None:
    """Raise a `DatasetError` unless `rows` hold all that LeRobot looks up, as numbers.

    Args:
        rows: as `read_episodes` gives them.
        videos: the cameras that are used and stored as video, with `observation.images.`.
    """
    files = [f"videos/{key}/{place}" for key in videos for place in ("chunk_index", "file_index")]
    times = [f"videos/{key}/from_timestamp" for key in videos]
    for number, row in enumerate(rows):
        for column in (*_WHOLE, *files, *times):
            if column not in row:
                raise DatasetError(f"dataset {root}: meta/episodes lacks {column!r}; {_fix(root)}")
            value = row[column]
            if not isinstance(value, int if column in files else int | float) or not (
                abs(value) <= _MAX_NUMBER and (column in times or value == int(value))
            ):
                raise DatasetError(
                    f"dataset {root}: {column} in row {number} of meta/episodes is {one_line(repr(value))}, "
                    f"must be a {'' if column in times else 'whole '}number; {_fix(root)}"
                )


def read_tasks(root: Path) -> dict[int, str]:
    """Return the text of each task, by the number that frames have for it; "" for one that has none.

    Raises:
        DatasetError: meta/tasks.parquet is damaged, or says not clearly which task has which number.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = root / TASKS_FILE
    try:
        table = pq.read_table(file, partitioning=None)
        texts = table[_text_column(table.schema)].to_pylist()
        numbers = list(range(len(texts)))
        if "task_index" in table.column_names:
            numbers = table["task_index"].to_pylist()
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, AttributeError, TypeError, ValueError) as error:
        reason = one_line(error)  # nothing else has the texts, so no repair either
        raise DatasetError(f"dataset {root}: {TASKS_FILE} cannot be read ({reason}); copy it again") from None
    tasks: dict[int, str] = {}
    for number, text in zip(numbers, texts, strict=True):
        if not isinstance(number, int | float) or not 0 <= number < _MAX_TASKS or number != int(number):
            problem = f"has a task of number {one_line(repr(number))}"
        elif number in tasks:
            problem = f"has two tasks of number {number}"
        else:
            tasks[int(number)] = text or ""
            continue
        fix = "number its rows 0, 1, 2, ... in column task_index, as task_index in data/ means them"
        raise DatasetError(f"dataset {root}: {TASKS_FILE} {problem}; {fix}")
    return tasks


def _text_column(schema: Any) -> str:
    """Return the column of tasks' texts: a data frame's index, whatever its name, "task", or the only one."""
    import pyarrow as pa

    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    texts = [field.name for field in schema if any(is_(field.type) for is_ in is_text)]
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    for name in (*index, "task", *(texts if len(texts) == 1 else ())):
        if name in texts:
            return str(name)
    raise ValueError(f"no column of texts among {', '.join(schema.names)}")


def read_frames(root: Path) -> dict[str, NDArray[Any]]:
    """All frames, float64: state and action (frames, joints), numbers and times (frames,).

    A missing value is NaN. Tens of milliseconds for fifty episodes.

    Raises:
        DatasetError: a file in data/ is missing or damaged, or lacks a column.
    """
    import pyarrow as pa

    parts: list[dict[str, NDArray[Any]]] = []
    for file in sorted((root / "data").glob("*/*.parquet")):
        try:
            parts.append(_read_data(root, file))
        except PermissionError:
            raise
        except (pa.ArrowException, OSError, TypeError, ValueError) as error:
            raise _cannot_read(root, file, error) from None
    if not parts:
        raise DatasetError(f"dataset {root}: no file in data/; copy the dataset again")
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
    except ValueError:
        raise DatasetError(f"dataset {root}: files in data/ differ in their joints; record again") from None


def _read_data(root: Path, file: Path) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = file.relative_to(root)
    if file.name.startswith("._"):
        raise DatasetError(
            f"dataset {root}: {name} is a leftover of macOS that LeRobot takes for data; delete it"
        )
    with pq.ParquetFile(file) as content:
        schema, groups = content.schema_arrow, content.num_row_groups
        if groups and not content.metadata.row_group(0).num_rows:
            fix = _RECORD_AGAIN if content.metadata.num_rows else "delete it"
            raise DatasetError(f"dataset {root}: {name} starts without rows, as LeRobot cannot read; {fix}")
    if lacking := [column for column in _COLUMNS if column not in schema.names]:
        raise DatasetError(f"dataset {root}: {name} lacks the column {lacking[0]}; {_RECORD_AGAIN}")
    kind = schema.field("episode_index").type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"episode_index holds {kind}, must hold numbers")
    # Without `partitioning` pyarrow would take folder names for columns.
    table = pq.read_table(file, columns=list(_COLUMNS), partitioning=None)
    return {column: _values(table, column) for column in _COLUMNS}


def _values(table: Any, name: str) -> NDArray[Any]:
    column = table[name].combine_chunks()
    return _vectors(column, name) if name in _VECTORS else _floats(column)


def _vectors(column: Any, name: str) -> NDArray[Any]:
    """Return the lists in `column` as (rows, values); a row that is null is NaN throughout."""
    import pyarrow.compute as pc

    if not hasattr(column, "flatten") or not column.type.num_fields or column.type.value_type.num_fields:
        raise ValueError(f"{name} holds {column.type}, must hold lists of numbers")
    there = column.is_valid().to_numpy(zero_copy_only=False)
    sizes = np.unique(pc.list_value_length(column.drop_null()).to_numpy(zero_copy_only=False))
    if len(sizes) > 1:
        raise ValueError(f"{name} has from {sizes[0]} to {sizes[-1]} values in a frame")
    values = np.full((len(there), int(sizes.sum())), np.nan)
    values[there] = _floats(column.flatten()).reshape(int(there.sum()), -1)
    return values


def _floats(column: Any) -> NDArray[Any]:
    return np.asarray(column.to_numpy(zero_copy_only=False).astype(np.float64))


def _fix(root: Path) -> str:
    return f"{repair(root)} writes what can be saved to a new folder"


def _cannot_read(root: Path, file: Path, error: Exception) -> DatasetError:
    reason = one_line(error)
    return DatasetError(
        f"dataset {root}: {file.relative_to(root)} cannot be read ({reason}); copy it again, or {_fix(root)}"
    )
