"""The doctor's look at a data set, as training will see it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from client.check import Check
from client.video_checks import check_videos
from federation.cameras import spell_cameras
from federation.config import PolicyConfig
from federation.dataset_description import DatasetDescription, check_fits, describe_dataset
from federation.dataset_tables import read_frames
from federation.errors import DatasetError

__all__ = ["check_dataset"]

_TIMESTAMP_TOLERANCE_SECONDS = 1e-4  # LeRobot's own: past it LeRobot refuses to load the frame
_LARGEST_ANGLE = 360.0  # degrees; normalised recordings stay within -100..100
_SMALLEST_ANGLE_SPAN = 7.0  # 2 pi and a little: a span below it looks like radians


def check_dataset(root: Path, cameras: Sequence[str], names: Mapping[str, str] | None = None) -> list[Check]:
    """Look at the data set in `root`: its files, cameras, numbers and a few frames of its videos.

    Args:
        cameras: those of the run.
        names: what the site says of its own (see `federation/cameras.py`).
    """
    try:
        description = describe_dataset(root)
    except DatasetError as error:
        return [Check("error", "data set", str(error))]
    except OSError as error:
        fix = f"give user {os.getuid()} the right to read it; in a site's bundle see SITE_UID in .env"
        return [Check("error", "data set", f"{root}: cannot be read ({error.strerror}); {fix}")]
    checks = [
        Check(
            "ok",
            "data set",
            f"{root}: {description.episodes} episodes, {description.frames} frames, {description.fps} fps",
        )
    ]
    if description.left_out:
        episodes = ", ".join(map(str, description.left_out[:5]))
        text = f"{root.name}: {len(description.left_out)} episodes are left out, they hold NaN: {episodes}"
        checks.append(Check("warning", "episodes", f"{text}; delete them with lerobot-edit-dataset"))
    policy = PolicyConfig(cameras=",".join(cameras), empty_cameras=len(cameras) - 1)
    try:
        matched = check_fits(description, policy, str(root), names)
    except DatasetError as error:
        checks.append(Check("error", "cameras", str(error)))
    else:
        text = f"{root.name}: {', '.join(spell_cameras(cameras, matched))}"
        text += f" (recorded: {', '.join(description.cameras)})"
        if lacking := len(cameras) - len(matched):
            fix = f"only a run with policy.empty_cameras = {lacking} or more takes it"
            checks.append(Check("warning", "cameras", f"{text}; {fix}"))
        else:
            checks.append(Check("ok", "cameras", text))
    found = [*_check_numbers(root, description), *check_videos(root, description)]
    return [*checks, *(Check(check.level, check.what, f"{root.name}: {check.text}") for check in found)]


def _check_numbers(root: Path, description: DatasetDescription) -> list[Check]:
    """Time stamps and ranges over all frames; seconds even for hundreds of thousands."""
    try:
        frames = read_frames(root, ("episode_index", "frame_index", "timestamp"))
    except DatasetError as error:
        return [Check("error", "frames", str(error))]
    rows = len(frames["episode_index"])
    if rows != description.frames:
        text = f"{rows} rows in data/, {description.frames} frames in meta/info.json"
        return [Check("error", "frames", f"{text}; copy the data set again")]
    checks = [_check_timestamps(frames, description.fps)]
    for feature, named in description.statistics.items():
        checks.append(_check_range(feature.rpartition(".")[2], named["min"], named["max"]))
    return checks


def _check_timestamps(values: dict[str, np.ndarray], fps: int) -> Check:
    expected = values["frame_index"] / fps
    wrong = np.flatnonzero(~(np.abs(values["timestamp"] - expected) <= _TIMESTAMP_TOLERANCE_SECONDS))
    if not len(wrong):
        return Check("ok", "timestamps", f"{len(expected)} frames, each 1/{fps} s after the last")
    first = wrong[0]
    return Check(
        "error",
        "timestamps",
        f"{len(wrong)} of {len(expected)} frames are not at frame / {fps} fps, the first is frame "
        f"{values['frame_index'][first]:.0f} of episode {values['episode_index'][first]:.0f} at "
        f"{values['timestamp'][first]:.4f} s; record again or correct fps in meta/info.json",
    )


def _check_range(name: str, lowest: np.ndarray, highest: np.ndarray) -> Check:
    low, high = float(lowest.min()), float(highest.max())
    text = f"{low:.1f} to {high:.1f}"
    if max(-low, high) > _LARGEST_ANGLE:
        return Check("error", name, f"{text}: no joint of an SO-100 gets there; calibrate and record again")
    if high - low < _SMALLEST_ANGLE_SPAN:
        fix = "the arm did not move, or these are radians: SO-100 recordings are in degrees or -100 to 100"
        return Check("warning", name, f"{text}: {fix}")
    return Check("ok", name, text)
