"""The two apps that are compared: Flower's stock FedAvg, and the project's wire format and aggregation.

Both send the same trainable tensors of the full-size policy down and up again once, and train nothing: a
node answers with what it received plus a little noise. What is ours calls the functions that a real run
calls. `__main__.py` puts this module, the project's packages and `shapes.json` into a Flower app and runs it.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

__all__ = ["client_app", "server_app"]

_ROUND = 1
_RUN = "round-trip"
server_app, client_app = ServerApp(), ClientApp()


def _tensors() -> dict[str, Any]:
    """The weights of round 0: as many, as large and as incompressible as the trained ones."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).mul_(0.02) for name, shape in _shapes().items()}


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """One round trip, timed from the first message to the new global weights."""
    weights = _tensors()
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    work = _ours if context.run_config["ours"] else _stock
    seconds = work(grid, weights)
    result = Path(os.environ["ROUND_TRIP_RESULT"])
    result.with_suffix(".part").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    result.with_suffix(".part").replace(result)


def _stock(grid: Grid, weights: dict[str, Any]) -> float:
    from flwr.serverapp.strategy import FedAvg

    arrays = ArrayRecord(weights)
    started = time.monotonic()
    result = FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=1)
    seconds = time.monotonic() - started
    assert result.arrays.keys() == weights.keys()
    return seconds


def _ours(grid: Grid, weights: dict[str, Any]) -> float:
    from federation.config import RunConfig
    from server.join_answer import Node
    from server.model import GlobalModel
    from server.rounds import run_round
    from server.run.records import RunRecord

    nodes = [Node(id_, f"site-{i}", 30, 1, 1, (), {}) for i, id_ in enumerate(grid.get_node_ids())]
    config = RunConfig()
    record = RunRecord(Path(os.environ["ROUND_TRIP_RESULT"]).parent, _RUN, config)
    model = GlobalModel(weights, {}, "")
    started = time.monotonic()
    entry = run_round(grid, model, nodes, _ROUND, config, record)
    seconds = time.monotonic() - started
    assert len(entry.clients) == 2, (entry.rejected, entry.missing)
    return seconds


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with what was received and a little noise; FedAvg's or ours."""
    answer = _our_answer if context.run_config["ours"] else _stock_answer
    return Message(answer(message, Path(str(context.node_config["scratch"]))), reply_to=message)


def _stock_answer(message: Message, scratch: Path) -> RecordDict:
    import torch

    state = message.content["arrays"].to_torch_state_dict()
    for tensor in state.values():
        tensor.add_(torch.randn_like(tensor), alpha=1e-4)
    return RecordDict({"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 10})})


def _our_answer(message: Message, scratch: Path) -> RecordDict:
    import torch

    from client.state.feedback import add_residual, keep_residual
    from federation.config import RunConfig
    from federation.messages import HEADER, METRICS, UPDATE, WEIGHTS
    from federation.wire.payload import Header, open_payload, pack_tensors

    received_at = time.time()
    wire = RunConfig().wire
    shapes = {name: torch.Size(shape) for name, shape in _shapes().items()}
    content = message.content
    header = Header(wire.download, _RUN, _ROUND, "")
    weights = open_payload(content.array_records[WEIGHTS], content.config_records[HEADER], shapes, header)
    update = {name: torch.randn_like(tensor).mul_(1e-4) for name, tensor in weights.tensors()}
    add_residual(scratch, _RUN, _ROUND, update)
    header = Header(wire.upload, _RUN, _ROUND, weights.header.sha256)
    arrays, header_record, sealed = pack_tensors(update.items(), header)
    sent = open_payload(arrays, header_record, shapes, sealed)
    keep_residual(
        scratch, _RUN, _ROUND, {name: update[name].sub_(decoded) for name, decoded in sent.tensors()}
    )
    figures = dict.fromkeys(
        ("policy_loss", "proximal_loss", "grad_norm", "update_norm", "learning_rate", "train_seconds"), 0.0
    )
    figures |= {"setup_seconds": 0.0, "data_seconds": 0.0, "device_memory_bytes": 0.0}
    counts = {"num_examples": 10, "skipped_frames": 0, "download_bytes": weights.size_bytes}
    times = {"received_at": received_at, "answered_at": time.time()}
    return RecordDict(
        {UPDATE: arrays, HEADER: header_record, METRICS: MetricRecord(figures | counts | times)}
    )


def _shapes() -> dict[str, list[int]]:
    return dict(json.loads(Path(os.environ["ROUND_TRIP_SHAPES"]).read_text(encoding="utf-8")))
