"""One round of FedProx on the server: send the weights, fold the updates in as they arrive, apply the mean.

The proximal term itself is the nodes' business (`client/fedprox.py`). An update is used only after its
names, shapes, values, norm and example count have been verified (`aggregation/verification.py`); a bad one is
refused by name and never ends the round. With `local_epochs` a site weighs by the frames it trained on, of
which it alone knows the number: it counts up to the bound of `federation/claims.py`, and the round's entry
names the sites that were cut to it. If fewer than `min_updates` good ones come, the weights stay as they are
and the round is marked so (`"aggregated": false`).
"""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from federation.claims import max_weight
from federation.config import RunConfig
from federation.data.statistics import Statistics
from federation.errors import WireError, one_line
from federation.logs import get_logger
from federation.messages import CONFIG, HEADER, STATISTICS, TRAIN, WEIGHTS
from federation.wire.codec import encoded_bytes
from federation.wire.payload import Header, Payload, pack_tensors, statistics_to_record
from server.aggregation.adaptation import average_weights, proximal_mu
from server.aggregation.collector import apply_update, make_aggregator
from server.aggregation.verification import NORMS_KEPT, NormJudge, largest_norm, typical_norm, verify_reply
from server.grid.exchange import Exchange, Reply, WaitPolicy
from server.grid.late_replies import LateReplies
from server.grid.replies import limits_of_update
from server.nodes import Node
from server.run.accountant import count_requests
from server.run.records import RunRecord
from server.run.round_record import Rejection, RoundRecord

__all__ = ["GlobalModel", "run_round"]

_MAX_STEPS_RATIO = 16.0  # steps that count for a norm, over those of the median site
_log = get_logger("server.rounds")


