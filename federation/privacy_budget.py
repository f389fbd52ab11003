"""What releases under Gaussian noise cost: the accountant of server and sites. It imports no torch.

Every release is a Gaussian mechanism: an update of norm at most C, with noise of deviation z * C. What is
protected is a whole site: two runs of which one has a site's updates and the other has them zeroed out end
alike up to (epsilon, delta). Who was asked is no secret.
"""

import math
from collections.abc import Mapping

__all__ = ["NOT_COVERED", "epsilon"]

# Belongs beside every epsilon that is shown.
NOT_COVERED = (
    "Epsilon covers the updates alone, and adding or removing a whole site; other data at a site that stays "
    "can move an update twice as far. Not covered, and sent without noise: each joint's minimum, maximum, "
    "moments and quantiles when a site joins; each round's losses, norms, counts and times; who replied."
)

_MAX_EPSILON = 1e6


def epsilon(releases: Mapping[float, int], delta: float) -> float:
    """Return the smallest epsilon of all `releases` together at `delta`; infinite beyond a million.

    Gaussian mechanisms compose exactly to one whose noise z is given by 1 / z^2 = sum of 1 / z_i^2 (Dong,
    Roth and Su, JRSSB 2022), whose delta for a given epsilon is known in closed form (Balle and Wang, ICML
    2018, theorem 8). That a site is not asked in every round is not counted in its favour.

    Args:
        releases: noise multiplier (deviation of the noise over the clipping norm) -> releases with it.
    """
    ratio = math.hypot(*(math.sqrt(count) / noise for noise, count in releases.items()))
    if ratio == 0 or _delta(ratio, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _delta(ratio, high) > delta:
        low, high = high, 2 * high
        if high > _MAX_EPSILON:
            return math.inf
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(ratio, middle) > delta else (low, middle)
    return high


def _delta(ratio: float, epsilon_: float) -> float:
    """Balle and Wang's delta; `ratio` is the sensitivity over the deviation of the noise."""
    tail = _normal_tail(ratio / 2 + epsilon_ / ratio)
    # Where the tail is zero to double precision the term is left out: delta is then too large.
    subtracted = math.exp(epsilon_ + math.log(tail)) if tail > 0 else 0.0
    return _normal_tail(epsilon_ / ratio - ratio / 2) - subtracted


def _normal_tail(x: float) -> float:
    """Probability that a standard normal exceeds `x`, exact far out too."""
    return math.erfc(x / math.sqrt(2)) / 2
