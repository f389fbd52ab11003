"""What a joint's number means: degrees, or hundredths of its calibrated range to either side.

LeRobot records SO-100 and SO-101 in degrees by default and from -100 to 100 with `--robot.use_degrees=false`,
and writes into no dataset which of the two it was. Mixed, they make a policy that moves an arm wrongly, so
the run's configuration says what all sites record (`policy.joint_units`) and each dataset is held against
it as far as its numbers tell.
"""

import numpy as np

from federation.errors import DatasetError
from federation.statistics import FEATURES, Statistics

__all__ = ["DEGREES", "RANGE", "check_joint_units", "possible_joint_units"]

DEGREES = "degrees"
RANGE = "range"

_END = 100.0  # of the range, to either side
_SURE_ENDS = 2  # one extreme of exactly 100 may be chance in degrees


def possible_joint_units(statistics: Statistics) -> tuple[str, ...]:
    """The units that the five joints of a dataset can be in; the gripper is 0 to 100 in both.

    Nothing lies beyond -100 to 100 if that is the range. LeRobot cuts off there, so that joints which reached
    the ends of their range have exactly these extremes: that is taken for the range.
    """
    lowest, highest = (
        np.stack([statistics[feature][name][:5] for feature in FEATURES]) for name in ("min", "max")
    )
    if max(-lowest.min(), highest.max()) > _END:
        return (DEGREES,)
    if (lowest == -_END).any(0).sum() + (highest == _END).any(0).sum() >= _SURE_ENDS:
        return (RANGE,)
    return (DEGREES, RANGE)


def check_joint_units(statistics: Statistics, units: str, dataset: str) -> None:
    """Raise a `DatasetError` if the dataset called `dataset` is clearly in other units than `units`."""
    possible = possible_joint_units(statistics)
    if units in possible:
        return
    reason = {
        DEGREES: "joints go beyond -100 to 100, so it is in degrees",
        RANGE: "joints end at exactly -100 or 100, so it is in hundredths of their range",
    }[possible[0]]
    raise DatasetError(
        f"dataset {dataset}: {reason}, and policy.joint_units is {units!r}; use data recorded with "
        f"--robot.use_degrees={str(units == DEGREES).lower()}, or joint_units = {possible[0]!r} with "
        "such data at all sites"
    )
