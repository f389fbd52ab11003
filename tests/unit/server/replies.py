"""What nodes answer and send in the tests of the server."""

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation.config import RunConfig
from federation.messages import ANSWER, HEADER, METRICS, STATISTICS, UPDATE
from federation.settings import FederationConfig, TrainingConfig, WireConfig
from federation.versions import versions
from federation.wire.payload import Header, pack_tensors, statistics_to_record
from server.join_answer import Node
from server.model import GlobalModel
from server.rounds import run_round
from server.run.records import RunRecord
from server.run.round_record import Rejection, RoundRecord
from tests.fake_grid import FakeGrid

FAST = TrainingConfig(learning_rate=1e3)  # the updates here are made up, and far from what 1e-4 can train
METRIC_VALUES = {
    "num_examples": 10,
    "skipped_frames": 1,
    "download_bytes": 8,
    "policy_loss": 1.0,
    "proximal_loss": 0.1,
    "grad_norm": 2.0,
    "update_norm": 3.0,
    "learning_rate": 1e-3,
    "train_seconds": 1.0,
    "setup_seconds": 1.0,
    "data_seconds": 0.5,
    "device_memory_bytes": 1000,
    "received_at": 1.0,
    "answered_at": 3.0,
}


def make_reply(value: float = 1.0, **changes: object) -> RecordDict:
    metrics = {key: v for key, v in (METRIC_VALUES | changes).items() if v is not None}
    arrays, header = make_update(value)
    return RecordDict({UPDATE: arrays, HEADER: header, METRICS: MetricRecord(metrics)})  # type: ignore


def make_update(value: float, run: str = "run") -> tuple[ArrayRecord, ConfigRecord]:
    base = pack_tensors([("w", torch.zeros(2))], Header("fp32", run, 1, ""))[2].sha256
    arrays, header, _ = pack_tensors([("w", torch.full((2,), value))], Header("fp32", run, 1, base))
    return arrays, header


NAN = Rejection("non_finite", "NaN")
OUT_OF_MEMORY = Rejection("node_failed", "out of memory")


def make_nodes(*names: str) -> list[Node]:
    return [Node(i, name, 30, 3, 90, ("top",), {}) for i, name in enumerate(names, start=10)]


def run_one_round(
    grid: FakeGrid,
    record: RunRecord,
    statistics,
    *names: str,
    min_updates: int = 1,
    norms: tuple[float, ...] = (),
) -> tuple[RoundRecord, torch.Tensor]:
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    model.norms.extend(norms)
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0, min_updates=min_updates),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=FAST,
    )
    return run_round(grid, model, make_nodes(*names), 1, settings, record), model.weights["w"]  # type: ignore


def make_answer(name: str, reported, **changes: object) -> RecordDict:
    facts = {"name": name, "fps": 30, "episodes": 3, "frames": 120, "cameras": ["top"], "left_out": 0}
    facts |= {
        "device": "x86_64",
        "versions": installed(),
        "simulated": False,
    }
    answer = ConfigRecord({k: v for k, v in (facts | changes).items() if v is not None})  # type: ignore
    return RecordDict({ANSWER: answer, STATISTICS: statistics_to_record(reported)})


def answer_with_more_frames(name: str, reported) -> RecordDict:
    more = {feature: {**named, "count": np.array([400.0])} for feature, named in reported.items()}
    return make_answer(name, more, frames=400)


def installed(**changes: str) -> list[str]:
    return [f"{package} {version}" for package, version in (versions() | changes).items()]
