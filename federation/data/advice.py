"""What an owner can do about a dataset that cannot be trained on as it is.

Messages name one command, `so100-site repair`: it writes a new dataset out of all whole episodes,
whatever is wrong with the others. LeRobot's own tools open the dataset first, which is what fails.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from federation.errors import DatasetError

__all__ = ["REPAIRED", "check_finalised", "check_totals", "conversion", "is_torn", "name_range", "repair"]

REPAIRED = "-repaired"  # a folder of this name beside a dataset takes its place
_MAGIC = b"PAR1"  # how a Parquet file begins, and ends once it is whole
_MIN_BYTES = 12  # of one


def repair(root: Path, without: Sequence[int] = ()) -> str:
    """Return the command that writes a new dataset out of the whole episodes of the one in `root`.

    Args:
        without: episodes to drop, whole as they may be.

    A container's environment names it (FEDERATION_REPAIR), or where the dataset is outside of the
    container (FEDERATION_MOUNTED, such as `/data=./my-data/site-a`), on a machine with a checkout. Where
    neither is so it is that of this installation: make in a checkout, else so100-site.
    """
    dropped = ",".join(map(str, without))
    if command := os.environ.get("FEDERATION_REPAIR"):
        if os.environ.get("FEDERATION_DATASET", str(root)) != str(root):  # it has several
            command += f" {shlex.quote(str(root))}"
        return command + (f" --without {dropped}" if dropped else "")
    inside, _, outside = os.environ.get("FEDERATION_MOUNTED", "").partition("=")
    if outside and root.is_relative_to(inside):
        root = Path(outside) / root.relative_to(inside)
    name = shlex.quote(str(root))
    if not outside and not (_installation() / "Makefile").is_file():
        return f"so100-site repair {name}" + (f" --without {dropped}" if dropped else "")
    return f"make repair DATA={name}" + (f" WITHOUT={dropped}" if dropped else "")


def _installation() -> Path:
    """Return the folder of the installed packages; a ServerApp's own are unpacked elsewhere."""
    return Path(os.environ.get("FEDERATION_INSTALLATION") or Path(__file__).parents[2])


def conversion(root: Path, version: str) -> str:
    """Return what to do about a dataset of another format than v3."""
    if version.startswith("v2."):
        return f"{repair(root)} writes it to a new folder in format v3.0"
    return "neither this nor LeRobot 0.6 can read or convert it, record again"


def is_torn(file: Path) -> bool:
    """Whether a Parquet file was begun and never finished: its table of contents comes last."""
    try:
        with file.open("rb") as stream:
            begins, size = stream.read(4) in (_MAGIC, b""), os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - 4))
            return begins and (size < _MIN_BYTES or stream.read(4) != _MAGIC)
    except OSError:
        return False


def check_finalised(root: Path, info: Mapping[str, Any]) -> None:
    """Check that LeRobot finished the files of every session that was recorded into the dataset.

    LeRobot opens no dataset that has one unfinished file, whole as the others may be.

    Raises:
        DatasetError: a crash or a power cut ended one.
    """
    episodes = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    tables = sorted((root / "data").glob("*/*.parquet"))
    torn = [str(file.relative_to(root)) for file in [*tables, *episodes] if is_torn(file)]
    if not torn and (episodes or not info.get("total_episodes")):
        return
    what = f"{torn[0]} has no end" if torn else "meta/episodes is missing"
    why = "as after a crash or a power cut before LeRobot ended the recording, or a copy that broke off"
    whole = name_range(_whole_episodes(tables, episodes))
    named = f"episodes {whole} are whole" if whole else "no episode is whole as it is"
    fix = f"if its original is whole copy it again, else {repair(root)} saves what it can to a new folder"
    raise DatasetError(f"dataset {root}: {what}, {why}; {named}; {fix}")


def check_totals(root: Path, rows: Sequence[Mapping[str, Any]], episodes: int, frames: int) -> None:
    """Check that meta/info.json and meta/episodes agree: LeRobot takes its totals for what there is.

    Args:
        rows: of meta/episodes.
        episodes, frames: what meta/info.json has.

    Raises:
        DatasetError: they differ.
    """
    numbers = [int(row["episode_index"]) for row in rows]
    length = sum(int(row["length"]) for row in rows)
    fix = f"{repair(root)} numbers what is there anew, in a new folder"
    if missing := sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers)):
        what = f"meta/episodes goes to {max(numbers)} and lacks {name_range(missing)}"
    elif numbers != list(range(len(numbers))):
        what = "meta/episodes has an episode twice, or not in order"
    elif (len(rows), length) != (episodes, frames):
        what = f"meta/info.json has {episodes} episodes, {frames} frames, meta/episodes {len(rows)}, {length}"
    else:
        return
    raise DatasetError(f"dataset {root}: {what}; {fix}")


def name_range(numbers: Sequence[int]) -> str:
    """`[0, 1, 2, 5]` as "0 to 2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _whole_episodes(tables: Sequence[Path], episodes: Sequence[Path]) -> list[int]:
    """Those that finished files have all frames of."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    there: dict[int, int] = {}
    lengths: dict[int, int] = {}
    try:
        for file in (file for file in tables if not is_torn(file)):
            numbers = pq.read_table(file, columns=["episode_index"], partitioning=None)["episode_index"]
            for entry in pc.value_counts(numbers).to_pylist():
                there[entry["values"]] = there.get(entry["values"], 0) + entry["counts"]
        for file in (file for file in episodes if not is_torn(file)):
            for row in pq.read_table(
                file, columns=["episode_index", "length"], partitioning=None
            ).to_pylist():
                lengths[row["episode_index"]] = row["length"]
    except (pa.ArrowException, OSError, KeyError):
        return []
    return [number for number, length in lengths.items() if there.get(number) == length]
