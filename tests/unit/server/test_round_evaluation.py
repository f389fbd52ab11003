"""What an evaluation after a round does to the weights, the record and the run."""

from pathlib import Path
from typing import Any

import pytest

from federation.config import RunConfig, parse_run_config
from server.evaluation.held_out import DivergedError
from server.round_evaluation import RevertedError, evaluate_and_save, stop_after_reverts
from server.run.records import RunRecord
from server.run.round_record import RoundRecord
from tests.unit.server.run.test_checkpoints import _model, _store


class _Evaluator:
    def __init__(self, loss: float | None) -> None:
        self._loss = loss

    def evaluate(self, _: object) -> dict[str, Any]:
        if self._loss is None:
            raise DivergedError("holdout: policy loss is nan")
        return {"policy_loss": self._loss, "action_mse": 1.0, "seconds": 0.1, "datasets": {}}


def test_a_run_that_is_reverted_again_and_again_fails_with_what_to_do(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run-1", RunConfig())
    for round_ in (1, 2):
        record.round_finished(RoundRecord(round_, reverted_to=0))
        stop_after_reverts(record)
    record.round_finished(RoundRecord(3, reverted_to=0))
    with pytest.raises(RevertedError, match=r"3 evaluations in a row .* lower training.learning_rate"):
        stop_after_reverts(record)


@pytest.fixture
def begun(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """Model, checkpoints, configuration and record of a run whose start was evaluated at a loss of 1.

    A test's parameter is its `evaluation.patience`.
    """
    settings = {"run.num_rounds": 9, "evaluation.patience": request.param, "evaluation.min_gain": 0.5}
    config = parse_run_config(settings, "tests")
    record, model = RunRecord(tmp_path, "run-1", config), _model(1.0)
    store = _store(record.folder / "checkpoints")
    record.evaluated(0, {"policy_loss": 1.0})
    store.save(0, model, 1.0, None)
    return model, store, config, record


@pytest.mark.parametrize("begun", [1], indirect=True)
@pytest.mark.parametrize("aggregated", [True, False])
def test_a_round_that_changed_nothing_is_no_plateau(begun: tuple[Any, ...], aggregated: bool) -> None:
    said = evaluate_and_save(RoundRecord(1, aggregated=aggregated), _Evaluator(1.0), *begun)  # type: ignore
    assert said.startswith("a plateau") == aggregated


@pytest.mark.parametrize("begun", [0], indirect=True)
def test_weights_that_diverged_go_back_to_the_best(begun: tuple[Any, ...]) -> None:
    model, entry = begun[0], RoundRecord(1)
    model.weights["a"].fill_(float("nan"))
    assert evaluate_and_save(entry, _Evaluator(None), *begun) == ""  # type: ignore[arg-type]
    assert (entry.reverted_to, entry.evaluation) == (0, None)
    assert model.weights["a"].tolist() == [1.0] * 3
