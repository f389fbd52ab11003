import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.config import PrivacyConfig, RunConfig, RunSection, TrainingConfig
from federation.errors import ConfigError, FederationError
from server import records
from server.records import RunRecord, new_run_name, read_metrics, recorded_config


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


RESUMED = RunConfig(run=RunSection(resume=True))


def _interrupted(tmp_path: Path) -> Path:
    """The folder of a run that died in its fourth round, in the middle of a line."""
    record = RunRecord(tmp_path, "run-1", RunConfig())
    for number in (1, 2, 3):
        record.round_finished(_round(number))
    record._events.write('{"time": 1.0, "event": "round_sta')
    record._events.close()
    record._lock.close()
    return record.folder


def test_a_resumed_run_goes_on_in_the_same_record(tmp_path: Path) -> None:
    folder = _interrupted(tmp_path)
    started = json.loads((folder / "federated_metrics.json").read_text())["started"]
    record = RunRecord(tmp_path, "run-1", RESUMED)
    record.resume_after(3, _round(3))
    record.round_finished(_round(4))
    metrics = _read(record)
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2, 3, 4]
    assert (metrics["status"], metrics["started"]) == ("running", started)
    assert metrics["resumed"][0]["after_round"] == 3
    assert metrics["config"]["run.resume"] is False
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events[-2:]] == ["run_resumed", "round_finished"]


def test_a_round_whose_checkpoint_outlived_its_record_is_not_lost(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    record = RunRecord(tmp_path, "run-1", RESUMED)
    record.resume_after(4, _round(4))
    assert [entry["round"] for entry in _read(record)["rounds"]] == [1, 2, 3, 4]


def test_rounds_without_a_checkpoint_are_done_again_and_that_is_said(tmp_path: Path) -> None:
    folder = _interrupted(tmp_path)
    record = RunRecord(tmp_path, "run-1", RESUMED)
    record.resume_after(2, _round(2))
    assert [entry["round"] for entry in _read(record)["rounds"]] == [1, 2]
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["rounds_done_again"] == [3]


def test_a_continuation_may_change_settings_but_not_what_the_rounds_share(tmp_path: Path) -> None:
    folder = _interrupted(tmp_path)
    lower = RunConfig(run=RunSection(resume=True), training=TrainingConfig(learning_rate=1e-5))
    RunRecord(tmp_path, "run-1", lower).resume_after(3, None)
    assert recorded_config(folder).training.learning_rate == 1e-5
    assert json.loads((folder / "config.json").read_text())["training.learning_rate"] == 1e-5
    with pytest.raises(ConfigError, match=r"run.seed = 5: the run began with 0"):
        RunRecord(tmp_path, "run-1", RunConfig(run=RunSection(resume=True, seed=5)))
    # The rounds before were without noise: an epsilon over all of them would be wrong.
    private = RunConfig(run=RunSection(resume=True), privacy=PrivacyConfig(mode="local"))
    with pytest.raises(ConfigError, match=r"privacy.mode = 'local': the run began with 'none'"):
        RunRecord(tmp_path, "run-1", private)


def test_a_continuation_cannot_change_the_noise_that_its_epsilon_is_computed_from(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    changed = RunConfig(run=RunSection(resume=True), privacy=PrivacyConfig(mode="central"))
    with pytest.raises(ConfigError, match=r"privacy.mode = 'central': the run began with 'none'"):
        RunRecord(tmp_path, "run-1", changed)


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="there is no such run to resume"):
        RunRecord(tmp_path, "run-1", RESUMED)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"config": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_record_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    folder = _interrupted(tmp_path)
    (folder / "federated_metrics.json").write_bytes(content)
    with pytest.raises(FederationError, match=r"federated_metrics.json .*name a run's folder"):
        RunRecord(tmp_path, "run-1", RESUMED)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["config", "rounds", "status", "reason", "run.seed"]), inner)
    ),
    max_leaves=12,
)


@given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=100))
def test_whatever_is_in_a_record_the_error_is_ours(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / "federated_metrics.json").write_bytes(content)
    for read in (read_metrics, recorded_config):
        try:
            read(folder)
        except FederationError as error:
            assert str(folder) in str(error)


def test_two_serverapps_never_write_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LOCK_SECONDS", 0.0)
    holder = RunRecord(tmp_path, "run-1", RunConfig())
    with pytest.raises(FederationError, match="is being written by another ServerApp"):
        RunRecord(tmp_path, "run-1", RESUMED)
    assert records.is_being_written(holder.folder)
    holder._lock.close()  # as the kernel does when a process dies
    assert not records.is_being_written(holder.folder)
    assert not records.is_being_written(tmp_path / "nowhere")
    RunRecord(tmp_path, "run-1", RESUMED)


def test_a_folder_in_which_nothing_was_recorded_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "run-1").mkdir()
    assert _read(RunRecord(tmp_path, "run-1", RunConfig()))["status"] == "running"


def test_run_names_sort_by_time() -> None:
    assert new_run_name("demo").startswith("demo-20")
