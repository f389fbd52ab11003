"""One round of FedProx on the server: send the weights, add the updates as they arrive, apply the mean.

The proximal term itself is the nodes' business (`client/fedprox.py`). An update is used only after its
names, shapes, values, norm and example count have been verified (`update_collector.py`); a bad one is
rejected by name and never ends the round. If fewer than `min_updates` good ones come, the weights stay as
they are and the round is marked so (`"aggregated": false`).
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from federation.config import RunConfig
from federation.logs import get_logger
from federation.messages import CONFIG, HEADER, LAST_UPDATE, STATISTICS, TRAIN, WEIGHTS
from federation.wire.codec import encoded_bytes
from federation.wire.payload import Header, pack_tensors, statistics_to_record
from server.aggregation.adaptation import average_weights, proximal_mu
from server.aggregation.collector import apply_update
from server.grid.exchange import Exchange, WaitPolicy
from server.grid.late_replies import LateReplies
from server.grid.replies import limits_of_update
from server.join_answer import Node
from server.model import GlobalModel
from server.pace import Pace, pace_of_round
from server.run.accountant import count_requests
from server.run.records import RunRecord
from server.run.round_record import RoundRecord
from server.update_collector import UpdateCollector

__all__ = ["run_round"]

_log = get_logger("server.rounds")


def run_round(
    grid: Grid,
    model: GlobalModel,
    nodes: Sequence[Node],
    round_: int,
    config: RunConfig,
    record: RunRecord,
    late: LateReplies | None = None,
) -> RoundRecord:
    """Let `nodes` train from `model`, update `model.weights` in place, and return the round's record.

    Args:
        late: gets the nodes that may still be at work when the round ends.
    """
    started = time.monotonic()
    record.event("round_started", round=round_, nodes=[node.name for node in nodes])
    mu = proximal_mu(config, record.entry_behind)
    names = {node.node_id: node.name for node in nodes}
    pace = pace_of_round(list(names.values()), record.rounds, config)
    exchange, base = _send(grid, model, names, round_, config, record, mu, pace)
    send_seconds = time.monotonic() - started

    expected = Header(config.wire.upload, record.name, round_, base)
    training, asked = config.training, pace.steps or {}
    steps = {node.name: asked.get(node.name) or training.steps_in_round(node.frames) for node in nodes}
    max_examples = {name: count * training.frames_in_step for name, count in steps.items()}
    collector = UpdateCollector(model, expected, config, record, max_examples, asked)
    aggregate_seconds = _collect(exchange, collector, names)
    record.event("replies_collected", round=round_)
    if late is not None:
        late.watch(exchange)
    started_step = time.monotonic()
    step_norm = _apply(collector, model, round_, config)
    aggregate_seconds += time.monotonic() - started_step
    train_seconds = time.monotonic() - started - send_seconds - aggregate_seconds
    seconds = {"send": send_seconds, "train": train_seconds, "aggregate": aggregate_seconds}
    return _round_record(round_, collector, mu, step_norm, seconds)


def _send(
    grid: Grid,
    model: GlobalModel,
    names: Mapping[int, str],
    round_: int,
    config: RunConfig,
    record: RunRecord,
    mu: float,
    pace: Pace,
) -> tuple[Exchange, str]:
    """Send the weights to the nodes `names`; return the exchange and the SHA-256 of what was sent."""
    base = ""

    def make_content() -> RecordDict:
        nonlocal base
        content = train_request(model, round_, config, record, mu)
        base = str(content.config_records[HEADER]["sha256"])
        return content

    def count(node_ids: Sequence[int]) -> None:
        # Under central noise an update is in the sum once, however often its node was asked.
        if config.privacy.mode == "local" or not base:
            count_requests(config.privacy, record.folder, round_, [names[id_] for id_ in node_ids])

    settings = config.federation
    policy = WaitPolicy(
        settings.round_deadline_seconds,
        settings.quorum,
        settings.straggler_factor,
        frozenset(node_id for node_id, name in names.items() if name in pace.waited_for),
        frozenset(node_id for node_id, name in names.items() if name in pace.doubted),
    )
    payload_bytes = sum(encoded_bytes(shape, config.wire.upload) for shape in model.shapes.values())
    limits = limits_of_update(payload_bytes)

    def address(content: RecordDict, node_id: int) -> RecordDict:
        name = names[node_id]
        facts = {**content.config_records[CONFIG], "undone": record.undone_rounds(name)}
        if pace.steps is not None:
            facts["steps"] = pace.steps[name]
        text = ConfigRecord({"text": record.last_update_of(name)})
        return RecordDict({**content, LAST_UPDATE: text, CONFIG: ConfigRecord(facts)})

    exchange = Exchange(grid, make_content, TRAIN, str(round_), policy, limits, count, address)
    return exchange.send(list(names)), base


def train_request(
    model: GlobalModel, round_: int, config: RunConfig, record: RunRecord, mu: float
) -> RecordDict:
    """Return what a node is sent; always the same bytes as long as the weights are the same."""
    header = Header(config.wire.download, record.name, round_, base="")
    weights, packed_header, _ = pack_tensors(model.weights.items(), header)
    facts = ConfigRecord(
        {
            "run": record.name,
            "round": round_,
            "fingerprint": model.fingerprint,
            "proximal_mu": mu,
        }
    )
    return RecordDict(
        {
            WEIGHTS: weights,
            HEADER: packed_header,
            STATISTICS: statistics_to_record(model.statistics),
            CONFIG: facts,
        }
    )


def _collect(exchange: Exchange, collector: UpdateCollector, names: Mapping[int, str]) -> float:
    """Add the replies to `collector` as they arrive; return the seconds that the server worked on them."""
    seconds = 0.0
    for reply in exchange.replies():
        arrived = time.monotonic()
        name = names[reply.node_id]
        if not collector.add(name, reply):
            exchange.discount(reply.node_id)
        elif name in collector.kept:
            exchange.ignore_time(reply.node_id)
        del reply  # the encoded update, before the next one is fetched
        seconds += time.monotonic() - arrived
    return seconds


def _apply(collector: UpdateCollector, model: GlobalModel, round_: int, config: RunConfig) -> float | None:
    """Take the round's step on `model` in place; return its L2 norm, None if there were too few updates."""
    count, needed = collector.finalize(), config.federation.min_updates
    if count < needed:
        _log.warning("%d good updates of %d needed: the weights stay", count, needed)
        return None
    step_norm = apply_update(collector.aggregator, model.weights, model.optimizer)
    if model.average is not None:
        average_weights(model.average, model.weights, config.evaluation.ema_decay, round_)
    if (norm := collector.typical_norm) is not None:
        model.norms.append(norm)
    return step_norm


def _round_record(
    round_: int, collector: UpdateCollector, mu: float, step_norm: float | None, seconds: dict[str, float]
) -> RoundRecord:
    clients = collector.clients

    def total(figure: str) -> int:
        return int(sum(metrics[figure] for metrics in clients.values()))

    return RoundRecord(
        round=round_,
        aggregated=step_norm is not None,
        proximal_mu=mu,
        clients=dict(sorted(clients.items())),
        rejected=collector.rejected,
        missing=collector.missing,
        capped=collector.capped,
        policy_loss=_spread(clients, "policy_loss"),
        proximal_loss=_spread(clients, "proximal_loss"),
        grad_norm=_spread(clients, "grad_norm"),
        update_norm=step_norm or 0.0,
        num_examples=total("num_examples"),
        skipped_frames=total("skipped_frames"),
        bytes={"down": total("download_bytes"), "up": total("update_bytes")},
        seconds=seconds,
    )


def _spread(clients: Mapping[str, Mapping[str, float]], figure: str) -> dict[str, float] | None:
    """Return mean and population standard deviation over the nodes; None if there is none."""
    values = [metrics[figure] for metrics in clients.values()]
    if not values:
        return None
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}
