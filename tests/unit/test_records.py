import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, ones

from federation.config import CheckpointConfig, RunConfig
from federation.errors import FederationError
from server.checkpoints import Checkpoints
from server.files import write_atomically, write_json
from server.records import RunRecord, new_run_name


def _evaluation(loss: float) -> dict:
    part = {"policy_loss": loss, "action_mse": 10 * loss, "frames": 4, "skipped_frames": 0}
    return {**part, "mode": "quick", "datasets": {"holdout-a": part, "holdout-b": part}, "seconds": 0.1}


def _round(number: int, **changes: object) -> dict:
    client = {"policy_loss": 1.0, "update_norm": 0.5, "num_examples": 12}
    return {
        "round": number,
        "aggregated": True,
        "clients": {"site-a": client, "site-b": client},
        "refused": {},
        "missing": [],
        "policy_loss": {"mean": 1.0, "std": 0.0},
        "update_norm": 0.4,
        "num_examples": 24,
        "skipped_frames": 0,
        "bytes": {"down": 3_000_000, "up": 1_000_000},
        "seconds": {"train": 2.0},
        "evaluation": _evaluation(1.0 / number),
        **changes,
    }


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(tmp_path, "run-1", RunConfig())


def _read(record: RunRecord) -> dict:
    return json.loads((record.folder / "federated_metrics.json").read_text())


def test_a_run_that_has_just_begun_is_on_disk(record: RunRecord) -> None:
    assert _read(record)["status"] == "running"
    assert json.loads((record.folder / "config.json").read_text())["training.proximal_mu"] == 0.001


def test_a_finished_round_is_on_disk_before_anything_else_happens(record: RunRecord) -> None:
    record.round_finished(_round(1))
    assert [entry["round"] for entry in _read(record)["rounds"]] == [1]


def test_events_are_appended_in_order_one_line_each(record: RunRecord) -> None:
    record.event("run_started", run="run-1")
    record.node_joined("site-a", {"frames": 3})
    record.evaluated(0, _evaluation(2.0))
    record.close("failed", "no nodes")
    record.announce_end()
    events = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["run_started", "node_joined", "evaluated", "run_failed"]
    assert events[-1]["reason"] == "no nodes"
    assert _read(record)["status"] == "failed"
    assert _read(record)["baseline"]["policy_loss"] == 2.0
    assert (record.folder / "server_eval_round_0.json").is_file()


def test_a_record_is_never_written_over(record: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"run-1 exists: choose another run\.name"):
        RunRecord(tmp_path, "run-1", RunConfig())


def test_run_names_sort_by_time() -> None:
    assert new_run_name("demo").startswith("demo-20")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, {"a": float("nan")})

    def torn(staging: Path) -> None:
        staging.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, torn)
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def _weights(value: float) -> dict[str, Tensor]:
    return {"w": ones(3) * value}


def test_checkpoints_keep_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=2), "f" * 64)
    for round_, loss in enumerate([3.0, 1.0, 2.0, None], start=1):
        checkpoints.save(round_, _weights(round_), loss)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best.safetensors",
        "round_0003.safetensors",
        "round_0004.safetensors",
    ]
    assert load_file(checkpoints.best)["w"].tolist() == [2.0, 2.0, 2.0]
    with safe_open(checkpoints.best, "pt") as file:
        assert file.metadata() == {"round": "2", "frozen_fingerprint": "f" * 64, "policy_loss": "1.0"}
