"""An update is guilty until verified: what a reply must be before it may touch the global weights.

`verify_reply` looks at one reply alone: records, counts, finite numbers, then names, sizes, hash, run, round
and base of the payload (`federation/wire.py`). `NormJudge` compares updates with each other: a norm beyond
`max_norm_ratio` times the median is refused. That median is not known while a round is under way, so an
update within the limit by the norms of recent rounds is used at once, and any other is held, encoded, until
the round closes and its own median can be taken. Then a jump that all nodes share, as at a warm restart of
the learning rate, passes, and one node alone does not. Only what is suspicious costs memory, and the first
round, which has nothing to be compared with yet. With `local_epochs` a site takes as many steps as its data
asks for, and the norms are those of a step: a site with more data is not suspicious for it.
"""

import statistics
from collections.abc import Mapping, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from federation.errors import WireError
from federation.messages import HEADER, METRICS, UPDATE
from federation.wire import Header, Payload, open_payload
from server.exchange import Reply

__all__ = ["NORMS_KEPT", "NormJudge", "verify_reply"]

NORMS_KEPT = 32  # of the updates accepted last
_LARGEST_FIGURE = 1e18  # squares and sums of such fit into a float: what is computed from them stays finite
_LARGEST_NORM = 1e15  # of an update; times all examples of a round it fits into fp32
_COUNTS = ("num_examples", "skipped_frames", "download_bytes")
_FIGURES = (
    "policy_loss",
    "proximal_loss",
    "grad_norm",
    "update_norm",
    "learning_rate",
    "train_seconds",
    "setup_seconds",
    "data_seconds",
    "device_memory_bytes",
    "received_at",
    "answered_at",
)
# The next round takes a power of the loss, which of a negative one is complex.
_NEVER_NEGATIVE = ("policy_loss", "proximal_loss", "grad_norm")


def verify_reply(
    reply: Reply, shapes: Mapping[str, torch.Size], expected: Header, most_examples: int
) -> tuple[Payload, dict[str, int | float]]:
    """The update and the metrics of a reply, or a `WireError` that says why it cannot be used.

    Args:
        most_examples: how many frames a node can have trained on; it must not weigh more by claiming more.
    """
    if reply.content is None:
        raise WireError(reply.error)
    update, header, metrics = (reply.content.get(name) for name in (UPDATE, HEADER, METRICS))
    if not (
        isinstance(update, ArrayRecord)
        and isinstance(header, ConfigRecord)
        and isinstance(metrics, MetricRecord)
    ):
        raise WireError(f"the reply lacks {UPDATE!r}, {HEADER!r} or {METRICS!r}")
    checked: dict[str, int | float] = {}
    for name in _COUNTS:
        count = metrics.get(name)
        if not isinstance(count, int) or count < 0:
            raise WireError(f"{name} = {count!r} must be a whole number, not negative")
        checked[name] = count
    if checked["num_examples"] == 0:
        raise WireError("num_examples = 0: nothing was trained on")
    if checked["num_examples"] > most_examples:
        raise WireError(
            f"num_examples = {checked['num_examples']}: the round's steps are of {most_examples} at most"
        )
    for name in _FIGURES:
        value = metrics.get(name)
        if not isinstance(value, int | float) or not abs(value) <= _LARGEST_FIGURE:
            raise WireError(f"{name} = {value!r} must be a finite number, not beyond {_LARGEST_FIGURE:g}")
        if name in _NEVER_NEGATIVE and value < 0:
            raise WireError(f"{name} = {value!r} must not be negative")
        checked[name] = float(value)
    return open_payload(update, header, shapes, expected), checked


class NormJudge:
    """Judges the norms of one round's updates, each divided by a number of optimizer steps.

    Args:
        recent: such norms of the updates accepted last, in earlier rounds; may be empty.
        max_ratio: to the median; 0 lets every norm pass.
    """

    def __init__(self, recent: Sequence[float], max_ratio: float) -> None:
        self._max_ratio = max_ratio
        self._limit = max_ratio * _lower_median(recent)
        self._seen: list[float] = []

    def passes_at_once(self, norm: float, steps: int = 1) -> bool:
        """Note the norm of one more update, of so many steps; False if it must be held until all are in.

        Raises:
            WireError: the norm is beyond all training.
        """
        if not norm <= _LARGEST_NORM:
            raise WireError(f"its norm is {norm:.4g}; more than {_LARGEST_NORM:g} is no training")
        self._seen.append(norm / steps)
        return not self._max_ratio or norm / steps <= self._limit

    def check(self, norm: float, steps: int = 1) -> None:
        """Raise a `WireError` if a held update does not fit the others of the round, now that all are in."""
        median = _lower_median(self._seen)
        if median and norm / steps > self._max_ratio * median:
            of_steps = f" in {steps} steps, per step" if steps > 1 else ","
            times = norm / steps / median
            raise WireError(
                f"its norm is {norm:.4g}{of_steps} {times:.0f} times the median of the round; "
                f"more than {self._max_ratio:g} times is refused (aggregation.max_norm_ratio)"
            )


def _lower_median(norms: Sequence[float]) -> float:
    """Of two the smaller: a huge one must not drag the median up. 0.0 if there is none."""
    return statistics.median_low(norms) if norms else 0.0
