"""The doctor's look at a dataset: what the judgement that it shares with the join found, and how it moves."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from client.doctor.check import Check, plural
from client.doctor.motion import check_motion
from client.doctor.videos import check_videos
from federation.data.advice import repair
from federation.data.cameras import CameraChoice, spell_cameras
from federation.data.description import DatasetDescription, check_fits, describe_dataset
from federation.data.faults import split_episodes, video_of_episode
from federation.data.info import read_info
from federation.data.joint_names import JOINTS
from federation.data.joint_units import JointUnits
from federation.data.statistics import FEATURES
from federation.data.tables import read_episodes, read_frames, read_tasks
from federation.errors import DatasetError
from federation.settings import PolicyConfig

__all__ = ["check_dataset"]

_MAX_NAMED = 3


def check_dataset(
    root: Path,
    cameras: Sequence[str],
    names: Mapping[str, str] | None = None,
    full: bool = False,
    policy: PolicyConfig | None = None,
) -> tuple[list[Check], DatasetDescription | None]:
    """Look at the dataset in `root`: its files, cameras, tasks, motion and, if `full`, its videos.

    Args:
        cameras: those of the run.
        names: what the site says of its own (see `federation/data/cameras.py`).
        full: decode every frame.
        policy: what the run asks of a dataset; None: nobody knows yet.

    Returns:
        The checks, and what the dataset's files say; None if they cannot be trained on.
    """
    lack = policy.empty_cameras if policy else len(cameras) - 1
    try:
        description = describe_dataset(root, CameraChoice(cameras, names or {}, lack))
        if policy:
            check_fits(description, policy, str(root))
    except DatasetError as error:
        return [Check("error", *_named(str(error)))], None
    checks = [
        Check("ok", "dataset", _amount(root, description)),
        *_check_excluded(root, description),
        *(Check("warning", *_named(warning)) for warning in description.warnings),
    ]
    info = read_info(root)
    episodes = split_episodes(read_frames(root))
    usable = {index: episodes[index] for index in description.usable_episodes}
    found = [
        _check_cameras(cameras, description.used_cameras, description.cameras),
        _check_tasks(root),
        *(_check_range(description, feature) for feature in FEATURES),
        _check_units(description.joint_units),
        Check(
            "ok", "frame rate", f"{description.fps} frames/s: policy.fps of the run must be {description.fps}"
        ),
        *check_motion(usable, description.fps, _fix_for(root, info)),
        *check_videos(root, info, description, full),
    ]
    checks += [Check(check.level, check.what, f"{root.name}: {check.text}") for check in found]
    return checks, description


def _named(text: str) -> tuple[str, str]:
    """Return what a line that begins with "dataset ROOT: " is about, and the rest of it."""
    return "dataset", text.removeprefix("dataset ")


def _amount(root: Path, description: DatasetDescription) -> str:
    episodes, frames = plural(description.episodes, "episode"), plural(description.frames, "frame")
    return f"{root}: {episodes}, {frames}, {description.fps} fps"


def _check_excluded(root: Path, description: DatasetDescription) -> list[Check]:
    if not (excluded := description.left_out):
        return []
    named = "; ".join(f"{index}: {why}" for index, why in islice(excluded.items(), _MAX_NAMED))
    more = "; ..." if len(excluded) > _MAX_NAMED else ""
    text = (
        f"{root.name}: {len(excluded)} of {plural(description.episodes, 'episode')} excluded ({named}{more})"
    )
    fix = f"{repair(root)} writes what can be saved to a new folder"
    return [Check("warning", "episodes", f"{text}; {fix}")]


def _fix_for(root: Path, info: Mapping[str, Any]) -> Callable[[Sequence[int]], str]:
    """Return the function that names the fix for episodes whose motion is odd: watch them, then drop them."""
    rows = {row["episode_index"]: row for row in read_episodes(root)}
    keys = [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]

    def fix(episodes: Sequence[int]) -> str:
        fixes = []
        if keys:
            video = root / video_of_episode(info, rows[episodes[0]], keys[0])
            start = rows[episodes[0]][f"videos/{keys[0]}/from_timestamp"]
            fixes.append(f"look at {video} from {start:.1f} s on")
        if len(episodes) < len(rows):
            fixes.append(f"{repair(root, episodes)} drops {'it' if len(episodes) == 1 else 'them'}")
        return "; ".join(fixes) or "record again"

    return fix


def _check_cameras(wanted: Sequence[str], matched: Mapping[str, str], recorded: Sequence[str]) -> Check:
    text = f"{', '.join(spell_cameras(wanted, matched))} (recorded: {', '.join(recorded)})"
    if lacking := len(wanted) - len(matched):
        fix = f"only a run with policy.empty_cameras = {lacking} or more takes it"
        return Check("warning", "cameras", f"{text}; {fix}")
    return Check("ok", "cameras", text)


def _check_tasks(root: Path) -> Check:
    tasks = read_tasks(root)
    if empty := [number for number, task in tasks.items() if not task.strip()]:
        text = f"{len(empty)} of {plural(len(tasks), 'task')} without text, the first is {empty[0]}"
        fix = "the policy is told nothing there: give them one in meta/tasks.parquet"
        return Check("warning", "tasks", f"{text}; {fix}")
    first = repr(tasks[min(tasks)])
    return Check("ok", "tasks", first if len(tasks) == 1 else f"{len(tasks)}, the first is {first}")


def _check_range(description: DatasetDescription, feature: str) -> Check:
    """Return the range of the values as a check; that an arm can have them, the description has checked."""
    low, high = (description.statistics[feature][name] for name in ("min", "max"))
    joints = f"{low[:-1].min():.1f} to {high[:-1].max():.1f}"
    text = f"joints {joints}, {JOINTS[-1]} {low[-1]:.1f} to {high[-1]:.1f}"
    return Check("ok", feature.rpartition(".")[2], text)


def _check_units(units: JointUnits) -> Check:
    text = "degrees or -100 to 100, the numbers do not tell: ask for policy.joint_units of the run"
    if units.reason:
        text = f"{units.reason}: policy.joint_units of the run must be {units.possible[0]!r}"
    return Check("ok", "joint units", text)
