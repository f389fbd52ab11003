"""Confidence intervals and paired tests of success rates, without SciPy."""

import math
from collections.abc import Sequence

__all__ = ["sign_test", "wilson_interval"]

_Z_95 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion, sound for few trials and at 0 and 1; Wald's is not."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    rate, square = successes / trials, _Z_95**2 / trials
    centre = (rate + square / 2) / (1 + square)
    half = _Z_95 / (1 + square) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value that signs of paired `differences` are even; ties are left out.

    On successes (differences of -1, 0, 1) this is McNemar's exact test.
    """
    higher = sum(d > 0 for d in differences)
    lower = sum(d < 0 for d in differences)
    trials = higher + lower
    tail = sum(math.comb(trials, k) for k in range(min(higher, lower) + 1)) / 2**trials
    return float(min(1.0, 2 * tail))
