"""Takes in the replies of one round: verifies each, may hold it for its norm, adds it to the sum.

With `local_epochs` a site weighs by the frames it trained on, of which it alone knows the number: it counts
up to the bound of `federation/claims.py`, and `capped` names the sites that were cut to it. Its update, which
grows with the steps, is divided by the root of these over those of the median site: who claims more moves the
weights no further.
"""

import math
import time
from collections.abc import Mapping

from federation.claims import max_weight
from federation.config import RunConfig
from federation.errors import WireError, one_line
from federation.logs import get_logger
from federation.wire.payload import Header, Payload
from server.aggregation.collector import make_aggregator
from server.aggregation.verification import (
    NormJudge,
    claimed_frames,
    largest_norm,
    typical_norm,
    verify_reply,
)
from server.grid.exchange import Reply
from server.model import GlobalModel
from server.pace import was_kept
from server.run.environment import folder_of
from server.run.records import RunRecord
from server.run.round_record import Rejection

__all__ = ["UpdateCollector"]

_MAX_HELD_BYTES = 500 * 10**6  # of updates in memory that wait for the others' norms; five at full size
_MAX_STEPS_RATIO = 16.0  # steps that count for a norm, over those of the median site
_log = get_logger("server.update_collector")


class UpdateCollector:
    """Takes the replies of one round: a good update is folded in and dropped, a bad one rejected by name."""

    def __init__(
        self,
        model: GlobalModel,
        expected: Header,
        config: RunConfig,
        record: RunRecord,
        max_examples: Mapping[str, int],
        asked_steps: Mapping[str, int],
    ) -> None:
        """`asked_steps`: of each node, where they are not the same for all; else empty."""
        self.aggregator = make_aggregator(config.aggregation, config.privacy, model.shapes)
        self.clients: dict[str, dict[str, int | float]] = {}
        self._norms: dict[str, tuple[float, float]] = {}  # with what it is divided by to be compared
        self.capped: dict[str, float] = {}  # name -> weight, of a site that claimed more
        self.rejected: dict[str, Rejection] = {}
        self.missing: list[str] = []
        self.kept: set[str] = set()  # names of those who had trained this round when they were asked before
        self._held: dict[str, tuple[Payload, dict[str, int | float]]] = {}
        self._held_bytes = 0
        # Central noise covers what a site adds to the sum, not whom it gets rejected by moving the median; an
        # update is clipped there anyway.
        max_ratio = 0.0 if config.privacy.mode == "central" else config.aggregation.max_norm_ratio
        self._judge = NormJudge(model.norms, max_ratio, asked=len(max_examples))
        self._shapes, self._expected, self._record = model.shapes, expected, record
        self._max_examples, self._asked_steps = max_examples, asked_steps
        self._max_weight = max_weight(max_examples.values())
        training = config.training
        self._usual_steps = float(training.local_steps)
        if training.local_epochs:
            self._usual_steps = self._max_weight / training.frames_in_step
        self._config = config

    def add(self, name: str, reply: Reply) -> bool:
        """Add what came of asking node `name`; return False if it brought no update that can be used."""
        if reply.missing:
            self.missing.append(name)
            _log.warning("no reply from %s: %s", name, reply.error)
            self._record.event("reply_timed_out", round=self._expected.round, node=name, reason=reply.error)
            return False
        try:
            update, metrics = verify_reply(reply, self._shapes, self._expected, self._max_frames(name, reply))
            norm = update.norm()
            scale, largest = self._norm_bounds(name, int(metrics["num_examples"]))
            is_usable = self._judge.is_within_recent_norms(norm, scale, largest)
        except WireError as error:
            self._reject(name, error)
            return False
        metrics |= {
            **_transfer_seconds(reply.seconds, metrics.pop("received_at"), metrics.pop("answered_at")),
            "update_bytes": update.size_bytes,
            "reply_seconds": reply.seconds,
        }
        self._norms[name] = norm, scale
        if was_kept(metrics):
            self.kept.add(name)
        if is_usable:
            self._accept(name, update, metrics)
        else:
            self._held[name] = self._hold(update), metrics
        return True

    def finalize(self) -> int:
        """Check what was held, now that all are in; return the number of good updates."""
        for name, (update, metrics) in sorted(self._held.items(), key=lambda item: item[0]):
            try:
                self._judge.check(*self._norms[name])
            except WireError as error:
                self._reject(name, error)
            else:
                self._accept(name, update, metrics)
        self._held.clear()
        return len(self.clients)

    @property
    def typical_norm(self) -> float | None:
        """Return the norm that the round is remembered by; None if it had too few good updates."""
        return typical_norm([norm / scale for norm, scale in map(self._norms.__getitem__, self.clients)])

    def _hold(self, update: Payload) -> Payload:
        """Return `update`, on disk where those that are held would take up too much memory."""
        self._held_bytes += update.size_bytes
        if self._held_bytes <= _MAX_HELD_BYTES:
            return update
        try:
            return update.on_disk(folder_of("FEDERATION_SCRATCH"))
        except OSError as error:
            _log.warning("an update is held in memory, scratch cannot be written: %s", one_line(error))
            return update

    def _norm_bounds(self, name: str, num_examples: int) -> tuple[float, float]:
        """Return what the norm of an update of so many frames is divided by, and the most that it can be.

        A site with more data takes more steps, and the root of them is what counts: a claim gives four times
        the room of the median site at most. One that was asked for fewer steps has as much less room.

        Raises:
            WireError: it took other steps than it was asked for.
        """
        num_weights = sum(shape.numel() for shape in self._shapes.values())
        if name in self._asked_steps and num_examples != self._max_examples[name]:
            asked = f"{self._asked_steps[name]} steps, which are of {self._max_examples[name]}"
            raise WireError(f"num_examples = {num_examples}: the site was asked for {asked}")
        share = self._share_of_steps(name, num_examples)
        largest = largest_norm(self._config, self._expected.round, num_weights, share * self._usual_steps)
        return math.sqrt(share), largest

    def _share_of_steps(self, name: str, num_examples: int) -> float:
        """Return the steps that count for a site over the usual: those that all take, or the median site."""
        if name in self._asked_steps:
            return self._asked_steps[name] / self._usual_steps
        if not self._config.training.local_epochs:
            return 1.0
        steps = self._config.training.steps_taken(num_examples)
        return min(steps / self._usual_steps, _MAX_STEPS_RATIO)

    def _max_frames(self, name: str, reply: Reply) -> int:
        """Return how many frames node `name` can have trained on: it may hold more than when it joined."""
        if name in self._asked_steps:
            return self._max_examples[name]
        training = self._config.training
        claimed = training.steps_in_round(claimed_frames(reply)) * training.frames_in_step
        return max(self._max_examples[name], claimed)

    def _accept(self, name: str, update: Payload, metrics: dict[str, int | float]) -> None:
        share = self._share_of_steps(name, int(metrics["num_examples"]))
        # Where the server asks for the steps all weigh the same.
        weight = 1.0 if name in self._asked_steps else self._weight(name, metrics["num_examples"])
        self.aggregator.add(update, weight, share)
        self.clients[name] = metrics
        self._record.event(
            "update_received", round=self._expected.round, node=name, policy_loss=metrics["policy_loss"]
        )

    def _weight(self, name: str, num_examples: float) -> float:
        counted = min(num_examples, self._max_weight)
        if counted < num_examples and self.aggregator.weighs:
            self.capped[name] = counted
            _log.debug("%s counts as %.10g frames, not %.10g", name, counted, num_examples)
        return counted

    def _reject(self, name: str, error: WireError) -> None:
        code, reason = self.rejected[name] = Rejection(error.code.label, one_line(str(error)))
        _log.warning("update of %s rejected: %s", name, reason)
        self._record.event("update_rejected", round=self._expected.round, node=name, code=code, reason=reason)


def _transfer_seconds(reply_seconds: float, received_at: float, answered_at: float) -> dict[str, float]:
    """Return how long a reply that has just come was on the way down and up, Flower's polling included.

    Args:
        reply_seconds: from sending to now.
        received_at, answered_at: Unix time by the node's clock.

    Their sum does not depend on what the node's clock shows, only on how long it ran; how it is split does.
    Neither is below zero or above `reply_seconds`, whatever the node claims.
    """
    at_work = min(max(0.0, answered_at - received_at), reply_seconds)
    on_the_way = reply_seconds - at_work
    download = min(max(0.0, received_at - (time.time() - reply_seconds)), on_the_way)
    return {"download_seconds": download, "upload_seconds": on_the_way - download}
