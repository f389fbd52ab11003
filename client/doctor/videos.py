"""The doctor's look at every frame of a dataset's videos.

Tables and packets were looked at before (see `federation/data/faults.py`), and a few frames of each camera
are decoded by `doctor/samples.py`; here all are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.doctor.check import Check
from federation.data.advice import repair
from federation.data.description import DatasetDescription
from federation.data.faults import decoded_times, lacking_frames, video_of_episode
from federation.data.tables import read_episodes

__all__ = ["check_videos"]

_MAX_DAMAGED = 0.1  # of all frames; training leaves out those there are
_MAX_NAMED = 3


def check_videos(
    root: Path, info: Mapping[str, Any], description: DatasetDescription, full: bool
) -> list[Check]:
    """Decode every frame of every camera, if `full`, and warn of pictures that are slow to load."""
    rows = [row for row in read_episodes(root) if row["episode_index"] not in description.left_out]
    checks = []
    for camera in description.used_cameras.values():
        key = f"observation.images.{camera}"
        if info["features"][key]["dtype"] != "video":
            text = "stored as images: every frame takes about five times as long to load; prefer video"
            checks.append(Check("warning", f"video {camera}", text))
        elif full:
            level, text = _decode_all(root, info, rows, key)
            checks.append(Check(level, f"video {camera}", text))
    return checks


def _decode_all(root: Path, info: Mapping[str, Any], rows: list[dict[str, Any]], key: str) -> tuple[str, str]:
    times: dict[Path, NDArray[Any]] = {}
    damaged: dict[int, int] = {}
    for row in rows:
        file = root / video_of_episode(info, row, key)
        if file not in times:
            times[file] = np.sort(list(decoded_times(file)))
        if lacking := lacking_frames(times[file], info["fps"], row, key):
            damaged[row["episode_index"]] = lacking
    frames, lost = sum(row["length"] for row in rows), sum(damaged.values())
    if not damaged:
        return "ok", f"all {frames} frames of {len(rows)} episodes decoded"
    named = ", ".join(f"{n} of episode {episode}" for episode, n in list(damaged.items())[:_MAX_NAMED])
    text = f"{lost} of {frames} frames cannot be decoded: {named}{', ...' * (len(damaged) > _MAX_NAMED)}"
    drop = repair(root, sorted(damaged))
    level = "error" if lost > _MAX_DAMAGED * frames else "warning"
    return level, f"{text}; training skips them: copy the videos again, or {drop} drops the episodes"
