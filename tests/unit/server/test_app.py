"""The ServerApp's own decisions; whole runs: tests/integration."""

import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federation.config import RunConfig, flatten, parse_run_config
from federation.errors import DatasetError
from federation.settings import CheckpointConfig
from server import app
from server.evaluation.datasets import check_samples, find_evaluation_datasets
from server.model import GlobalModel
from server.resume import evaluate_best_anew
from server.run.checkpoint_file import load_checkpoint
from server.run.checkpoints import Checkpoints
from server.run.recorded import read_metrics
from server.run.records import RunRecord
from server.run.round_record import RoundRecord
from tests.conftest import TINY
from tests.synthetic import split_video


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(tmp_path, "run-1", RunConfig())


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


def test_a_run_that_is_reverted_again_and_again_fails_with_what_to_do(record: RunRecord) -> None:
    for round_ in (1, 2):
        record.round_finished(RoundRecord(round_, reverted_to=0))
        app._stop_after_reverts(record)
    record.round_finished(RoundRecord(3, reverted_to=0))
    with pytest.raises(app.RevertedError, match=r"3 evaluations in a row .* lower training.learning_rate"):
        app._stop_after_reverts(record)


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_report_that_cannot_be_drawn_changes_nothing_of_how_the_run_ended(
    record: RunRecord, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("no font")

    lines: list[str] = []
    monkeypatch.setattr("server.output.report.report.write_report", fail)
    monkeypatch.setattr(app._log, "exception", lambda text, *values: lines.append(text % values))
    app._end(record, status, "disk full" if status == "failed" else "")
    assert read_metrics(record.folder)["status"] == status
    assert "make report RUN=run-1" in lines[0]
    assert "no font" in lines[0]
    assert f"run_{status}" in (record.folder / "events.jsonl").read_text()


def test_an_end_that_cannot_be_recorded_hides_no_failure(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left")

    monkeypatch.setattr(record, "close", full)
    app._end(record, "failed", "disk full")
    with pytest.raises(OSError, match="No space left"):
        app._end(record, "finished")


def test_held_out_data_that_cannot_be_evaluated_ends_the_run_before_its_first_round(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(data / "holdout", tmp_path / "holdout"))
    split_video(root, "top", (96, 64))
    monkeypatch.setenv("FEDERATION_EVALUATION", str(root))
    monkeypatch.setenv("FEDERATION_SCRATCH", str(tmp_path))
    config = parse_run_config(TINY, "tests")
    with pytest.raises(DatasetError, match="holdout: the pictures of the camera top differ in size"):
        check_samples(config, *find_evaluation_datasets(config))
