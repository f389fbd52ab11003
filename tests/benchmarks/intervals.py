"""The interval of a mean over few seeds."""

from collections.abc import Sequence

import numpy as np

__all__ = ["mean_interval"]

_T95 = {3: 4.303, 5: 2.776}  # values -> 97.5 % quantile of Student's t with one degree less


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval of the mean of three or five `values`; None of any other number."""
    if len(values) not in _T95:
        return None
    half = _T95[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half
