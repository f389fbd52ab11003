"""Whether the files that training reads of a dataset are there: LeRobot would look for them on the Hub."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from federation.data.advice import repair
from federation.data.faults import video_of_episode
from federation.data.tables import TASKS_FILE
from federation.errors import DatasetError

__all__ = ["check_data_files", "check_files"]


def check_files(
    root: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], videos: Sequence[str]
) -> None:
    """Check that every file that training reads is there, and that this user may read it.

    Args:
        info: as `check_info` gives it.
        rows: of meta/episodes.
        videos: the cameras that are used and stored as video, with `observation.images.`.

    Raises:
        DatasetError: it names the first that is not.
    """
    needed = {TASKS_FILE}
    for row in rows:
        needed |= {video_of_episode(info, row, key) for key in videos}
    missing = sorted(name for name in needed if not (root / name).is_file())
    if missing:
        raise _missing(root, missing)
    tables = [str(file.relative_to(root)) for file in (root / "data").glob("*/*.parquet")]
    closed = sorted(name for name in (*needed, *tables) if not os.access(root / name, os.R_OK))
    if closed:
        raise DatasetError(
            f"dataset {root}: user {os.getuid()} may not read {len(closed)} files, the first is "
            f"{closed[0]}; give it the right: chmod -R a+rX {shlex.quote(str(root))}"
        )


def check_data_files(
    root: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], frames: Mapping[str, NDArray[Any]]
) -> None:
    """Check that the file of an episode without any frame in data/ is there: LeRobot reads all that is.

    Args:
        frames: as `read_frames` gives them.

    Raises:
        DatasetError: it is not.
    """
    there = set(frames["episode_index"].tolist())
    lost = [row for row in rows if row["episode_index"] not in there]
    places = [(row.get("data/chunk_index"), row.get("data/file_index")) for row in lost]
    files = {
        info["data_path"].format(chunk_index=chunk, file_index=file)
        for chunk, file in places
        if isinstance(chunk, int) and isinstance(file, int)
    }
    if missing := sorted(name for name in files if not (root / name).is_file()):
        raise _missing(root, missing)


def _missing(root: Path, names: Sequence[str]) -> DatasetError:
    what = (
        f"{names[0]} is missing" if len(names) == 1 else f"{len(names)} files are missing, such as {names[0]}"
    )
    other = "" if names[0] == TASKS_FILE else f", or {repair(root)} writes what can be saved to a new folder"
    return DatasetError(f"dataset {root}: {what}; copy it again{other}")
