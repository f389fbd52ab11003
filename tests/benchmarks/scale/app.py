"""The apps of the benchmark: rounds of a given size in which nobody trains, ours or Flower's FedAvg.

A site answers with what it received, without torch: what is measured is the federation. The ServerApp is
what a real run calls. `__main__.py` puts this module and the project's packages into a Flower app.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

__all__ = ["client_app", "server_app"]

_RUN, _FRAMES = "scale", 10
server_app, client_app = ServerApp(), ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Take the rounds; write when each ended, and the CPU seconds and the memory of this process."""
    import psutil
    import torch

    config = context.run_config
    number, rounds, nodes = (int(config[key]) for key in ("weights", "rounds", "nodes"))  # type: ignore[arg-type]
    # Many tensors of one size, as a policy has them; small values, as an update has them.
    weights = {f"layer.{i:03d}": torch.full((number // 29,), 1e-4) for i in range(29)}
    folder = Path(os.environ["SCALE_FOLDER"])
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.5)
    _write(folder / "started.json", {})
    process = psutil.Process()
    before, times = sum(process.cpu_times()[:4]), [time.time()]
    work = _ours if config["ours"] else _stock
    try:
        work(grid, weights, rounds, times, folder)
    except Exception as error:  # Flower shows it nowhere
        _write(folder / "failed.json", {"error": repr(error)})
        raise
    _write(
        folder / "result.json",
        {
            "times": times,
            "cpu": sum(process.cpu_times()[:4]) - before,
            "resident": process.memory_info().rss,
        },
    )


def _write(file: Path, content: dict[str, Any]) -> None:
    file.with_suffix(".part").write_text(json.dumps(content), encoding="utf-8")
    file.with_suffix(".part").replace(file)


def _stock(grid: Grid, weights: dict[str, Any], rounds: int, times: list[float], folder: Path) -> None:
    from flwr.serverapp.strategy import FedAvg

    for _ in range(rounds):
        FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(weights), num_rounds=1)
        times.append(time.time())


def _ours(grid: Grid, weights: dict[str, Any], rounds: int, times: list[float], folder: Path) -> None:
    from federation.config import RunConfig
    from federation.settings import WireConfig
    from server.join_answer import Node
    from server.model import GlobalModel
    from server.rounds import run_round
    from server.run.records import RunRecord

    nodes = [Node(id_, f"site-{i}", 30, 1, 1, (), {}) for i, id_ in enumerate(grid.get_node_ids())]
    config = RunConfig(wire=WireConfig(download="fp32", upload="fp32"))
    record, model = RunRecord(folder, _RUN, config), GlobalModel(weights, {}, "")
    for round_ in range(1, rounds + 1):
        entry = run_round(grid, model, nodes, round_, config, record)
        assert len(entry.clients) == len(nodes), (entry.rejected, entry.missing)
        times.append(time.time())


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with what was received."""
    answer = _our_answer if context.run_config["ours"] else _stock_answer
    return Message(answer(message), reply_to=message)


def _stock_answer(message: Message) -> RecordDict:
    arrays = message.content.array_records["arrays"]
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": _FRAMES})})


def _our_answer(message: Message) -> RecordDict:
    """Return the weights as an update: of the same arrays in the same codec the SHA-256 is the same."""
    from federation.messages import HEADER, METRICS, UPDATE, WEIGHTS

    received_at = time.time()
    header = dict(message.content.config_records[HEADER])
    figures = dict.fromkeys(
        ("policy_loss", "proximal_loss", "grad_norm", "update_norm", "learning_rate", "train_seconds"), 0.0
    )
    figures |= {"setup_seconds": 0.0, "data_seconds": 0.0, "device_memory_bytes": 0.0}
    counts = {"num_examples": _FRAMES, "skipped_frames": 0, "download_bytes": 0}
    times = {"received_at": received_at, "answered_at": time.time()}
    return RecordDict(
        {
            UPDATE: message.content.array_records[WEIGHTS],
            HEADER: ConfigRecord(header | {"base": header["sha256"]}),
            METRICS: MetricRecord(figures | counts | times),
        }
    )
