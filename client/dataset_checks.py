"""The doctor's look at a dataset, as training will see it."""

import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from client.check import Check
from client.motion_checks import check_motion
from client.video_checks import check_videos
from federation.cameras import spell_cameras
from federation.config import PolicyConfig
from federation.dataset_description import DatasetDescription, check_fits, describe_dataset
from federation.dataset_tables import read_frames, read_tasks
from federation.episode_faults import split_episodes
from federation.errors import DatasetError
from federation.joint_units import possible_joint_units

__all__ = ["check_dataset"]

_MOST_NAMED = 3
_LARGEST_ANGLE = 360.0  # degrees; normalised recordings stay within -100..100
_SMALLEST_ANGLE_SPAN = 7.0  # 2 pi and a little: a span below it looks like radians


def check_dataset(
    root: Path, cameras: Sequence[str], names: Mapping[str, str] | None = None, full: bool = False
) -> list[Check]:
    """Look at the dataset in `root`: its files, cameras, tasks, motion and a few frames of its videos.

    Args:
        cameras: those of the run.
        names: what the site says of its own (see `federation/cameras.py`).
        full: decode every frame.
    """
    try:
        description = describe_dataset(root)
    except DatasetError as error:
        return [Check("error", "dataset", str(error))]
    except OSError as error:
        fix = f"give user {os.getuid()} the right to read it; in a site's bundle see SITE_UID in .env"
        return [Check("error", "dataset", f"{root}: cannot be read ({error.strerror}); {fix}")]
    checks = [
        Check(
            "ok",
            "dataset",
            f"{root}: {description.episodes} episodes, {description.frames} frames, {description.fps} fps",
        )
    ]
    if description.left_out:
        named = "; ".join(f"{i}: {why}" for i, why in islice(description.left_out.items(), _MOST_NAMED))
        text = f"{root.name}: {len(description.left_out)} of {description.episodes} are left out ({named})"
        fix = "copy the dataset again or delete them with lerobot-edit-dataset"
        checks.append(Check("warning", "episodes", f"{text}; {fix}"))
    checks += [Check("warning", "dataset", warning) for warning in description.warnings]
    units = possible_joint_units(description.statistics)
    policy = PolicyConfig(
        cameras=",".join(cameras),
        empty_cameras=len(cameras) - 1,
        joint_units=units[0],
        fps=description.fps,
    )
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
    info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
    ranges = [
        _check_range(feature.rpartition(".")[2], named["min"], named["max"])
        for feature, named in description.statistics.items()
    ]
    text = f"policy.joint_units of the run must be {units[0]!r}"
    if len(units) > 1:
        text = "degrees or -100 to 100, the numbers do not tell: ask for policy.joint_units of the run"
    found = [*_check_tasks(root), *ranges, Check("ok", "joint units", text)]
    rate = f"{description.fps} frames/s: policy.fps of the run must be {description.fps}"
    found.append(Check("ok", "frame rate", rate))
    if all(check.level == "ok" for check in ranges):  # radians or an arm that stands still have no jumps
        found += _check_motion(root, info, description)
    found += check_videos(root, info, description, full)
    return [*checks, *(Check(check.level, check.what, f"{root.name}: {check.text}") for check in found)]


def _check_tasks(root: Path) -> list[Check]:
    tasks = read_tasks(root)
    if empty := [index for index, task in enumerate(tasks) if not task.strip()]:
        text = f"{len(empty)} of {len(tasks)} tasks have no text, the first is {empty[0]}"
        fix = "the policy is told nothing there: give them one in meta/tasks.parquet"
        return [Check("warning", "tasks", f"{text}; {fix}")]
    return [Check("ok", "tasks", f"{len(tasks)}, the first is {tasks[0]!r}")]


def _check_motion(root: Path, info: Mapping[str, Any], description: DatasetDescription) -> list[Check]:
    episodes = split_episodes(read_frames(root))
    usable = {index: episodes[index] for index in description.usable_episodes}
    names = info["features"]["action"].get("names")
    if not isinstance(names, list) or len(names) != description.action_dim:
        names = [f"joint {number}" for number in range(description.action_dim)]
    joints = [str(name).removesuffix(".pos") for name in names]
    command = f"lerobot-dataset-viz --repo-id local/{root.name} --root {root} --episode-index"
    return check_motion(usable, joints, description.fps, command)


def _check_range(name: str, lowest: np.ndarray, highest: np.ndarray) -> Check:
    low, high = float(lowest.min()), float(highest.max())
    text = f"{low:.1f} to {high:.1f}"
    if max(-low, high) > _LARGEST_ANGLE:
        return Check("error", name, f"{text}: no joint of an SO-100 gets there; calibrate and record again")
    if high - low < _SMALLEST_ANGLE_SPAN:
        fix = "the arm did not move, or these are radians: SO-100 recordings are in degrees or -100 to 100"
        return Check("warning", name, f"{text}: {fix}")
    return Check("ok", name, text)
