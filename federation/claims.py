"""What a site claims of its own size counts up to a bound that no single site can move.

Nobody but the site knows how many frames it holds. The lower median of what all sites claim is between the
claims of honest ones as long as most sites are honest, and of two sites it is the smaller claim. Both the
mean of a round (`server/rounds.py`) and the normalisation (`normalisation.py`) go by it.
"""

import statistics
from collections.abc import Collection

__all__ = ["MAX_WEIGHT_RATIO", "max_weight"]

MAX_WEIGHT_RATIO = 4.0  # of five sites, one that claims anything weighs no more than the other four


def max_weight(claimed: Collection[float]) -> float:
    """The most that one site may count for: a few times the lower median of what all of them claim."""
    return MAX_WEIGHT_RATIO * statistics.median_low(claimed)
