"""What a joint's number means: degrees, or hundredths of its calibrated range to either side.

LeRobot records SO-100 and SO-101 in degrees by default and from -100 to 100 with `--robot.use_degrees=false`,
and writes into no dataset which of the two it was. Mixed, they make a policy that moves an arm wrongly, so
the run's configuration says what all sites record (`policy.joint_units`) and each dataset is held against
it as far as its numbers tell: by the steps of the servo, by angles beyond 100, by joints at the range's ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from federation.data.servo_lattice import MIN_DISTINCT, fits_degrees, fits_range
from federation.data.statistics import FEATURES
from federation.errors import DatasetError

__all__ = ["DEGREES", "RANGE", "JointUnits", "check_joint_units", "find_joint_units"]

Units = Literal["degrees", "range"]
DEGREES: Units = "degrees"
RANGE: Units = "range"

_JOINTS = 5  # the gripper is 0 to 100 in both
_END = 100.0  # of the range, to either side
_SURE_ENDS = 2  # one extreme of exactly 100 may be chance in degrees
_SURE_COLUMNS = 2
_SAMPLED = 8  # episodes

Episodes = Mapping[int, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class JointUnits:
    """The units that a dataset can be in, and what in its numbers tells them; no reason where both can be."""

    possible: tuple[Units, ...] = (DEGREES, RANGE)
    reason: str = ""


def find_joint_units(episodes: Episodes, root: Path) -> JointUnits:
    """Return the units that the five joints can be in.

    Args:
        episodes: as `split_episodes` gives them, without those that are excluded.
        root: names the dataset in errors.

    Raises:
        DatasetError: state and action are in different units, or episodes are.
    """
    if any(own[feature].shape[1] <= _JOINTS for own in episodes.values() for feature in FEATURES):
        return JointUnits()  # of another arm, see `describe_dataset`
    parts = {f: {index: own[f][:, :_JOINTS] for index, own in episodes.items()} for f in FEATURES}
    told = {
        feature: units for feature, own in parts.items() if (units := _told_by(feature, own, root)).reason
    }
    if len({units.possible for units in told.values()}) > 1:
        found = " and ".join(f"{feature} is in {units.possible[0]}" for feature, units in told.items())
        raise DatasetError(
            f"dataset {root}: {found} ({told['action'].reason}); record again with --robot.use_degrees=true "
            "and --teleop.use_degrees=true"
        )
    if told:
        return next(iter(told.values()))
    values = [np.concatenate(list(own.values())) for own in parts.values()]
    lowest, highest = (np.stack([getattr(own, name)(axis=0) for own in values]) for name in ("min", "max"))
    if (lowest == -_END).any(0).sum() + (highest == _END).any(0).sum() >= _SURE_ENDS:
        return JointUnits((RANGE,), "joints end at exactly -100 or 100")
    return JointUnits()


def check_joint_units(found: JointUnits, units: str, dataset: str) -> None:
    """Raise a `DatasetError` if the dataset called `dataset` is clearly in other units than `units`."""
    if units in found.possible:
        return
    own = found.possible[0]
    times = "(range_max - range_min) / 2275" if own == RANGE else "2275 / (range_max - range_min)"
    raise DatasetError(
        f"dataset {dataset}: its joints are in {own} ({found.reason}), and policy.joint_units is {units!r}; "
        f"use data recorded with --robot.use_degrees={str(units == DEGREES).lower()}, or multiply each joint "
        f"but the gripper in data/ by {times} of its calibration file, or set policy.joint_units = {own!r} "
        "with such data at all sites"
    )


def _told_by(feature: str, parts: Mapping[int, NDArray[Any]], root: Path) -> JointUnits:
    """Return the units that one feature can be in; `parts` are its values (frames, joints) in each episode.

    Episodes are checked one by one where all together are on no lattice: calibrated anew between them, or
    merged from recordings in different units.
    """
    beyond = [index for index, own in parts.items() if np.abs(own).max() > _END]
    units = _lattice(np.concatenate(list(parts.values())))
    if not units and len(parts) > 1:
        chosen = np.array(list(parts))[np.linspace(0, len(parts) - 1, min(_SAMPLED, len(parts))).astype(int)]
        single = {int(index): own for index in chosen if (own := _lattice(parts[index]))}
        in_range = [index for index, own in single.items() if own == RANGE]
        in_degrees = [index for index, own in single.items() if own == DEGREES] or beyond
        if in_range and in_degrees:
            raise DatasetError(
                f"dataset {root}: {feature} is in degrees in episode {in_degrees[0]} and in range in episode "
                f"{in_range[0]}; multiply the joints but the gripper of those in range, in data/, by "
                "(range_max - range_min) / 2275 of the calibration file"
            )
        if len(single) > len(chosen) / 2:
            units = next(iter(single.values()))
    if beyond:
        return JointUnits((DEGREES,), "joints go beyond -100 to 100")
    return JointUnits((units,), f"joints step by the servo's ticks in {units}") if units else JointUnits()


def _lattice(values: NDArray[Any]) -> Units | None:
    """Return the units on whose lattice half of the joints that moved are, if none is on the other's."""
    distinct = [np.unique(column) for column in values.T]
    moved = [column for column in distinct if len(column) >= MIN_DISTINCT]
    degrees = np.array([fits_degrees(column) for column in moved], bool)
    range_ = np.array([fits_range(column) for column in moved], bool)
    for units, own, other in ((DEGREES, degrees, range_), (RANGE, range_, degrees)):
        # A joint may be on both lattices: at 2275 ticks a hundredth of its half range is a degree.
        sure = own.sum() >= max(_SURE_COLUMNS, len(moved) / 2)
        if sure and (own & ~other).any() and not (other & ~own).any():
            return units
    return None
