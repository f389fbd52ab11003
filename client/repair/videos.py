"""The videos of a repaired dataset: copied as they are, or with each frame at its place in time.

LeRobot looks for frame k of an episode at k/fps seconds after the episode's start, to 0.1 ms. A video of a
variable rate, at 29.97 frames/s or with a late start has its frames elsewhere: they get these times, and no
picture is encoded again.
"""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from client.repair.source import Footage
from federation.data.faults import decoded_times, frame_times, lacking_frames, video_of_episode

__all__ = ["VideoCopies", "find_gaps", "sample_pictures"]

_TICKS = 512  # of a video's clock for each frame
_SAMPLED = 4  # pictures of an episode, for statistics


class VideoCopies:
    """Copies videos into the new dataset, each once however many episodes it has."""

    def __init__(
        self, root: Path, path: str, held: Iterable[Footage], kept: Iterable[Footage], fps: int
    ) -> None:
        """Plan the copies.

        Args:
            root: of the new dataset.
            path: its `video_path`.
            held: all that the old videos should hold.
            kept: what of it the new dataset has.
        """
        self._root, self._path, self._fps = root, path, fps
        self._held: dict[Path, list[Footage]] = {}
        for part in sorted(held, key=lambda part: part.start):
            self._held.setdefault(part.file, []).append(part)
        self._kept = set(kept)
        self._numbers: dict[str, dict[Path, int]] = {}  # by camera
        self._starts: dict[Path, dict[Footage, float]] = {}

    def place(self, key: str, part: Footage) -> dict[str, object]:
        """Return what meta/episodes has to name for the footage `part` of the camera `key`."""
        files = self._numbers.setdefault(key, {})
        chunk, number = divmod(files.setdefault(part.file, len(files)), 1000)
        new = self._root / self._path.format(video_key=key, chunk_index=chunk, file_index=number)
        if not new.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            self._starts[part.file] = self._copy(part.file, new)
        start = self._starts[part.file][part]
        return {
            f"videos/{key}/chunk_index": chunk,
            f"videos/{key}/file_index": number,
            f"videos/{key}/from_timestamp": start,
            f"videos/{key}/to_timestamp": start + part.length / self._fps,
        }

    def _copy(self, old: Path, new: Path) -> dict[Footage, float]:
        """Write the video `new`; where in it each part of `old` starts, in seconds."""
        times = frame_times(old)
        held = self._held[old]
        kept = [part for part in held if part in self._kept]
        lacking = sum(
            lacking_frames(
                times, self._fps, {"videos/it/from_timestamp": part.start, "length": part.length}, "it"
            )
            for part in held
        )
        if lacking or len(kept) < len(held):
            firsts = self._firsts(times, held)
            places = np.full(len(times), -1)  # of each frame of the old video in the new one
            starts, frames = {}, 0
            for part in kept:
                if part in firsts:
                    places[firsts[part] : firsts[part] + part.length] = np.arange(part.length) + frames
                starts[part] = frames / self._fps
                frames += part.length
            if (places >= 0).sum() == frames and _retime(old, new, self._fps, places):
                return starts
        shutil.copyfile(old, new)
        return {part: part.start for part in held}

    def _firsts(self, times: NDArray[Any], held: list[Footage]) -> dict[Footage, int]:
        """Return the frame with which each whole part begins: by count if all are whole, else by time."""
        lengths = [part.length for part in held]
        if sum(lengths) == len(times):
            return dict(zip(held, np.cumsum([0, *lengths]).tolist(), strict=False))
        edges = {
            part: np.searchsorted(times, part.start + (np.array([0, part.length]) - 0.5) / self._fps)
            for part in held
        }
        return {part: int(first) for part, (first, end) in edges.items() if end - first == part.length}


def find_gaps(root: Path, info: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return index of an episode -> which video cannot be decoded; a single frame is enough."""
    gaps = {}
    times: dict[Path, NDArray[Any]] = {}
    for row in rows:
        for key in (key for key, feature in info["features"].items() if feature["dtype"] == "video"):
            file = root / video_of_episode(info, row, key)
            if file not in times:
                times[file] = np.sort(list(decoded_times(file)))
            if lacking := lacking_frames(times[file], info["fps"], row, key):
                gaps[int(row["episode_index"])] = (
                    f"{key} has no picture for {lacking} of its {row['length']} frames"
                )
    return gaps


def sample_pictures(part: Footage, fps: int) -> NDArray[Any]:
    """Return some pictures of an episode: (n, 3, height, width) uint8.

    Raises:
        ValueError: none can be decoded.
    """
    pictures: list[NDArray[Any]] = []
    with suppress(av.FFmpegError, OSError, IndexError), av.open(str(part.file)) as container:
        stream = container.streams.video[0]
        for number in np.linspace(0, part.length - 1, _SAMPLED, dtype=int):
            second = part.start + int(number) / fps
            container.seek(int(second / (stream.time_base or 1)), stream=stream)
            for frame in container.decode(stream):
                if frame.time is not None and frame.time >= second - 0.5 / fps:
                    pictures.append(frame.to_ndarray(format="rgb24").transpose(2, 0, 1))
                    break
    if not pictures:
        raise ValueError(f"no picture of {part.file} can be decoded")
    return np.stack(pictures)


def _retime(old: Path, new: Path, fps: int, places: NDArray[Any]) -> bool:
    """Write the packets of the video `old` to `new`, one frame each 1/fps s; False if that cannot be done.

    Args:
        places: of each frame of `old`, in the order in which they are shown, its number in `new`; -1: none.
    """
    try:
        with av.open(str(old)) as source, av.open(str(new), "w", format="mp4") as target:
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            packets = [packet for packet in source.demux(stream) if packet.size and not packet.is_corrupt]
            times = [packet.pts for packet in packets if packet.pts is not None]
            shown = places[np.argsort(np.argsort(times, kind="stable"), kind="stable")]
            if not _starts_with_keyframes([packet.is_keyframe for packet in packets], shown):
                return False
            stored = np.cumsum(shown >= 0) - 1
            delay = int((stored - shown)[shown >= 0].max(initial=0))  # a frame is decoded before it is shown
            for packet, place, order in zip(packets, shown.tolist(), stored.tolist(), strict=True):
                if place < 0:
                    continue
                packet.time_base = Fraction(1, fps * _TICKS)
                packet.pts, packet.dts, packet.duration = place * _TICKS, (order - delay) * _TICKS, _TICKS
                packet.stream = copy
                target.mux(packet)
        return True
    except (av.FFmpegError, OSError, ValueError):
        return False


def _starts_with_keyframes(keyframes: list[bool], shown: NDArray[Any]) -> bool:
    """Whether every stretch of packets that are kept can be decoded without those before it."""
    before = False
    for keyframe, place in zip(keyframes, shown.tolist(), strict=True):
        if place >= 0 and not before and not keyframe:
            return False
        before = place >= 0
    return True
