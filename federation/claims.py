"""What a site claims of its own size may make it count for less than the others, never for more.

Nobody but the site knows how many frames it holds. The lower median of what all sites claim is between the
claims of honest ones as long as most sites are honest, and of two sites it is the smaller claim. Both the
mean of a round (`server/update_collector.py`) and the normalisation (`data/normalisation.py`) go by it. With
a bound of four times the median, one cheating site of five undid the other four, and one of two ruined the
policy; with the median itself a false count gains nothing (tests/benchmarks/poisoning.py).
"""

import statistics
from collections.abc import Collection

__all__ = ["max_weight"]


def max_weight(claimed: Collection[float]) -> float:
    """Return the most that one site may count for: the lower median of what all of them claim."""
    return statistics.median_low(claimed)
