"""Which episodes of a dataset cannot be trained on, and why.

Both sides ask this before they open a dataset, a site in every round: so only tables and the packets of the
videos are read (150,000 packets a second); `decoded_times` alone decodes. What is damaged inside a packet is
found by training, which leaves single frames out, and by the doctor.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.data.joint_values import value_fault
from federation.data.statistics import FEATURES

__all__ = [
    "decoded_times",
    "find_faults",
    "frame_times",
    "lacking_frames",
    "split_episodes",
    "video_of_episode",
]

_TIMESTAMP_TOLERANCE_SECONDS = 1e-4  # LeRobot's own: past it LeRobot refuses to load the frame
_MAX_LACKING = 0.1  # of an episode's frames in a video; training leaves out single ones

Frames = Mapping[str, NDArray[Any]]


def find_faults(
    root: Path,
    info: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    frames: Frames,
    tasks: Collection[int],
    videos: Sequence[str],
) -> dict[int, str]:
    """Index of an episode -> why it cannot be trained on; the others can.

    Args:
        info: what meta/info.json holds.
        rows: as `read_episodes` gives them.
        frames: as `read_frames` gives them.
        tasks: their numbers.
        videos: the cameras that are used and stored as video, with `observation.images.`.
    """
    own = split_episodes(frames)
    faults = {}
    times: dict[Path, NDArray[Any]] = {}
    for row in rows:
        episode = int(row["episode_index"])
        fault = _fault_in_tables(row, own.get(episode), int(info["fps"]), tasks)
        fault = fault or _fault_in_videos(root, info, row, videos, times)
        if fault:
            faults[episode] = fault
    return faults | _faults_in_numbers([row for row in rows if int(row["episode_index"]) not in faults])


def split_episodes(frames: Frames) -> dict[int, dict[str, NDArray[Any]]]:
    """Return the frames of each episode, by its index, in the order of time, however they are stored."""
    order = np.lexsort((frames["frame_index"], frames["episode_index"]))
    episodes, starts = np.unique(frames["episode_index"][order], return_index=True)
    parts = {name: np.split(values[order], starts[1:]) for name, values in frames.items()}
    return {
        int(episode): {name: part[i] for name, part in parts.items()}
        for i, episode in enumerate(episodes)
        if np.isfinite(episode)
    }


def video_of_episode(info: Mapping[str, Any], row: Mapping[str, Any], key: str) -> str:
    """Return the path of the video of the camera `key` in which the episode of `row` lies."""
    chunk, number = (int(row[f"videos/{key}/{place}"]) for place in ("chunk_index", "file_index"))
    return str(info["video_path"].format(video_key=key, chunk_index=chunk, file_index=number))


def lacking_frames(times: NDArray[Any], fps: int, row: Mapping[str, Any], key: str) -> int:
    """How many frames of the episode of `row` a video lacks that has frames at `times` (seconds, sorted)."""
    wanted = row[f"videos/{key}/from_timestamp"] + np.arange(row["length"]) / fps
    there = np.append(times, np.inf)  # past the end comes nothing
    nearest = there[np.searchsorted(times, wanted - _TIMESTAMP_TOLERANCE_SECONDS)]
    return int((~_near(nearest, wanted)).sum())


def _faults_in_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """LeRobot finds a frame by its number in the dataset: no two episodes may share one."""
    faults: dict[int, str] = {}
    end, owner = -np.inf, 0
    for row in sorted(rows, key=lambda row: (row["dataset_from_index"], row["episode_index"])):
        if row["dataset_from_index"] < end:
            faults[int(row["episode_index"])] = f"its frames have numbers that those of episode {owner} have"
        else:
            end, owner = row["dataset_to_index"], int(row["episode_index"])
    return faults


def _fault_in_tables(row: Mapping[str, Any], own: Frames | None, fps: int, tasks: Collection[int]) -> str:
    if not row["length"]:
        return "it is empty"
    length = len(own["index"]) if own else 0
    if not own or length != row["length"]:
        return f"data/ has {length} of its {row['length']} frames"
    end = row["dataset_from_index"] + length
    if row["dataset_to_index"] != end:
        return f"it ends at frame {row['dataset_to_index']} in meta/episodes, by its length at {end}"
    numbers = np.arange(length)
    if not (
        np.array_equal(own["frame_index"], numbers)
        and np.array_equal(own["index"], row["dataset_from_index"] + numbers)
    ):
        return "its frames are not numbered one after the other"
    for feature in FEATURES:
        if len(bad := np.flatnonzero(~np.isfinite(own[feature]).all(axis=1))):
            return f"{feature} is NaN or infinite in frame {bad[0]}"
    if fault := value_fault(own):
        return fault
    if len(bad := np.flatnonzero(~_near(own["timestamp"], numbers / fps))):
        first = bad[0]
        return f"frame {first} is at {own['timestamp'][first]:.4f} s, must be at {first}/{fps} s"
    known = np.isin(own["task_index"], list(tasks))
    if not known.all():
        return f"frame {np.flatnonzero(~known)[0]} has a task that meta/tasks.parquet lacks"
    return ""


def _fault_in_videos(
    root: Path,
    info: Mapping[str, Any],
    row: Mapping[str, Any],
    videos: Sequence[str],
    times: dict[Path, NDArray[Any]],
) -> str:
    """Several episodes share a file: `times` keeps what is known of it."""
    for key in videos:
        file = root / video_of_episode(info, row, key)
        if file not in times:
            times[file] = frame_times(file)
        lacking = lacking_frames(times[file], info["fps"], row, key)
        if lacking > _MAX_LACKING * row["length"]:
            return f"{file.relative_to(root)} {_what_lacks(times[file], int(info['fps']), row, key, lacking)}"
    return ""


def _what_lacks(times: NDArray[Any], fps: int, row: Mapping[str, Any], key: str, lacking: int) -> str:
    """Whether the frames are not there, or at other times than LeRobot looks for them."""
    start, length = row[f"videos/{key}/from_timestamp"] - 0.5 / fps, row["length"]
    there = int(((times >= start) & (times < start + length / fps)).sum())
    if there < (1 - _MAX_LACKING) * length:
        return f"lacks {lacking} of its {length} frames"
    return f"has {lacking} of its {length} frames between the times of a video with {fps} frames/s"


def frame_times(file: Path) -> NDArray[Any]:
    """Return the times of the whole frames in a video, in seconds, sorted; none if it cannot be opened."""
    import av

    av.logging.set_level(av.logging.PANIC)  # what FFmpeg would print of a damaged file, the fault says
    ticks, second = [], 1.0
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            second = float(stream.time_base or 1)
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None and not packet.is_corrupt:
                    ticks.append(packet.pts)
    except (av.FFmpegError, OSError, IndexError):
        pass  # what was read before counts
    return np.sort(np.array(ticks, np.float64)) * second


def _near(times: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    """NaN is near nothing."""
    near: NDArray[Any] = np.abs(times - wanted) <= _TIMESTAMP_TOLERANCE_SECONDS
    return near


def decoded_times(file: Path) -> Iterator[float]:
    """Return when the frames that can be decoded are shown, in seconds."""
    import av

    with suppress(av.FFmpegError), av.open(str(file)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            frames = []
            with suppress(av.FFmpegError):  # the next packet may be whole
                frames = stream.decode(packet)
            yield from (frame.time for frame in frames if frame.time is not None)