@dataclass
class GlobalModel:
    """What is federated: the trainable weights (fp32, CPU), and what every node must share with them."""

    weights: dict[str, Tensor]
    statistics: Statistics
    fingerprint: str  # of the frozen weights
    optimizer: torch.optim.Optimizer | None = None  # over `weights`; None adds each update as it is
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=NORMS_KEPT))  # one of each round
    average: dict[str, Tensor] | None = None  # of the weights over the rounds, with evaluation.ema_decay

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Parameter name -> shape."""
        return {name: tensor.shape for name, tensor in self.weights.items()}

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """The weights that are evaluated and exported: the average where there is one."""
        return self.average or self.weights


def run_round(
    grid: Grid,
    model: GlobalModel,
    nodes: Sequence[Node],
    round_: int,
    config: RunConfig,
    record: RunRecord,
    previous: RoundRecord | None = None,
    late: LateReplies | None = None,
) -> RoundRecord:
    """Let `nodes` train from `model`, update `model.weights` in place, and return the round's record.

    Args:
        previous: the round before; None: there was none.
        late: told of the nodes that may still be at work when the round ends.
    """
    started = time.monotonic()
    record.event("round_started", round=round_, nodes=[node.name for node in nodes])
    base = ""
    mu = proximal_mu(config, previous)

    def order() -> RecordDict:
        nonlocal base
        content = _order(model, round_, config, record, mu)
        base = str(content.config_records[HEADER]["sha256"])
        return content

    def count(node_ids: Sequence[int]) -> None:
        # Under central noise an update is in the sum once, however often its node was asked.
        if config.privacy.mode == "local" or not base:
            count_requests(config.privacy, record.folder, round_, [names[id_] for id_ in node_ids])

    settings = config.federation
    names = {node.node_id: node.name for node in nodes}
    policy = WaitPolicy(settings.round_deadline_seconds, settings.quorum, settings.straggler_factor)
    payload_bytes = sum(encoded_bytes(shape, config.wire.upload) for shape in model.shapes.values())
    limits = limits_of_update(payload_bytes)
    exchange = Exchange(grid, order, TRAIN, str(round_), policy, limits, count).send(list(names))
    send_seconds = time.monotonic() - started

    expected = Header(config.wire.upload, record.name, round_, base)
    training = config.training
    most_examples = {n.name: training.steps_in_round(n.frames) * training.frames_in_step for n in nodes}
    intake = _Intake(model, expected, config, record, most_examples)
    aggregate_seconds = 0.0
    for reply in exchange.replies():
        arrived = time.monotonic()
        if not intake.take(names[reply.node_id], reply):
            exchange.discount(reply.node_id)
        del reply  # the encoded update, before the next one is fetched
        aggregate_seconds += time.monotonic() - arrived
    if late is not None:
        late.watch(exchange)
    started_step = time.monotonic()
    aggregated = intake.close() >= settings.min_updates
    step_norm = apply_update(intake.aggregator, model.weights, model.optimizer) if aggregated else 0.0
    aggregate_seconds += time.monotonic() - started_step
    clients = intake.clients
    if aggregated:
        if model.average is not None:
            average_weights(model.average, model.weights, config.evaluation.ema_decay, round_)
        norm = typical_norm([norm / scale for norm, scale in map(intake.norms.__getitem__, clients)])
        if norm is not None:
            model.norms.append(norm)
    else:
        _log.warning("%d good updates of %d needed: the weights stay", len(clients), settings.min_updates)

    def total(figure: str) -> int:
        return int(sum(metrics[figure] for metrics in clients.values()))

    return RoundRecord(
        round=round_,
        aggregated=aggregated,
        proximal_mu=mu,
        clients=dict(sorted(clients.items())),
        rejected=intake.rejected,
        missing=intake.missing,
        capped=intake.capped,
        policy_loss=_spread(clients, "policy_loss"),
        proximal_loss=_spread(clients, "proximal_loss"),
        grad_norm=_spread(clients, "grad_norm"),
        update_norm=step_norm,
        num_examples=total("num_examples"),
        skipped_frames=total("skipped_frames"),
        bytes={"down": total("download_bytes"), "up": total("update_bytes")},
        seconds={
            "send": send_seconds,
            "train": time.monotonic() - started - send_seconds - aggregate_seconds,
            "aggregate": aggregate_seconds,
        },
    )


class _Intake:
    """Takes the replies of one round: a good update is folded in and dropped, a bad one refused by name."""

    def __init__(
        self,
        model: GlobalModel,
        expected: Header,
        config: RunConfig,
        record: RunRecord,
        most_examples: Mapping[str, int],
    ) -> None:
        self.aggregator = make_aggregator(config.aggregation, config.privacy, model.shapes)
        self.clients: dict[str, dict[str, int | float]] = {}
        self.norms: dict[str, tuple[float, float]] = {}  # with what it is divided by to be compared
        self.capped: dict[str, float] = {}  # name -> weight, of a site that claimed more
        self.rejected: dict[str, Rejection] = {}
        self.missing: list[str] = []
        self._held: dict[str, tuple[Payload, dict[str, int | float]]] = {}
        # Central noise covers what a site adds to the sum, not whom it gets refused by moving the median; an
        # update is clipped there anyway.
        max_ratio = 0.0 if config.privacy.mode == "central" else config.aggregation.max_norm_ratio
        self._judge = NormJudge(model.norms, max_ratio, asked=len(most_examples))
        self._shapes, self._expected, self._record = model.shapes, expected, record
        self._most_examples = most_examples
        self._max_weight = max_weight(most_examples.values())
        self._config = config

    def take(self, name: str, reply: Reply) -> bool:
        """Take what came of asking node `name`; False if it brought no update that can be used."""
        if reply.missing:
            self.missing.append(name)
            _log.warning("%s is missing: %s", name, reply.error)
            self._record.event("update_missing", round=self._expected.round, node=name, reason=reply.error)
            return False
        try:
            update, metrics = verify_reply(reply, self._shapes, self._expected, self._most_examples[name])
            norm = update.norm()
            scale, largest = self._norm_bounds(int(metrics["num_examples"]))
            passes = self._judge.passes_at_once(norm, scale, largest)
        except WireError as error:
            self._reject(name, error)
            return False
        metrics |= {
            **_transfer_seconds(reply.seconds, metrics.pop("received_at"), metrics.pop("answered_at")),
            "update_bytes": update.size_bytes,
            "reply_seconds": reply.seconds,
        }
        self.norms[name] = norm, scale
        if passes:
            self._accept(name, update, metrics)
        else:
            self._held[name] = update, metrics
        return True

    def close(self) -> int:
        """Judge what was held, now that all are in; return the number of good updates."""
        for name, (update, metrics) in sorted(self._held.items(), key=lambda item: item[0]):
            try:
                self._judge.check(*self.norms[name])
            except WireError as error:
                self._reject(name, error)
            else:
                self._accept(name, update, metrics)
        self._held.clear()
        return len(self.clients)

    def _norm_bounds(self, num_examples: int) -> tuple[float, float]:
        """What the norm of an update of so many frames is divided by, and the most that it can be.

        A site with more data takes more steps, and the root of them is what counts: a claim gives four times
        the room of the median site at most.
        """
        training, num_weights = self._config.training, sum(shape.numel() for shape in self._shapes.values())
        steps, scale = float(training.local_steps), 1.0
        if training.local_epochs:
            most = _MAX_STEPS_RATIO * self._max_weight / training.frames_in_step
            steps = min(training.steps_taken(num_examples), most)
            scale = math.sqrt(steps / training.local_steps)
        return scale, largest_norm(self._config, self._expected.round, num_weights, steps)

    def _accept(self, name: str, update: Payload, metrics: dict[str, int | float]) -> None:
        self.aggregator.add(update, self._weight(name, metrics["num_examples"]))
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
        self._record.event("update_refused", round=self._expected.round, node=name, code=code, reason=reason)


def _order(model: GlobalModel, round_: int, config: RunConfig, record: RunRecord, mu: float) -> RecordDict:
    """What a node is sent; always the same bytes as long as the weights are the same."""
    weights, header, _ = pack_tensors(
        model.weights.items(), Header(config.wire.download, record.name, round_, base="")
    )
    facts = ConfigRecord(
        {
            "run": record.name,
            "round": round_,
            "fingerprint": model.fingerprint,
            "proximal_mu": mu,
            "undone": record.reverted_rounds,
        }
    )
    return RecordDict(
        {
            WEIGHTS: weights,
            HEADER: header,
            STATISTICS: statistics_to_record(model.statistics),
            CONFIG: facts,
        }
    )


def _spread(clients: Mapping[str, Mapping[str, float]], figure: str) -> dict[str, float] | None:
    """Mean and population standard deviation over the nodes; None if there is none."""
    values = [metrics[figure] for metrics in clients.values()]
    if not values:
        return None
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def _transfer_seconds(reply_seconds: float, received_at: float, answered_at: float) -> dict[str, float]:
    """How a reply that has just come split its time on the way down and up, Flower's polling included.

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
