"""One normalisation for the whole federation, from the statistics its nodes report."""

from collections.abc import Sequence

from lerobot.datasets.compute_stats import aggregate_stats

from federation.statistics import Statistics

__all__ = ["merge_statistics"]


def merge_statistics(statistics: Sequence[Statistics]) -> Statistics:
    """The statistics of the pooled data, without pooling it.

    LeRobot's own aggregation: counts, minima and maxima directly, means weighted by counts, and variances by
    the parallel formula of Chan et al. (1983). In float64.
    """
    return aggregate_stats(list(statistics))
