"""Aggregation that withstands some bad updates: coordinate-wise median, trimmed mean, multi-Krum.

These need all updates of a round at once. They are held as they came, encoded, and decoded one parameter at
a time: with int8, N nodes cost N quarters of the fp32 payload. `WeightedMean` (in `aggregation/collector.py`)
holds none and is the default. Examples do not weigh here: a node could claim any number.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from federation.logs import get_logger
from federation.wire.payload import Payload

__all__ = ["krum_choice", "median", "multi_krum", "trimmed_mean"]

_MIN_TO_TRIM = 3
_log = get_logger("server.aggregation.robust")


def median(updates: Sequence[Payload]) -> Iterator[tuple[str, Tensor]]:
    """Yield the coordinate-wise median, of an even number the middle two's mean (Yin et al., ICML 2018)."""
    for name, stacked in _by_parameter(updates):
        ordered = stacked.sort(dim=0).values
        middle = len(updates) // 2
        low = ordered[middle] if len(updates) % 2 else ordered[middle - 1]
        yield name, (low + ordered[middle]) / 2


def trimmed_mean(updates: Sequence[Payload], trim_fraction: float) -> Iterator[tuple[str, Tensor]]:
    """Yield a coordinate-wise mean without the largest and smallest `trim_fraction` (Yin et al., ICML 2018).

    From three updates on at least one is cut at either end, else it would be the plain mean where it matters
    most. Of one or two nothing can be cut: such a round gets the coordinate-wise median, and the log has it.

    Args:
        trim_fraction: below 0.5; of N updates, `floor(trim_fraction * N)` are cut at either end, or one.
    """
    if len(updates) < _MIN_TO_TRIM:
        _log.warning(
            "%d updates, and trimmed_mean needs %d: this round takes the median, which of so few is their "
            "mean; raise federation.min_updates",
            len(updates),
            _MIN_TO_TRIM,
        )
        yield from median(updates)
        return
    cut = max(1, int(trim_fraction * len(updates)))
    for name, stacked in _by_parameter(updates):
        yield name, stacked.sort(dim=0).values[cut : len(updates) - cut].mean(dim=0)


def multi_krum(updates: Sequence[Payload], byzantine: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the mean of the `N - byzantine` updates nearest to the others (Blanchard et al., NeurIPS 2017).

    The paper proves it to withstand `byzantine` bad ones where `2 * byzantine + 2 < N`. Of two updates, both
    are equally near, and the first to arrive would win. So a round of too few gets the coordinate-wise median
    instead, and the log has it.
    """
    needed = 2 * byzantine + 3
    if len(updates) < needed:
        _log.warning(
            "%d updates, and krum against %d bad ones needs %d: this round takes the median; raise "
            "federation.min_updates or choose aggregation.method = 'median'",
            len(updates),
            byzantine,
            needed,
        )
        yield from median(updates)
        return
    chosen = krum_choice(updates, byzantine)
    for name, stacked in _by_parameter([updates[i] for i in chosen]):
        yield name, stacked.mean(dim=0)


def krum_choice(updates: Sequence[Payload], byzantine: int) -> list[int]:
    """Return the indices of the `N - byzantine` updates with the lowest Krum score, in order of the score.

    The score of an update is the sum of its squared distances to its `N - byzantine - 2` nearest neighbours.

    Args:
        updates: more than `2 * byzantine + 2`.
    """
    count = len(updates)
    squared = torch.zeros(count, count, dtype=torch.float64)
    for _, stacked in _by_parameter(updates):
        flat = stacked.reshape(count, -1).double()
        squared += torch.cdist(flat, flat).square()
    squared.fill_diagonal_(float("inf"))
    scores = squared.sort(dim=1).values[:, : count - byzantine - 2].sum(dim=1)
    return [int(i) for i in scores.argsort(stable=True)[: count - byzantine]]


def _by_parameter(updates: Sequence[Payload]) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of all updates, stacked: (N, *shape), fp32."""
    for decoded in zip(*(update.tensors() for update in updates), strict=True):
        yield decoded[0][0], torch.stack([tensor for _, tensor in decoded])
