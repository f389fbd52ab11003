"""What `client/repair/main.py` can still read of a LeRobot dataset of format 2 or 3: its whole episodes.

The tables in data/ decide which frames there are, not what the dataset says of itself; a recording that
LeRobot could not finish is read as far as it goes, and a file that cannot be read is passed over.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.repair.parquet_rescue import rescue_file
from federation.data.advice import is_torn
from federation.data.faults import frame_times, video_of_episode
from federation.data.info import check_names, video_path_of
from federation.data.tables import read_tasks
from federation.errors import DatasetError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Episode", "Footage", "Source", "read_source"]

_NUMBERS = ("episode_index", "frame_index")
_MAX_EPISODES = 10**6  # what info.json says beyond that is damage


@dataclass(frozen=True)
class Footage:
    """Where one episode lies in one video."""

    file: Path
    start: float  # seconds into the video
    length: int  # frames


@dataclass(frozen=True)
class Episode:
    """An episode all of whose frames are in data/."""

    number: int  # its index in the dataset that is repaired
    data: Path  # the file in data/ that has it
    length: int
    footage: Mapping[str, Footage]  # by camera, as meta/info.json spells it
    statistics: Mapping[str, Any]  # of its pictures, as meta/episodes has them: `stats/<camera>/<name>`


@dataclass(frozen=True)
class Source:
    """What can be read of a dataset."""

    info: dict[str, Any]
    tasks: Mapping[int, str]
    episodes: list[Episode]
    lost: dict[int, str]  # index of an episode that is not whole -> why
    footage: list[Footage]  # all that the videos should hold, of the lost episodes too
    unreadable: list[str] = field(default_factory=list)  # files

    def fault_of(self, episode: Episode) -> str:
        """Return why `episode` cannot be used though its files are there; empty if it can."""
        import pyarrow as pa

        try:
            tasks = set(self.frames_of(episode)["task_index"].to_pylist())
        except (pa.ArrowException, OSError, KeyError) as error:
            return f"its frames cannot be read ({one_line(error)})"
        unknown = sorted(str(task) for task in tasks - self.tasks.keys())
        return f"it has task {unknown[0]}, which meta/tasks has not" if unknown else ""

    def frames_of(self, episode: Episode) -> "pa.Table":
        """Return the frames of `episode` in their order, with every column of its file."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table = pq.read_table(
            episode.data, partitioning=None, filters=pc.field("episode_index") == episode.number
        )
        return table.sort_by("frame_index")


def read_source(root: Path, scratch: Path) -> Source:
    """Read what is whole in the dataset in `root`.

    Args:
        scratch: an empty folder, for copies of unfinished tables; it must outlive the result.

    Raises:
        DatasetError: there is no dataset of format 2 or 3, or nothing of it can be read.
    """
    try:
        info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8-sig"))
        version = str(info["codebase_version"])
        keys = [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]
        check_names(root, info["features"])
        if version.startswith("v3.") and keys:
            info["video_path"] = video_path_of(root, info)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error)
        raise DatasetError(
            f"dataset {root}: meta/info.json cannot be used ({reason}); copy that file again"
        ) from None
    counts, unreadable = _count_frames(root, info, scratch)
    if version.startswith("v3."):
        source = Source(info, read_tasks(root), [], {}, [], unreadable)
        _find_episodes(root, source, keys, counts)
    elif version.startswith("v2."):
        source = Source(info, _read_old_tasks(root), [], {}, [], unreadable)
        _find_old_episodes(root, source, keys, counts)
    else:
        raise DatasetError(f"dataset {root}: format version is {version}; only v2.x and v3.x can be read")
    return source


