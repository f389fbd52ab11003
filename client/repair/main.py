"""A new dataset out of the whole episodes of one that cannot be trained on as it is.

    python -m client.repair.main DATASET [NEW] [--without 3,7]

DATASET is of LeRobot's format 2 or 3 and is only read. NEW (DATASET-repaired) is of format 3: episodes and
frames are numbered one after the other, frame k is at k/fps seconds in data/ and in the videos, tasks are in
order, statistics are made anew. What cannot be trained on is not in it, and is named. Messages about datasets
name this command (`federation/data/advice.py`), so it must work on whatever they are about.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from client.repair.source import Source, read_source
from federation.data.advice import REPAIRED
from federation.data.description import describe_dataset
from federation.data.faults import find_faults
from federation.data.info import load_info
from federation.data.tables import read_episodes, read_frames, read_tasks
from federation.errors import DatasetError, FederationError, one_line
from federation.files import write_folder

__all__ = ["main", "repair_dataset"]

_MAX_NAMED = 5


def repair_dataset(root: Path, new: Path, without: Sequence[int] = ()) -> dict[int, str]:
    """Write the whole episodes of the dataset in `root` to the folder `new`.

    Args:
        without: indices of episodes to drop as well.

    Returns:
        Why each episode that is not in `new` is not.

    Raises:
        DatasetError: nothing can be saved.
    """
    if new.exists():
        raise DatasetError(f"{new} exists: remove it, or name another folder")
    with tempfile.TemporaryDirectory(dir=new.parent, prefix=f".{new.name}.") as scratch:
        source = read_source(root, Path(scratch))
        lost = source.lost | dict.fromkeys(without, "dropped as asked")
        try:
            write_folder(new, lambda folder: _fill(folder, source, lost), replace=False)
        except OSError:
            raise
        except Exception as error:  # whatever a damaged dataset makes LeRobot, Arrow and FFmpeg raise
            raise DatasetError(f"dataset {root}: nothing can be saved: {one_line(str(error))}") from error
    return lost


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code is 0, or 2 with one line on stderr if nothing can be saved."""
    arguments = _parse_arguments(argv)
    root, new = arguments.dataset, arguments.new
    logging.disable(logging.WARNING)  # what LeRobot reports of codecs that are not needed here
    try:
        lost = repair_dataset(root, new, arguments.without)
        description = describe_dataset(new)
    except (FederationError, OSError) as error:
        print(f"repair: {error}", file=sys.stderr)
        return 2
    finally:
        logging.disable(logging.NOTSET)
    for number, why in sorted(lost.items()):
        print(f"episode {number} is not in it: {why}")
    saved = f"{description.episodes} episodes, {description.frames} frames, {description.fps} frames/s"
    print(f"{new}: {saved}; {_next_step(root, new)}")
    return 0


def _fill(folder: Path, source: Source, lost: dict[int, str]) -> None:
    """Write to `folder` what the judgement of a dataset finds no fault with; add the others to `lost`."""
    from client.repair.videos import find_gaps
    from client.repair.writer import measure_rate, write_dataset

    lost |= {episode.number: why for episode in source.episodes if (why := source.fault_of(episode))}
    while True:
        kept = [episode for episode in source.episodes if episode.number not in lost]
        if not kept:
            raise DatasetError(_why_none(source, lost))
        shutil.rmtree(folder)
        write_dataset(folder, source, kept, measure_rate(source, kept))
        info = load_info(folder)
        rows, frames, tasks = read_episodes(folder), read_frames(folder), read_tasks(folder)
        videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
        faults = find_faults(folder, info, rows, frames, tasks, videos)
        faults = find_gaps(folder, info, rows) | faults
        if not faults:
            break
        lost |= {kept[index].number: why for index, why in faults.items()}
    describe_dataset(folder)


def _why_none(source: Source, lost: Mapping[int, str]) -> str:
    reasons = [f"episode {number}: {why}" for number, why in sorted(lost.items())] + source.unreadable
    named = "; ".join(reasons[:_MAX_NAMED]) or "data/ has no frames"
    return f"no episode is whole ({named}); record again"


def _next_step(root: Path, new: Path) -> str:
    if os.environ.get("FEDERATION_REPAIR"):
        return f"in .env: DATASET=./scratch/{new.name}"
    if new.name == root.name + REPAIRED and new.parent == root.parent:
        return f"in a folder of datasets it takes the place of {root.name}"
    return f"use it in the place of {root}"


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    own, scratch = os.environ.get("FEDERATION_DATASET"), os.environ.get("FEDERATION_SCRATCH")
    parser = argparse.ArgumentParser(prog="repair", description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path, nargs="?", default=own, metavar="DATASET")
    parser.add_argument("new", type=Path, nargs="?", metavar="NEW", help="default: DATASET-repaired")
    parser.add_argument(
        "--without", type=_indices, default=(), metavar="3,7", help="episodes to drop, whole or not"
    )
    arguments = parser.parse_args(argv)
    if not arguments.dataset:
        parser.error("name the folder of a LeRobot dataset")
    arguments.dataset = Path(os.path.normpath(arguments.dataset))  # a slash at its end would hide its name
    if arguments.new is None and own and scratch and arguments.dataset == Path(own):
        arguments.new = Path(scratch) / "repaired"  # a site's container may write nowhere else
    elif arguments.new is None:
        arguments.new = arguments.dataset.with_name(arguments.dataset.resolve().name + REPAIRED)
    return arguments


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be indices of episodes, such as 3,7") from None


if __name__ == "__main__":
    sys.exit(main())
