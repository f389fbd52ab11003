"""The type of normalisation statistics, as LeRobot keeps them in `meta/stats.json`."""

import numpy as np

__all__ = ["FEATURES", "NAMES", "Statistics"]

Statistics = dict[str, dict[str, np.ndarray]]
"""Feature -> {"mean", "std", "min", "max": (6,), "count": (1,)} -> float64."""

FEATURES = ("observation.state", "action")  # SmolVLA does not normalise images
NAMES = ("mean", "std", "min", "max", "count")