def _count_frames(
    root: Path, info: Mapping[str, Any], scratch: Path
) -> tuple[dict[tuple[int, Path], int], list[str]]:
    """How many frames of which episode each file in data/ has, and the files that cannot be read."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: dict[tuple[int, Path], int] = {}
    unreadable = []
    files = sorted((root / "data").glob("*/*.parquet"))
    for file in files:
        readable = file
        try:
            if is_torn(file):
                readable = scratch / f"{len(counts)}.parquet"
                if not rescue_file(file, _schema(info, files), readable):
                    raise ValueError("has no end, and no whole episode")
            table = pq.read_table(readable, columns=list(_NUMBERS), partitioning=None)
            numbers, times = np.unique(table["episode_index"].drop_null().to_numpy(), return_counts=True)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            unreadable.append(f"{file.relative_to(root)}: {one_line(error)}")
            continue
        counts |= {(int(number), readable): int(n) for number, n in zip(numbers, times, strict=True)}
    return counts, unreadable


def _schema(info: Mapping[str, Any], files: Sequence[Path]) -> "pa.Schema":
    """Of the tables in data/: that of a whole one, else what LeRobot makes of the features."""
    import pyarrow.parquet as pq

    if whole := next((file for file in files if not is_torn(file)), None):
        return pq.read_schema(whole)
    from lerobot.datasets.feature_utils import get_hf_features_from_features

    features = info["features"].items()
    return get_hf_features_from_features(
        {key: feature | {"shape": tuple(feature["shape"])} for key, feature in features}
    ).arrow_schema


def _read_rows(root: Path, unreadable: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of meta/episodes, in order; append to `unreadable` what is wrong with a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        try:
            yield from pq.read_table(file, partitioning=None).to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = "has no end" if is_torn(file) else one_line(error)
            unreadable.append(f"{file.relative_to(root)}: {reason}")


def _find_episodes(
    root: Path, source: Source, keys: list[str], counts: Mapping[tuple[int, Path], int]
) -> None:
    """Fill `source` with what a dataset of format 3 has."""
    rows = {
        int(row["episode_index"]): row
        for row in _read_rows(root, source.unreadable)
        if isinstance(row.get("episode_index"), int | float) and row["episode_index"] >= 0
    }
    for number, row in sorted(rows.items()):
        try:
            length = int(row["length"])
            footage = {
                key: Footage(
                    root / video_of_episode(source.info, row, key),
                    row[f"videos/{key}/from_timestamp"],
                    length,
                )
                for key in keys
            }
        except (KeyError, TypeError, ValueError) as error:
            source.lost[number] = f"meta/episodes has no {one_line(error)} for it"
            continue
        _add(root, source, number, length, footage, counts, row)
    others = {number: n for (number, _), n in sorted(counts.items()) if number not in rows}
    found = {key: _locate(root / "videos" / key, source, others) for key in keys}
    for number, length in others.items():
        footage = {key: found[key][number] for key in keys if number in found[key]}
        if len(footage) < len(keys):
            source.lost[number] = "meta/episodes lacks it, and where its video begins cannot be told"
        else:
            _add(root, source, number, length, footage, counts, {})


def _locate(folder: Path, source: Source, lengths: Mapping[int, int]) -> dict[int, Footage]:
    """Where episodes that meta/episodes lacks lie in the videos in `folder` that it does not name either.

    LeRobot adds each episode to the newest video, or begins another: a video that ends with an episode, by
    the numbers of frames, holds that and those before it.

    Args:
        lengths: frames of each episode, in the order of recording.
    """
    named = {part.file for part in source.footage}
    found: dict[int, Footage] = {}
    fps = source.info.get("fps")
    if not isinstance(fps, int | float) or not fps > 0:
        return found
    left = list(lengths.items())
    for file in (file for file in sorted(folder.glob("*/*.mp4")) if file not in named):
        parts, frames, total = {}, 0, len(frame_times(file))
        while left and frames < total:
            number, length = left.pop(0)
            parts[number] = Footage(file, frames / fps, length)
            frames += length
        if frames != total:
            break
        found |= parts
    return found


def _find_old_episodes(
    root: Path, source: Source, keys: list[str], counts: Mapping[tuple[int, Path], int]
) -> None:
    """Fill `source` with what a dataset of format 2 has: there each episode has files of its own."""
    for (number, _), length in sorted(counts.items()):
        footage = {}
        for key in keys:
            videos = sorted((root / "videos").glob(f"*/{key}/episode_{number:06d}.mp4"))
            footage[key] = Footage(videos[0] if videos else root / "videos" / key / "missing", 0.0, length)
        _add(root, source, number, length, footage, counts, {})
    total = source.info.get("total_episodes")
    if isinstance(total, int) and total < _MAX_EPISODES:
        for number in set(range(total)) - {number for number, _ in counts}:
            source.lost[number] = "data/ has no frames of it that can be read"


def _add(
    root: Path,
    source: Source,
    number: int,
    length: int,
    footage: Mapping[str, Footage],
    counts: Mapping[tuple[int, Path], int],
    row: Mapping[str, Any],
) -> None:
    """Add an episode to the whole ones of `source`, or to the lost ones."""
    source.footage.extend(footage.values())
    there = [(file, n) for (episode, file), n in counts.items() if episode == number]
    missing = [part for part in footage.values() if not part.file.is_file()]
    if sum(n for _, n in there) != length or len(there) != 1:
        source.lost[number] = f"data/ has {sum(n for _, n in there)} of its {length} frames"
    elif missing:
        source.lost[number] = f"the video {missing[0].file.relative_to(root)} is missing"
    else:
        statistics = {
            name: value for name, value in row.items() if re.match(r"stats/observation\.images\.", name)
        }
        source.episodes.append(Episode(number, there[0][0], length, footage, statistics))


def _read_old_tasks(root: Path) -> dict[int, str]:
    try:
        lines = (root / "meta" / "tasks.jsonl").read_text(encoding="utf-8-sig").splitlines()
        entries = [json.loads(line) for line in lines if line.strip()]
        return {int(entry["task_index"]): str(entry["task"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"dataset {root}: meta/tasks.jsonl cannot be used ({one_line(error)}); copy that file again"
        ) from None
