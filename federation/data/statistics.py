"""Normalisation statistics: what a site reports of its joints, and what may be believed of it.

Mean, standard deviation, minimum, maximum and count can be merged exactly. A quantile cannot: the weighted
mean of two medians is not the median of both (LeRobot's aggregation takes it for that). So a site sends its
distribution at `SKETCH_POINTS` equal steps of rank beside them, and quantiles are merged from those.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.errors import WireError

__all__ = [
    "FEATURES",
    "LARGEST_JOINT_VALUE",
    "MAX_EPISODES",
    "MAX_FRAMES",
    "SKETCH",
    "Statistics",
    "check_statistics",
    "mixture_quantiles",
    "pool_statistics",
    "statistics_of_frames",
]

Statistics = dict[str, dict[str, NDArray[Any]]]
"""Feature -> name -> float64: "mean", "std", "min", "max" (6,), "count" (1,), and of a site
"sketch" (SKETCH_POINTS, 6), of a federation the quantiles "q01" to "q99" (6,)."""

FEATURES = ("observation.state", "action")  # SmolVLA does not normalise images
SKETCH = "sketch"
SKETCH_POINTS = 257  # 25 kB for both features; a merged quantile is off by 1/256 of the frames at most
_RANKS = np.linspace(0, 1, SKETCH_POINTS)
_MOMENTS = ("mean", "std", "min", "max")
LARGEST_JOINT_VALUE = 360.0  # degrees, or hundredths of the range: no joint gets there
MAX_FRAMES = 10**9  # a year at 30 frames a second
MAX_EPISODES = 10**7


def statistics_of_frames(
    frames: Mapping[str, NDArray[Any]], episodes: Collection[int] | None = None
) -> Statistics:
    """Return the statistics of both features, in float64; deviations are the population's.

    Args:
        frames: as `read_frames` gives them.
        episodes: indices of those that count; None: all.
    """
    own = frames["episode_index"]
    used = np.full(len(own), True) if episodes is None else np.isin(own, list(episodes))
    return {feature: _statistics(frames[feature][used].astype(np.float64)) for feature in FEATURES}


def pool_statistics(parts: Sequence[Statistics]) -> Statistics:
    """Return the statistics of the frames of all `parts` together; of one part its own.

    Means and deviations are exact, the sketch is that of the mixture of the sketches.
    """
    if len(parts) == 1:
        return parts[0]
    return {feature: _pool([part[feature] for part in parts]) for feature in FEATURES}


def mixture_quantiles(
    sketches: Sequence[NDArray[Any]], counts: Sequence[float], ranks: Sequence[float]
) -> NDArray[Any]:
    """Return the quantiles (ranks, joints) of the mixture of `sketches`.

    Its distribution function is inverted at all points of all sketches. Each sketch is a piecewise linear
    distribution function. Where a value repeats, as in a resting arm, it jumps: both ends of it are kept.

    Args:
        counts: of the frames that each sketch is of.
    """
    weights = np.array(counts) / sum(counts)
    columns = []
    for joint in range(sketches[0].shape[1]):
        points = np.unique(np.concatenate([sketch[:, joint] for sketch in sketches]))
        above, below = np.zeros(len(points)), np.zeros(len(points))
        for weight, sketch in zip(weights, sketches, strict=True):
            values, own = sketch[:, joint], np.linspace(0, 1, len(sketch))
            # Of equal values `interp` takes the last, so mirrored it takes the first.
            above += weight * np.interp(points, values, own, left=0)
            below += weight * (1 - np.interp(-points, -values[::-1], 1 - own[::-1], left=0))
        rank = np.stack([below, above], axis=1).ravel()
        columns.append(np.interp(ranks, rank, np.repeat(points, 2)))
    return np.stack(columns, axis=1)


def check_statistics(statistics: Statistics, dim: int, frames: int) -> None:
    """Raise a `WireError` unless `statistics` can be those of some `frames` frames with `dim` joints."""
    if statistics.keys() != set(FEATURES):
        raise WireError(f"statistics are of {sorted(statistics)}, expected {sorted(FEATURES)}")
    shapes = {**dict.fromkeys(_MOMENTS, (dim,)), "count": (1,), SKETCH: (SKETCH_POINTS, dim)}
    for feature, named in statistics.items():
        if {name: values.shape for name, values in named.items()} != shapes:
            raise WireError(f"statistics of {feature} have other names or shapes; install this version")
        if not all(np.isfinite(values).all() for values in named.values()):
            raise WireError(f"statistics of {feature} hold NaN or infinity")
        count = named["count"][0]
        if count != frames or not 1 <= count <= MAX_FRAMES:
            raise WireError(
                f"statistics of {feature} are of {count:.10g} frames: must be as many as the node reports, "
                f"1 to {MAX_FRAMES}; install this version"
            )
        mean, std, low, high = (named[name] for name in _MOMENTS)
        if max(np.abs(low).max(), np.abs(high).max()) > LARGEST_JOINT_VALUE:
            raise WireError(
                f"statistics of {feature} hold values beyond {LARGEST_JOINT_VALUE:g}; no joint gets there: "
                "install this version, which leaves out such episodes"
            )
        slack = 1e-6 * (1 + np.abs(low) + np.abs(high))
        possible = (
            (low - slack <= mean).all()
            and (mean <= high + slack).all()
            and (std >= 0).all()
            and (std <= (high - low) / 2 + slack).all()  # Popoviciu's inequality
            and (np.diff(named[SKETCH], axis=0) >= 0).all()
            and (np.abs(named[SKETCH][[0, -1]] - [low, high]) <= slack).all()
        )
        if not possible:
            raise WireError(f"statistics of {feature} contradict themselves; no data has them")


def _statistics(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "count": np.array([len(values)], np.float64),
        SKETCH: np.quantile(values, _RANKS, axis=0),
    }


def _pool(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    counts = np.array([part["count"][0] for part in parts])
    share = counts / counts.sum()
    means, stds = (np.stack([part[name] for part in parts]) for name in ("mean", "std"))
    mean = share @ means
    low = np.min([part["min"] for part in parts], axis=0)
    high = np.max([part["max"] for part in parts], axis=0)
    sketch = mixture_quantiles([part[SKETCH] for part in parts], list(counts), list(_RANKS))
    sketch[0], sketch[-1] = low, high  # which rounding may miss
    return {
        "mean": mean,
        "std": np.sqrt(share @ (stds**2 + (means - mean) ** 2)),
        "min": low,
        "max": high,
        "count": np.array([counts.sum()]),
        SKETCH: sketch,
    }
