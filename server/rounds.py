"""One round of FedProx on the server: send the weights, fold the updates in as they arrive, apply the mean.

The proximal term itself is the nodes' business (`client/fedprox.py`). An update is used only after its
names, shapes, values and example count have been verified; a bad one is refused by name and never ends the
round. If no good update comes, the weights stay as they are.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from federation.config import RunConfig
from federation.errors import WireError
from federation.logs import get_logger
from federation.messages import CONFIG, HEADER, METRICS, STATISTICS, TRAIN, UPDATE, WEIGHTS
from federation.statistics import Statistics
from federation.wire import Header, Payload, open_payload, pack_tensors, statistics_to_record
from server.aggregation import apply_update, make_aggregator
from server.exchange import Reply, receive, send
from server.nodes import Node
from server.records import RunRecord

__all__ = ["GlobalModel", "run_round"]

_CLIENT_METRICS = (
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
_SPREAD_METRICS = ("policy_loss", "proximal_loss", "grad_norm")
_log = get_logger("server.rounds")


@dataclass
class GlobalModel:
    """What is federated: the trainable weights (fp32, CPU), and what every node must share with them."""

    weights: dict[str, Tensor]
    statistics: Statistics
    fingerprint: str  # of the frozen weights
    optimizer: torch.optim.Optimizer | None = None  # over `weights`; None adds each update as it is

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Parameter name -> shape."""
        return {name: tensor.shape for name, tensor in self.weights.items()}


def run_round(
    grid: Grid,
    model: GlobalModel,
    nodes: Sequence[Node],
    round_: int,
    config: RunConfig,
    record: RunRecord,
) -> dict[str, Any]:
    """Let `nodes` train from `model`, update `model.weights` in place, and return the round's entry.

    The entry holds, by node name, the metrics of every good update, the reasons of the refused ones and the
    missing nodes; means and standard deviations over the nodes; sums; and the seconds spent.
    """
    started = time.monotonic()
    wire = config.wire
    record.event("round_started", round=round_, nodes=[node.name for node in nodes])
    weights, header, sealed = pack_tensors(
        model.weights.items(), Header(wire.download, record.name, round_, base="")
    )
    facts = ConfigRecord({"run": record.name, "round": round_, "fingerprint": model.fingerprint})
    order = RecordDict(
        {
            WEIGHTS: weights,
            HEADER: header,
            STATISTICS: statistics_to_record(model.statistics),
            CONFIG: facts,
        }
    )
    expected = Header(wire.upload, record.name, round_, base=sealed.sha256)
    contents = {node.node_id: order for node in nodes}
    pending = send(grid, contents, TRAIN, str(round_), config.federation.round_deadline_seconds)
    del weights, order, contents
    send_seconds = time.monotonic() - started

    names = {node.node_id: node.name for node in nodes}
    aggregator = make_aggregator(config.aggregation, model.shapes)
    clients: dict[str, dict[str, float]] = {}
    refused: dict[str, str] = {}
    missing: list[str] = []
    aggregate_seconds = 0.0
    for reply in receive(grid, pending):
        name = names[reply.node_id]
        arrived = time.monotonic()
        if reply.missing:
            missing.append(name)
            _log.warning("%s is missing: %s", name, reply.error)
            record.event("update_missing", round=round_, node=name)
            continue
        try:
            update, metrics = _verify(reply, model.shapes, expected)
        except WireError as error:
            refused[name] = str(error)
            _log.warning("update of %s refused: %s", name, error)
            record.event("update_refused", round=round_, node=name, reason=str(error))
            continue
        aggregator.add(update, int(metrics["num_examples"]))
        transfer = _transfer_seconds(reply.seconds, metrics.pop("received_at"), metrics.pop("answered_at"))
        clients[name] = {
            **metrics,
            **transfer,
            "update_bytes": update.size_bytes,
            "reply_seconds": reply.seconds,
        }
        del reply, update  # the encoded update, before the next one is fetched
        record.event("update_received", round=round_, node=name, policy_loss=metrics["policy_loss"])
        aggregate_seconds += time.monotonic() - arrived
    started_step = time.monotonic()
    update_norm = apply_update(aggregator, model.weights, model.optimizer)
    aggregate_seconds += time.monotonic() - started_step
    return {
        "round": round_,
        "aggregated": bool(clients),
        "clients": dict(sorted(clients.items())),
        "refused": refused,
        "missing": missing,
        **{name: _spread([metrics[name] for metrics in clients.values()]) for name in _SPREAD_METRICS},
        "update_norm": update_norm,
        "num_examples": int(sum(metrics["num_examples"] for metrics in clients.values())),
        "skipped_frames": int(sum(metrics["skipped_frames"] for metrics in clients.values())),
        "bytes": {
            "down": int(sum(metrics["download_bytes"] for metrics in clients.values())),
            "up": int(sum(metrics["update_bytes"] for metrics in clients.values())),
        },
        "seconds": {
            "send": send_seconds,
            "train": time.monotonic() - started - send_seconds - aggregate_seconds,
            "aggregate": aggregate_seconds,
        },
    }


def _verify(
    reply: Reply, shapes: Mapping[str, torch.Size], expected: Header
) -> tuple[Payload, dict[str, int | float]]:
    """The update and the metrics of a reply, or a `WireError` that says why it cannot be used."""
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
    for name in ("num_examples", "skipped_frames", "download_bytes"):
        count = metrics.get(name)
        if not isinstance(count, int) or count < 0:
            raise WireError(f"{name} = {count!r} must be a whole number, not negative")
        checked[name] = count
    if checked["num_examples"] == 0:
        raise WireError("num_examples = 0: nothing was trained on")
    for name in _CLIENT_METRICS:
        value = metrics.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise WireError(f"{name} = {value!r} must be a finite number")
        checked[name] = float(value)
    return open_payload(update, header, shapes, expected), checked


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and population standard deviation over the nodes; None if there is none."""
    if not values:
        return None
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def _transfer_seconds(reply_seconds: float, received_at: float, answered_at: float) -> dict[str, float]:
    """How a reply that has just come split its time on the way down and up, Flower's polling included.

    Args:
        reply_seconds: from sending to now.
        received_at, answered_at: Unix time by the node's clock.

    Their sum does not depend on the node's clock; how it is split does, so neither is let below zero.
    """
    on_the_way = max(0.0, reply_seconds - (answered_at - received_at))
    download = min(max(0.0, received_at - (time.time() - reply_seconds)), on_the_way)
    return {"download_seconds": download, "upload_seconds": on_the_way - download}
