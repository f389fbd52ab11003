"""What a joint's number means: degrees, or hundredths of its calibrated range to either side.

LeRobot records SO-100 and SO-101 in degrees by default and from -100 to 100 with `--robot.use_degrees=false`,
and writes into no dataset which of the two it was. Mixed, they make a policy that moves an arm wrongly, so
the run's configuration says what all sites record (`policy.joint_units`) and each dataset is held against
it as far as its numbers tell: by the steps of the servo, by angles beyond 100, by joints at the range's ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from federation.errors import DatasetError
from federation.servo_lattice import MIN_DISTINCT, fits_degrees, fits_range
from federation.statistics import FEATURES

__all__ = ["DEGREES", "RANGE", "JointUnits", "check_joint_units", "find_joint_units"]

DEGREES = "degrees"
RANGE = "range"

_JOINTS = 5  # the gripper is 0 to 100 in both
_END = 100.0  # of the range, to either side
_SURE_ENDS = 2  # one extreme of exactly 100 may be chance in degrees
_SURE_COLUMNS = 2


@dataclass(frozen=True)
class JointUnits:
    """The units that a dataset can be in, and what in its numbers tells them; no reason where both can be."""

    possible: tuple[str, ...] = (DEGREES, RANGE)
    reason: str = ""


def find_joint_units(episodes: Mapping[int, Mapping[str, np.ndarray]], root: Path) -> JointUnits:
    """The units that the five joints can be in.

    Args:
        episodes: as `split_episodes` gives them, without those that are excluded.
        root: names the dataset in errors.

    Raises:
        DatasetError: state and action are in different units.
    """
    if any(own[feature].shape[1] <= _JOINTS for own in episodes.values() for feature in FEATURES):
        return JointUnits()  # of another arm, see `check_fits`
    columns = {f: np.concatenate([own[f] for own in episodes.values()])[:, :_JOINTS] for f in FEATURES}
    told = {feature: units for feature, own in columns.items() if (units := _units_of(own)).reason}
    if len({units.possible for units in told.values()}) > 1:
        found = " and ".join(f"{feature} is in {units.possible[0]}" for feature, units in told.items())
        raise DatasetError(
            f"dataset {root}: {found} ({told['action'].reason}); record again with --robot.use_degrees=true "
            "and --teleop.use_degrees=true"
        )
    if told:
        return next(iter(told.values()))
    lowest, highest = (
        np.stack([getattr(own, name)(axis=0) for own in columns.values()]) for name in ("min", "max")
    )
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


def _units_of(values: np.ndarray) -> JointUnits:
    """What one feature (frames, joints) tells: half of the joints that moved must agree, and none object."""
    if np.abs(values).max() > _END:
        return JointUnits((DEGREES,), "joints go beyond -100 to 100")
    distinct = [np.unique(column) for column in values.T]
    moved = [column for column in distinct if len(column) >= MIN_DISTINCT]
    degrees = np.array([fits_degrees(column) for column in moved], bool)
    range_ = np.array([fits_range(column) for column in moved], bool)
    for units, own, other in ((DEGREES, degrees, range_), (RANGE, range_, degrees)):
        # A joint may be on both lattices: at 2275 ticks a hundredth of its half range is a degree.
        sure = own.sum() >= max(_SURE_COLUMNS, len(moved) / 2)
        if sure and (own & ~other).any() and not (other & ~own).any():
            return JointUnits((units,), f"joints step by the servo's ticks in {units}")
    return JointUnits()
