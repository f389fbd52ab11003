"""One cheating site out of five, on a problem small enough for a unit test: linear regression.

The same with the policy, and its figures: tests/benchmarks/poisoning.py.
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import Tensor

from federation.config import RunConfig
from federation.data.statistics import Statistics
from federation.errors import WireError
from federation.messages import HEADER, METRICS, UPDATE, WEIGHTS
from federation.settings import AggregationConfig, FederationConfig, TrainingConfig
from federation.wire.payload import Header, open_payload, pack_tensors
from server.join_answer import Node
from server.model import GlobalModel
from server.rounds import run_round
from server.run.records import RunRecord
from tests.fake_grid import FakeGrid
from tests.unit.server.replies import METRIC_VALUES

pytestmark = pytest.mark.slow

ROUNDS, FEATURES = 20, 20
SITES = 5  # the fewest that Krum withstands one cheating site with
ATTACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign flip": lambda update: -3 * update,
    "times 1000": lambda update: 1000 * update,
    "noise": lambda update: 8 * update.norm() * torch.randn(update.shape) / update.numel() ** 0.5,
}
RULES = {
    "median": AggregationConfig(method="median"),
    "trimmed_mean": AggregationConfig(method="trimmed_mean", trim_fraction=0.25),
    "krum": AggregationConfig(method="krum", byzantine=1),
}
NAIVE = AggregationConfig(method="mean", max_norm_ratio=0.0)


def _held_out_loss(
    folder: Path, statistics: Statistics, rule: AggregationConfig, attack: Callable[[Tensor], Tensor] | None
) -> float:
    """Held-out loss after `ROUNDS` rounds of five sites; the last applies `attack` to its updates."""
    torch.manual_seed(0)
    truth = torch.randn(FEATURES)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, FEATURES)
        return x, x @ truth + 0.5 * torch.randn(count)

    sites, (test_x, test_y) = [draw(1000) for _ in range(SITES)], draw(2000)
    config = RunConfig(
        federation=FederationConfig(min_nodes=SITES),
        aggregation=rule,
        training=TrainingConfig(learning_rate=0.1),  # of AdamW, which may go this far; these steps do not
    )
    model = GlobalModel({"w": torch.zeros(FEATURES)}, statistics, "f")
    shapes = dict(model.shapes)
    record = RunRecord(folder, "run", config)

    def reply(site: int, round_: int, message: Message) -> RecordDict:
        down = Header(config.wire.download, "run", round_, "")
        records = message.content
        payload = open_payload(records.array_records[WEIGHTS], records.config_records[HEADER], shapes, down)
        received = dict(payload.tensors())["w"]
        w = received.clone()
        x, y = sites[site]
        for _ in range(5):
            w -= 0.1 * x.T @ (x @ w - y) / len(y)
        update = w - received
        if attack and site == SITES - 1:
            update = attack(update)
        up = Header(config.wire.upload, "run", round_, payload.header.sha256)
        arrays, header, _ = pack_tensors([("w", update)], up)
        return RecordDict({UPDATE: arrays, HEADER: header, METRICS: MetricRecord(METRIC_VALUES)})  # type: ignore

    nodes = [Node(site, f"site-{site}", 30, 3, 90, ("top",), {}) for site in range(SITES)]
    for round_ in range(1, ROUNDS + 1):
        answers = {
            site: (lambda message, s=site, r=round_: reply(s, r, message))  # type: ignore[misc]
            for site in range(SITES)
        }
        run_round(FakeGrid(answers), model, nodes, round_, config, record)  # type: ignore[arg-type]
    return (test_x @ model.weights["w"] - test_y).square().mean().item()


@pytest.fixture(scope="module")
def honest_loss(tmp_path_factory: pytest.TempPathFactory, statistics: Statistics) -> float:
    return _held_out_loss(tmp_path_factory.mktemp("honest"), statistics, AggregationConfig(), None)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", RULES)
def test_a_robust_rule_withstands_one_site_of_five(
    tmp_path: Path, statistics: Statistics, honest_loss: float, rule: str, attack: str
) -> None:
    assert _held_out_loss(tmp_path, statistics, RULES[rule], ATTACKS[attack]) < 1.05 * honest_loss


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_plain_mean_does_not(
    tmp_path: Path, statistics: Statistics, honest_loss: float, attack: str
) -> None:
    loss = math.inf
    with contextlib.suppress(WireError):  # the weights may leave what can be sent
        loss = _held_out_loss(tmp_path, statistics, NAIVE, ATTACKS[attack])
    assert not loss <= 1.05 * honest_loss  # nor NaN


def test_judging_norms_is_enough_against_a_thousandfold_update(
    tmp_path: Path, statistics: Statistics, honest_loss: float
) -> None:
    loss = _held_out_loss(tmp_path, statistics, AggregationConfig(), ATTACKS["times 1000"])
    assert loss < 1.05 * honest_loss
