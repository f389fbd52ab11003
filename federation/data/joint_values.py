"""Whether the numbers of a dataset can be positions of an SO-100's joints, and whether the arm followed.

`describe_dataset` asks this, so the doctor, the demo and the join judge alike. Recorders other than LeRobot's
write motor ticks, radians or a gripper from 0 to 1; one bad reading of a servo is a single wild frame. All of
them train without an error, and shift the normalisation of every site. Limits hold in degrees and in
hundredths of the range: a joint moves by tens of either.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.data.joint_names import JOINTS
from federation.data.statistics import FEATURES, LARGEST_JOINT_VALUE
from federation.errors import DatasetError

__all__ = ["STILL", "check_joint_values", "dead_joints", "value_fault", "value_warnings"]

Frames = Mapping[str, NDArray[Any]]
Episodes = Mapping[int, Frames]

_STATE, _ACTION = FEATURES
_GRIPPER = JOINTS.index("gripper")
_MAX_TICK = 4095.0
_MAX_MEANT = 1e6
_MAX_RADIANS = 2 * np.pi
STILL = 0.5  # a joint that moves by less does not move; a servo's tick is 0.09 degrees
_MOVED = 20.0
_USUAL = (0.1, 99.9)  # percentiles: single wild frames say nothing of the units
_MAX_SMALL_GRIPPER = 2.0  # of 100; in radians a gripper opens to 1.8
_MIN_GRIPPER_SPAN = 0.3  # a gripper kept shut trembles by less
_MIN_GRIPPER_STEP = 0.02  # LeRobot's least: a hundredth of 4095 ticks is 0.024
_DEAD_GAP, _DEAD_SECONDS, _DEAD_STILL = 20.0, 1.0, 1.0
_LEROBOT_FILES = "~/.cache/huggingface/lerobot/calibration"


def check_joint_values(episodes: Episodes, root: Path) -> None:
    """Raise a `DatasetError` if the numbers cannot be degrees or hundredths of a joint's range.

    Args:
        episodes: as `split_episodes` gives them, those with a fault too. Other than six values
            are left to `describe_dataset`.
        root: names the dataset in errors.
    """
    sane = [own for own in map(_sane, episodes.values()) if len(own[_STATE]) and _is_of_arm(own)]
    if not sane:
        return
    _check_recorded(sane, root)
    for feature in FEATURES:
        values = np.concatenate([own[feature] for own in sane])
        low, high = np.percentile(values, _USUAL, axis=0)
        _check_ticks(feature, values, root)
        _check_radians(feature, low[:_GRIPPER], high[:_GRIPPER], root)
        _check_gripper(feature, values[:, _GRIPPER], root)


def value_fault(own: Frames) -> str:
    """Why one episode cannot be trained on, as its numbers tell; "" if it can.

    Args:
        own: its finite frames.
    """
    if not _is_of_arm(own):
        return ""
    for feature in FEATURES:
        if len(wild := np.argwhere(np.abs(own[feature]) > LARGEST_JOINT_VALUE)):
            frame, joint = wild[0]
            value = own[feature][frame, joint]
            return (
                f"{feature} of {JOINTS[joint]} is {value:.5g} in frame {frame}, beyond "
                f"{LARGEST_JOINT_VALUE:.0f}: no joint gets there"
            )
    return "action stays the same while the arm moves" if _stays(own, _ACTION, _STATE) else ""


def value_warnings(episodes: Episodes, fps: int, root: Path) -> tuple[str, ...]:
    """Return what training survives but the owner must know: joints that do not follow, actions without lag.

    Args:
        episodes: as `split_episodes` gives them, without those that are excluded.
        root: names the dataset.
    """
    warnings = [
        f"dataset {root}: {JOINTS[joint]} does not follow its action: in each of {count} episodes it stands "
        f"still for {_DEAD_SECONDS:.0f} s at more than {_DEAD_GAP:.0f} from it; check its servo, cable and "
        "calibration and record again"
        for joint, count in dead_joints(episodes, fps).items()
    ]
    moving = any(np.ptp(own[_STATE], axis=0).max() > _MOVED for own in episodes.values())
    if moving and all(np.array_equal(own[_STATE], own[_ACTION]) for own in episodes.values()):
        warnings.append(
            f"dataset {root}: action equals observation.state in every frame, so it holds where the arm was, "
            "not where it was told to go, and a gripper that holds a thing is not told to press; record with "
            "lerobot-record and a leader arm, which writes the leader's position"
        )
    return tuple(warnings)


def dead_joints(episodes: Episodes, fps: int) -> dict[int, int]:
    """Joint -> in how many episodes it stands still far from its action; only if that is in each of them.

    Episodes shorter than a second tell nothing. A gripper that holds a thing stands still however hard it is
    told to close: it must do so for a whole episode.
    """
    window = max(2, round(_DEAD_SECONDS * fps))
    long = [own for own in episodes.values() if len(own[_STATE]) >= window and _is_of_arm(own)]
    dead = [
        joint
        for joint in range(len(JOINTS))
        if long
        and all(_is_dead(own[_STATE][:, joint], own[_ACTION][:, joint], window, joint) for own in long)
    ]
    return dict.fromkeys(dead, len(long))


def _is_dead(state: NDArray[Any], action: NDArray[Any], window: int, joint: int) -> bool:
    if joint == _GRIPPER and np.ptp(state) > _DEAD_STILL:
        return False
    far = np.abs(state - action) > _DEAD_GAP
    return any(
        np.ptp(state[first : first + window]) <= _DEAD_STILL
        for start, end in _stretches(far)
        for first in range(start, end - window + 1)
    )


def _stretches(flags: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """First and past-the-last index of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _is_of_arm(own: Frames) -> bool:
    return all(own[feature].shape[1] == len(JOINTS) for feature in FEATURES)


