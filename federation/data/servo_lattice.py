"""Which units a column of joint positions is in, told by the steps of the servo that they were read from.

A servo of an SO-100 counts 4096 ticks a turn, and LeRobot makes numbers of them in two ways
(`MotorsBus._normalize`): degrees step by 360/4095 in every joint (by 360/4096 before June 2025), and the
range of -100 to 100 by 200/N, where N is how many ticks the calibration found between the joint's ends.
Numbers on one lattice and off the other are in those units. Filtered, interpolated and simulated numbers are
on none. `data/joint_units.py` asks this.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fits_degrees", "fits_range"]

MIN_DISTINCT = 20  # fewer values lie on some lattice by chance
_TICKS = (4095, 4096)
_RANGE_TICKS = np.arange(700, 4096)  # of a joint: 60 degrees to a whole turn
# Rounded numbers (0.1, 0.25, 1/16) lie on the lattices of these.
_DECIMAL = np.isin(_RANGE_TICKS, [2**twos * 5**fives for twos in range(13) for fives in range(6)])
_TOLERANCE_TICKS = 2e-3  # float32 rounds 180 degrees to 1/6000 of a tick
_SAMPLED = 16  # values that a first look takes


def fits_degrees(values: NDArray[Any]) -> bool:
    """Whether `values`, distinct and sorted, step by whole or half ticks in degrees.

    Halves, because the middle of a range may lie between two ticks and a dataset may hold two calibrations.
    """
    half_ticks = [(values - values[0]) * (2 * ticks / 360) for ticks in _TICKS]
    return any(_residual(own) < 2 * _TOLERANCE_TICKS and np.diff(own).min() > 0.5 for own in half_ticks)


def fits_range(values: NDArray[Any]) -> bool:
    """Whether `values`, distinct and sorted, are on the lattice of a joint's range from -100 to 100.

    A servo that is read 30 times a second is found on neighbouring ticks, however fast it moves; even steps
    that a program made are not.
    """
    fractions = (values + 100) / 200
    some = fractions[np.linspace(0, len(values) - 1, min(_SAMPLED, len(values))).astype(int)]
    possible = np.abs(_off_lattice(np.outer(_RANGE_TICKS, some))).max(axis=1) < _TOLERANCE_TICKS
    if not possible.any() or (possible & _DECIMAL).any():
        return False
    closest = np.diff(values).min() / 200
    return any(
        _residual(fractions * ticks) < _TOLERANCE_TICKS and abs(closest * ticks - 1) < 0.1
        for ticks in _RANGE_TICKS[possible]
    )


def _residual(ticks: NDArray[Any]) -> float:
    return float(np.abs(_off_lattice(ticks)).max())


def _off_lattice(ticks: NDArray[Any]) -> NDArray[Any]:
    off: NDArray[Any] = ticks - np.rint(ticks)
    return off
