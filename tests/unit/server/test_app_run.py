"""A whole run of the ServerApp in one process, without nodes; a stand-in changes the weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from federation.data.description import describe_dataset
from federation.errors import ConfigError
from federation.privacy_budget import NOT_COVERED
from server import app
from server.round_evaluation import RevertedError
from server.run.recorded import read_metrics
from server.run.round_record import RoundRecord
from tests.conftest import TINY

pytestmark = pytest.mark.slow


class _Nodes:
    told: list[tuple[Any, ...]]  # what else is asked of it, of the newest one

    def __init__(self, statistics: Any) -> None:
        _Nodes.told = []
        self._node = SimpleNamespace(name="site-a", statistics=statistics)

    def wait_for_nodes(self, *_: object) -> dict[int, Any]:
        return {1: self._node}

    def joined(self) -> set[str]:
        return set()

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, *arguments))


def _round(_: object, model: Any, __: object, round_: int, *___: object) -> RoundRecord:
    for tensor in model.weights.values():
        tensor.mul_(1.01)
    return RoundRecord(
        round_,
        proximal_mu=0.001,
        update_norm=0.4,
        num_examples=24,
        bytes={"down": 1, "up": 1},
        seconds={"train": 2.0},
    )


@pytest.fixture
def start(policy, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for variable, folder in (("OUTPUTS", tmp_path), ("EVALUATION", data / "holdout"), ("SCRATCH", tmp_path)):
        monkeypatch.setenv(f"FEDERATION_{variable}", str(folder))
    monkeypatch.setattr(app, "NodeTable", lambda *_: _Nodes(describe_dataset(data / "site-a").statistics))
    monkeypatch.setattr(app, "sample_nodes", lambda *_: [])
    monkeypatch.setattr(app, "_build_policy", lambda _: policy)
    monkeypatch.setattr("server.rounds.run_round", _round)

    def run(run_id: int, **changes: object) -> dict[str, Any]:
        config = TINY | {"run.name": "run-1", "evaluation.rollback_ratio": 0.0} | changes
        context = SimpleNamespace(run_config=config, run_id=run_id)
        app.main(SimpleNamespace(), context)  # type: ignore[arg-type]
        return read_metrics(tmp_path / "run-1")

    return run


def test_a_run_resumed_with_another_way_to_evaluate_measures_its_best_round_anew(
    start: Any, tmp_path: Path
) -> None:
    first = start(17, **{"run.num_rounds": 2})
    assert (first["status"], first["flower_runs"]) == ("finished", ["17"])
    changes = {"run.resume": True, "run.num_rounds": 3, "evaluation.frame_stride": 7}
    second = start(18, **changes)
    assert second["flower_runs"] == ["17", "18"]
    assert _Nodes.told == [("count_rejections", 3, {}, {}), ("note_holdings", {})]
    assert second["baseline"]["frames"] != first["baseline"]["frames"]
    kept = [entry["evaluation"] for entry in second["rounds"] if "evaluation" in entry]
    assert {evaluation["measured_on"] for evaluation in kept} == {second["baseline"]["measured_on"]}
    assert "evaluation" in second["rounds"][-1]
    events = [json.loads(line) for line in (tmp_path / "run-1" / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "evaluations_dropped" for event in events) == 1


def test_a_run_whose_rounds_are_all_reverted_ends_and_no_round_learns_from_them(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind: list[RoundRecord | None] = []

    def diverge_from_round_2(
        grid: object, model: Any, nodes: object, round_: int, *others: Any
    ) -> RoundRecord:
        behind.append(others[1].entry_behind)
        if round_ > 1:
            for tensor in model.weights.values():
                tensor.add_(100.0)
        return _round(grid, model, nodes, round_)

    monkeypatch.setattr("server.rounds.run_round", diverge_from_round_2)
    changes = {"run.num_rounds": 9, "evaluation.rollback_ratio": 1.5, "evaluation.eval_frequency": 1}
    with pytest.raises(RevertedError):
        start(17, **changes)
    run = read_metrics(tmp_path / "run-1")
    assert run["status"] == "failed"
    assert [entry.get("rolled_back_to") for entry in run["rounds"]] == [None, 0, 0, 0]
    assert [entry and entry.round for entry in behind] == [None, 1, None, None]


def test_the_log_of_a_private_run_names_what_its_noise_does_not_cover(
    start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    privacy = {"mode": "central", "clip_norm": 1.0, "noise_multiplier": 0.1}
    start(17, **{"run.num_rounds": 1} | {f"privacy.{key}": value for key, value in privacy.items()})
    assert NOT_COVERED in capsys.readouterr().err


def test_a_run_ends_early_on_a_plateau_with_its_last_round_kept_and_exported(
    start: Any, tmp_path: Path
) -> None:
    changes = {"run.num_rounds": 9, "evaluation.patience": 2, "evaluation.min_gain": 0.5}
    run = start(17, **changes, **{"checkpoint.frequency": 5})
    assert (run["status"], len(run["rounds"])) == ("finished", 2)
    assert run["reason"].startswith("a plateau: 2 evaluations in a row gained less than 50.0%")
    folder = tmp_path / "run-1"
    assert (folder / "checkpoints" / "round_0002.safetensors").is_file()
    assert "after round 2 of 9" in (folder / "pretrained_model" / "README.md").read_text()
    assert '"reason": "a plateau' in (folder / "events.jsonl").read_text().splitlines()[-1]
    report = (folder / "report.html").read_text()
    assert '<p class="quiet">a plateau: 2 evaluations' in report
    changes["run.resume"] = True
    run = start(18, **changes)  # as if the server had died while it exported
    assert (run["status"], len(run["rounds"]), run["reason"][:9]) == ("finished", 2, "a plateau")
    assert len(start(19, **changes | {"evaluation.patience": 3})["rounds"]) == 3
    with pytest.raises(ConfigError, match=r"run\.num_rounds = 2: the run has 3 rounds behind it"):
        start(20, **changes | {"run.num_rounds": 2})
