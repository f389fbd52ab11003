"""A new dataset out of the whole episodes of one that cannot be trained on as it is.

The dataset is of LeRobot's format 2 or 3 and is only read. The new one is of format 3: episodes and frames
are numbered one after the other, frame k is at k/fps seconds in data/ and in the videos, tasks are in
order, statistics are made anew. What cannot be trained on is not in it, and is named. Messages about datasets
name this command (`federation/data/advice.py`), so it must work on whatever they are about.
"""

import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from client.repair.source import Source, read_source
from federation.data.advice import REPAIRED
from federation.data.description import describe_dataset
from federation.data.faults import find_faults
from federation.data.info import load_info
from federation.data.tables import read_episodes, read_frames, read_tasks
from federation.errors import ConfigError, DatasetError, one_line
from federation.files import write_folder

__all__ = ["repair_and_print", "repair_dataset"]

_MAX_NAMED = 5
_MOUNTED = "/data"  # where a container has the folder that DATASET names


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
        except (OSError, MemoryError, ImportError):  # nothing of the dataset's own
            raise
        except Exception as error:  # whatever a damaged dataset makes LeRobot, Arrow and FFmpeg raise
            raise DatasetError(f"dataset {root}: nothing can be saved: {one_line(str(error))}") from error
    return lost


def repair_and_print(dataset: Path, new: Path | None = None, without: str = "", recording: str = "") -> None:
    """Write what can be saved of `dataset` to `new`, and print what that is and what it is not.

    Args:
        new: None: `dataset`-repaired, or in a site's container, which may write nowhere else, in its scratch
            folder.
        without: episodes to drop, whole or not, as "3,7".
        recording: what its owner calls it, where it was downloaded: "hf:owner/name@revision".

    Raises:
        ConfigError: `without` is malformed.
        DatasetError: nothing can be saved.
        OSError: `new` cannot be written.
    """
    dropped = _parse_indices(without) if without else ()
    dataset = Path(os.path.normpath(dataset.absolute()))  # `.` has no name
    new = new or _default_folder(dataset, recording)
    logging.disable(logging.WARNING)  # what LeRobot reports of codecs that are not needed here
    try:
        lost = repair_dataset(dataset, new, dropped)
        description = describe_dataset(new)
    finally:
        logging.disable(logging.NOTSET)
    for number, why in sorted(lost.items()):
        print(f"episode {number} is not in it: {why}")
    saved = f"{description.episodes} episodes, {description.frames} frames, {description.fps} frames/s"
    print(f"{new}: {saved}; {_next_step(dataset, new, recording)}")


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


def _next_step(root: Path, new: Path, recording: str) -> str:
    if os.environ.get("FEDERATION_REPAIR") and _is_only(root):
        return f"in .env: DATASET=./site/scratch/{new.name}"
    if os.environ.get("FEDERATION_REPAIR"):
        return f"in .env: RECORDINGS with {new} in the place of {recording or root}"
    if recording:
        names = f"--add {shlex.quote(str(new))} --remove {shlex.quote(recording)}"
        return f"so100-site data {names} puts it in the place of that"
    if new.name == root.name + REPAIRED and new.parent == root.parent:
        return f"in a folder of datasets it takes the place of {root.name}"
    return f"use it in the place of {root}"


def _default_folder(dataset: Path, recording: str) -> Path:
    if (scratch := os.environ.get("FEDERATION_SCRATCH")) and _is_only(dataset):
        return Path(scratch) / "repaired"
    if scratch and os.environ.get("FEDERATION_REPAIR"):
        return Path(scratch) / (dataset.name + REPAIRED)
    if recording:  # what lies beside a download is removed with the next round
        return Path(recording.rpartition("/")[2].partition("@")[0] + REPAIRED).absolute()
    return dataset.with_name(dataset.resolve().name + REPAIRED)


def _is_only(dataset: Path) -> bool:
    """Whether this is the one dataset of a container: what DATASET names, not one that RECORDINGS does."""
    return str(dataset) == os.environ.get("FEDERATION_DATASET") == _MOUNTED


def _parse_indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--without {text!r}: must be indices of episodes, such as 3,7") from None
