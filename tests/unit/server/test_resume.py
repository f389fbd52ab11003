"""What a run goes on from; whole runs that are killed and resumed: tests/integration/faults."""

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from federation.config import RunConfig, flatten, parse_run_config
from federation.settings import CheckpointConfig
from server.join_answer import Node
from server.model import GlobalModel
from server.resume import begin_or_resume, evaluate_best_anew, restore_best
from server.run.checkpoint_file import load_checkpoint
from server.run.checkpoints import Checkpoints
from server.run.recorded import read_metrics
from server.run.records import RunRecord
from server.run.round_record import RoundRecord


def _model(value: float) -> GlobalModel:
    statistics = {"action": {"mean": np.array([0.1]), "count": np.array([7])}}
    return GlobalModel({"weight": torch.full((1, 1), value)}, statistics, "f" * 64, None, deque(maxlen=32))


class _Evaluator:
    """The loss is the weight itself."""

    def evaluate(self, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        loss = weights["weight"].item()
        return {"policy_loss": loss, "action_mse": loss, "measured_on": "new", "datasets": {}}


def test_a_run_resumed_with_another_hold_out_is_compared_with_its_figures_of_today(record: RunRecord) -> None:
    folder = record.folder / "checkpoints"
    settings, config = CheckpointConfig(), flatten(RunConfig())
    Checkpoints(folder, settings, config, "old").save(1, _model(0.7), 0.001, RoundRecord(1))
    record.round_finished(RoundRecord(1, evaluation={"policy_loss": 0.001}))
    record.resume_after(1, None)
    store = Checkpoints(folder, settings, config, "new")
    policy = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(policy.weight, 0.9)
    evaluate_best_anew(policy, _Evaluator(), store, record)  # type: ignore[arg-type]
    assert store.best_loss == pytest.approx(0.7)
    assert load_checkpoint(store.best).policy_loss == pytest.approx(0.7)
    metrics = read_metrics(record.folder)
    assert metrics["baseline"]["policy_loss"] == pytest.approx(0.9)
    assert metrics["rounds"][0]["evaluation"]["policy_loss"] == pytest.approx(0.7)
    assert Checkpoints(folder, settings, config, "new").best_is_comparable


RESUMED = {"run.resume": True, "policy.size": "tiny"}


def _store(record: RunRecord, config: RunConfig) -> Checkpoints:
    return Checkpoints(record.folder / "checkpoints", config.checkpoint, flatten(config), "m")


@pytest.fixture
def online(reported) -> dict[int, Node]:
    return {1: Node(1, "site-a", 30, 3, 120, ("top", "wrist"), reported)}


def test_a_new_run_begins_with_the_policys_own_weights(record: RunRecord, policy, weights, online) -> None:
    config = parse_run_config({"policy.size": "tiny", "evaluation.ema_decay": 0.5}, "tests")
    model, checkpoint = begin_or_resume(policy, online, _store(record, config), config, record)
    assert checkpoint is None
    assert model.weights.keys() == weights.keys()
    for name, tensor in weights.items():
        assert model.weights[name].equal(tensor)
        assert model.average is not None
        assert model.average[name].equal(tensor)
        assert model.average[name] is not model.weights[name]
    assert read_metrics(record.folder).get("resumed", []) == []


def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_anew_and_says_so(
    record: RunRecord, policy, weights, online
) -> None:
    config = parse_run_config(RESUMED, "tests")
    model, checkpoint = begin_or_resume(policy, online, _store(record, config), config, record)
    assert checkpoint is None
    assert all(model.weights[name].equal(tensor) for name, tensor in weights.items())
    assert read_metrics(record.folder)["resumed"][0]["after_round"] == 0


def test_a_resumed_run_has_weights_and_normalisation_of_its_newest_checkpoint_whoever_is_online(
    record: RunRecord, policy, online
) -> None:
    config = parse_run_config(RESUMED, "tests")
    store = _store(record, config)
    model, _ = begin_or_resume(policy, online, store, config, record)
    model.statistics["action"]["mean"] = model.statistics["action"]["mean"] + 1
    for tensor in model.weights.values():
        tensor.add_(1)
    store.save(2, model, 1.0, RoundRecord(2))
    resumed, checkpoint = begin_or_resume(policy, online, store, config, record)
    assert checkpoint is not None
    assert checkpoint.round == 2
    assert all(resumed.weights[name].equal(tensor) for name, tensor in model.weights.items())
    np.testing.assert_array_equal(resumed.statistics["action"]["mean"], model.statistics["action"]["mean"])
    metrics = read_metrics(record.folder)
    assert metrics["resumed"][-1]["after_round"] == 2
    assert [entry["round"] for entry in metrics["rounds"]] == [2]


def test_after_a_spike_the_weights_are_those_of_the_best_round(record: RunRecord) -> None:
    store = _store(record, RunConfig())
    for round_, loss in ((1, 0.5), (2, 0.9)):
        store.save(round_, _model(round_), loss, RoundRecord(round_))
    model = _model(7.0)
    assert restore_best(model, store, 3.0) == 1
    assert model.weights["weight"].item() == 1.0
