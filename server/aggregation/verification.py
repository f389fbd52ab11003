"""Validation of client updates: what a reply must be before it may touch the global weights.

`verify_reply` checks one reply alone: records, counts, finite numbers, then names, sizes, hash, run, round
and base of the payload (`federation/wire/payload.py`). `NormJudge` judges the norms of a round by two rules.

**What training can do.** A step of AdamW moves no weight by much more than the learning rate (Kingma and Ba,
ICLR 2015, section 2.1), so the settings of the run bound the norm of any update that was trained. A norm
beyond twice that bound is rejected at once, in the first round as in any other and with one site as with
many: the rule asks no other site and no history. An honest update stays far below it; of a hostile one it
leaves some tens of honest ones in length.

**What the others do.** A norm beyond `max_norm_ratio` times the lower median of the round is rejected if the
round has three updates or more. With one or two, nobody can tell which one is wrong: then nobody is judged
by the other, and the first rule alone holds. The median of a round is not known while it is under way, so an
update within the limit by earlier rounds is used at once, and any other is held, encoded, until the round
closes. Then a jump that all sites share, as at a warm restart of the learning rate, passes, and one site
alone does not. Earlier rounds count by one figure each, the lower median of a round with three accepted
updates or more: no single site can move it, down or up.

With `local_epochs` a site takes as many steps as its data asks for. The norm of an update grows no faster
than the root of its steps (`tests/benchmarks/update_norms.json`: 4.5 times from 10 to 1000 steps, where the
root makes 10), so norms are compared after division by that root. The number of steps is the site's own
claim: it counts up to a bound that the server knows before the round (`server/update_collector.py`). With
`partial_work` the server itself says how many they are, and the mean divides by the same root.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from federation.config import RunConfig
from federation.data.statistics import MAX_EPISODES, MAX_FRAMES
from federation.errors import RejectionCode, WireError
from federation.messages import HEADER, METRICS, UPDATE
from federation.schedule import highest_rate
from federation.wire.payload import Header, Payload, open_payload
from server.grid.exchange import Reply

__all__ = ["NormJudge", "claimed_frames", "largest_norm", "typical_norm", "verify_reply"]

MIN_TO_COMPARE = 3  # updates; of two nobody can tell which one is wrong
_LARGEST_FIGURE = 1e18  # squares and sums of such fit into a float: what is computed from them stays finite
_LARGEST_NORM = 1e15  # of an update; times all examples of a round it fits into fp32
_MAX_COUNT = 10**15
_MAX_SECONDS = 1e7  # a third of a year in one round
_MAX_STEP_SLACK = 2.0  # AdamW exceeds its learning rate by a sixth at most; int4's error feedback adds some
_COUNTS = ("num_examples", "skipped_frames", "download_bytes")
# What a node holds now, if that changed since it joined. Name -> the most it may be; never 0.
_HOLDINGS = {"episodes": MAX_EPISODES, "frames": MAX_FRAMES}
# Name -> the most it may be. None of them can be negative.
_FIGURES = {
    "policy_loss": _LARGEST_FIGURE,
    "proximal_loss": _LARGEST_FIGURE,
    "grad_norm": _LARGEST_FIGURE,
    "update_norm": _LARGEST_FIGURE,
    "learning_rate": _LARGEST_FIGURE,
    "train_seconds": _MAX_SECONDS,
    "setup_seconds": _MAX_SECONDS,
    "data_seconds": _MAX_SECONDS,
    "device_memory_bytes": _MAX_COUNT,
    "received_at": _LARGEST_FIGURE,
    "answered_at": _LARGEST_FIGURE,
}
# The same of what only a node with a GPU sends.
_GPU_FIGURES = {"gpu_utilisation": 1.0, "gpu_memory_bytes": _MAX_COUNT, "gpu_celsius": 1000.0}


def verify_reply(
    reply: Reply, shapes: Mapping[str, torch.Size], expected: Header, max_examples: int
) -> tuple[Payload, dict[str, int | float]]:
    """Return the update and the metrics of a reply, or raise a `WireError` with why it cannot be used.

    Args:
        max_examples: how many frames a node can have trained on; it must not weigh more by claiming more.
    """
    if reply.content is None:
        raise WireError(reply.error, reply.code)
    update, header, metrics = (reply.content.get(name) for name in (UPDATE, HEADER, METRICS))
    if not (
        isinstance(update, ArrayRecord)
        and isinstance(header, ConfigRecord)
        and isinstance(metrics, MetricRecord)
    ):
        raise WireError(f"the reply lacks {UPDATE!r}, {HEADER!r} or {METRICS!r}")
    return open_payload(update, header, shapes, expected), _verify_metrics(metrics, max_examples)


def claimed_frames(reply: Reply) -> int:
    """Return how many frames the node of a reply says that it holds now; 0 if it does not say."""
    metrics = reply.content.get(METRICS) if reply.content is not None else None
    frames = metrics.get("frames") if isinstance(metrics, MetricRecord) else None
    return frames if isinstance(frames, int) and 0 < frames <= MAX_FRAMES else 0


def _verify_metrics(metrics: MetricRecord, max_examples: int) -> dict[str, int | float]:
    checked: dict[str, int | float] = {}
    for name in _COUNTS:
        count = metrics.get(name)
        if not isinstance(count, int) or not 0 <= count <= _MAX_COUNT:
            raise WireError(f"{name} = {count!r} must be a whole number from 0 to {_MAX_COUNT}, not negative")
        checked[name] = count
    if checked["num_examples"] == 0:
        raise WireError("num_examples = 0: nothing was trained on")
    if checked["num_examples"] > max_examples:
        raise WireError(
            f"num_examples = {checked['num_examples']}: the round's steps are of {max_examples} at most"
        )
    for name, most in _HOLDINGS.items():
        held = metrics.get(name, 1)
        if not isinstance(held, int) or not 1 <= held <= most:
            raise WireError(f"{name} = {held!r} must be a whole number from 1 to {most}")
        if name in metrics:
            checked[name] = held
    sent = {name: largest for name, largest in _GPU_FIGURES.items() if name in metrics}
    for name, largest in (_FIGURES | sent).items():
        value = metrics.get(name)
        if not isinstance(value, int | float) or not abs(value) <= largest:
            text = f"{name} = {value!r} must be a finite number, not beyond {largest:g}"
            raise WireError(text, RejectionCode.NON_FINITE)
        if value < 0:
            raise WireError(f"{name} = {value!r} must not be negative")
        checked[name] = float(value)
    return checked


def largest_norm(config: RunConfig, round_: int, num_weights: int, steps: float) -> float:
    """Return the norm that an update of `steps` optimizer steps in `round_` cannot exceed by training."""
    if config.privacy.mode == "local":  # clipped, then noise on every weight
        noise = config.privacy.noise_multiplier * math.sqrt(num_weights)
        return _MAX_STEP_SLACK * config.privacy.clip_norm * (1 + noise)
    rate = highest_rate(round_, config.training, config.run.num_rounds)
    return _MAX_STEP_SLACK * rate * steps * math.sqrt(num_weights)


class NormJudge:
    """Judges the norms of one round's updates by the two rules above.

    Args:
        recent: a norm of each earlier round that allowed a comparison, as `typical_norm` returns it.
        max_ratio: to the median; 0 lets every norm pass.
        asked: how many sites; of too few none is compared, so none is held.
    """

    def __init__(self, recent: Sequence[float], max_ratio: float, asked: int) -> None:
        self._max_ratio, self._compares = max_ratio, asked >= MIN_TO_COMPARE
        self._limit = max_ratio * _lower_median(recent)
        self._seen: list[float] = []

    def is_within_recent_norms(self, norm: float, scale: float, largest: float) -> bool:
        """Note the norm of one more update; False if it must be held until all are in.

        Args:
            scale: what the norm is divided by before it is compared.
            largest: what training can make of it, see `largest_norm`.

        Raises:
            WireError: the norm is beyond all training.
        """
        if not norm <= _LARGEST_NORM:
            text = f"its norm is {norm:.4g}; more than {_LARGEST_NORM:g} is no training"
            raise WireError(text, RejectionCode.NORM)
        if not self._max_ratio:
            return True
        if norm > largest:
            raise WireError(
                f"its norm is {norm:.4g}; steps of this learning rate make {largest:.4g} at most "
                "(aggregation.max_norm_ratio = 0 lets it pass)",
                RejectionCode.NORM,
            )
        self._seen.append(norm / scale)
        return not self._compares or norm / scale <= self._limit

    def check(self, norm: float, scale: float) -> None:
        """Raise a `WireError` if a held update does not fit the others of the round, now that all are in."""
        median = _lower_median(self._seen)
        if len(self._seen) < MIN_TO_COMPARE or not median:
            return
        times = norm / scale / median
        if times > self._max_ratio:
            by_steps = " for its steps" if scale != 1 else ""
            raise WireError(
                f"its norm is {norm:.4g},{by_steps} {times:.0f} times the median of the round; "
                f"more than {self._max_ratio:g} times is rejected (aggregation.max_norm_ratio)",
                RejectionCode.NORM,
            )


def typical_norm(accepted: Sequence[float]) -> float | None:
    """Return the one figure a round is remembered by; None if it had too few accepted updates."""
    return _lower_median(accepted) if len(accepted) >= MIN_TO_COMPARE else None


def _lower_median(norms: Sequence[float]) -> float:
    """Of four the second: a huge one must not drag the median up. 0.0 if there is none."""
    return statistics.median_low(norms) if norms else 0.0