def _sane(own: Frames) -> Frames:
    """Without frames of NaN, infinity or a number that no recorder means, which `value_fault` names."""
    rows = np.all([(np.abs(own[feature]) < _MAX_MEANT).all(axis=1) for feature in FEATURES], axis=0)
    return {feature: own[feature][rows] for feature in FEATURES}


def _stays(own: Frames, feature: str, other: str) -> bool:
    """Whether no joint of `feature` moves while one of `other` does."""
    still, moves = (np.ptp(own[name], axis=0).max() for name in (feature, other))
    return bool(still < STILL and moves > _MOVED)


def _check_recorded(episodes: list[Frames], root: Path) -> None:
    for feature, other in ((_ACTION, _STATE), (_STATE, _ACTION)):
        staying = sum(_stays(own, feature, other) for own in episodes)
        if staying > len(episodes) / 2:
            raise DatasetError(
                f"dataset {root}: the {feature} was not recorded: it stays the same in {staying} of "
                f"{len(episodes)} episodes while {other} moves; record again with lerobot-record"
            )


def _check_ticks(feature: str, values: NDArray[Any], root: Path) -> None:
    middle = np.median(values, axis=0)
    if np.abs(middle).max() <= LARGEST_JOINT_VALUE:
        return
    low, high = np.percentile(values, _USUAL)
    span = f"dataset {root}: {feature} goes from {low:.0f} to {high:.0f}"
    if low < 0 or high > _MAX_TICK:
        raise DatasetError(
            f"{span}, no joint of an SO-100 goes beyond 360; calibrate the arm and record again"
        )
    arm = "robots/so_follower" if feature == _STATE else "teleoperators/so_leader"
    raise DatasetError(
        f"{span}: these are motor ticks; convert them in data/ with each joint's numbers in the calibration "
        f"file, {_LEROBOT_FILES}/{arm}/ID.json: (ticks - (range_min + range_max) / 2) * 360 / 4095, and for "
        "the gripper (ticks - range_min) / (range_max - range_min) * 100"
    )


def _check_radians(feature: str, low: NDArray[Any], high: NDArray[Any], root: Path) -> None:
    lowest, highest = low.min(), high.max()
    if max(-lowest, highest) > _MAX_RADIANS or (high - low).max() < 0.01:
        return
    raise DatasetError(
        f"dataset {root}: the five joints of {feature} stay within {lowest:.2f} to {highest:.2f}: these are "
        "radians, differences or -1 to 1, and positions in degrees (or -100 to 100) are needed; in data/ "
        "multiply radians by 180 / pi, -1 to 1 by 100, let the gripper go from 0 (closed) to 100 (open), or "
        "record with lerobot-record"
    )


def _check_gripper(feature: str, values: NDArray[Any], root: Path) -> None:
    """Raise DatasetError if the gripper is on a scale of 0 to 1 or in radians, not 0 to 100.

    A gripper that is kept shut stays near 0 as well, but in LeRobot's steps.
    """
    low, high = np.percentile(values, _USUAL)
    if low < -0.2 or high > _MAX_SMALL_GRIPPER or np.ptp(np.percentile(values, (5, 95))) < _MIN_GRIPPER_SPAN:
        return
    distinct = np.unique(values)
    if np.diff(distinct).min() < _MIN_GRIPPER_STEP or distinct.tolist() == [0, 1]:
        raise DatasetError(
            f"dataset {root}: gripper of {feature} goes from {low:.2f} to {high:.2f}, must go from 0 "
            f"(closed) to 100 (open); multiply it in data/ by {100 / max(1.0, high):.3g}"
        )
