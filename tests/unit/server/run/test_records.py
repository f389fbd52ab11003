import fcntl
import json
import math
from pathlib import Path
from threading import Timer

import pytest

from federation.config import RunConfig, parse_run_config
from federation.errors import ConfigError, FederationError
from federation.settings import PrivacyConfig, RunSection, TrainingConfig
from server.run import records
from server.run.recorded import (
    evaluations_behind,
    is_being_written,
    recorded_config,
)
from server.run.records import RunRecord, new_run_name
from server.run.round_record import Rejection, RoundRecord


def _evaluation(loss: float) -> dict:
    part = {"policy_loss": loss, "action_mse": 10 * loss, "frames": 4, "skipped_frames": 0}
    return {**part, "mode": "quick", "datasets": {"holdout-a": part, "holdout-b": part}, "seconds": 0.1}


def _round(number: int, **changes: object) -> RoundRecord:
    client = {"policy_loss": 1.0, "update_norm": 0.5, "num_examples": 12}
    entry = {
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
    return RoundRecord.from_json(entry)


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
    record.write_final_event()
    events = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["run_started", "node_joined", "evaluated", "run_failed"]
    assert events[-1]["reason"] == "no nodes"
    assert _read(record)["status"] == "failed"
    assert _read(record)["baseline"]["policy_loss"] == 2.0
    assert (record.folder / "server_eval_round_0.json").is_file()


def test_what_the_weights_were_worth_before_training_is_on_disk_at_once(record: RunRecord) -> None:
    record.evaluated(0, _evaluation(2.0))  # checkpoint 0 is written next, and nobody evaluates them again
    assert _read(record)["baseline"]["policy_loss"] == 2.0


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


def test_a_continuation_that_dies_before_it_goes_on_changes_nothing(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    slower = RunConfig(run=RunSection(resume=True), training=TrainingConfig(learning_rate=1e-5))
    for _ in range(2):
        record = RunRecord(tmp_path, "run-1", slower)
        assert recorded_config(tmp_path / "run-1").training.learning_rate == 1e-4
        record._lock.close()
    RunRecord(tmp_path, "run-1", slower).resume_after(None, None)
    assert recorded_config(tmp_path / "run-1").training.learning_rate == 1e-5
    last = json.loads((tmp_path / "run-1" / "events.jsonl").read_text().splitlines()[-1])
    assert last["changed"] == {"training.learning_rate": 1e-5}


def test_a_continuation_cannot_change_the_noise_that_its_epsilon_is_computed_from(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    changed = RunConfig(run=RunSection(resume=True), privacy=PrivacyConfig(mode="central"))
    with pytest.raises(ConfigError, match=r"privacy.mode = 'central': the run began with 'none'"):
        RunRecord(tmp_path, "run-1", changed)


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="there is no such run to resume"):
        RunRecord(tmp_path, "run-1", RESUMED)


def test_two_serverapps_never_write_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LOCK_SECONDS", 0.0)
    holder = RunRecord(tmp_path, "run-1", RunConfig())
    with pytest.raises(FederationError, match="is being written by another ServerApp"):
        RunRecord(tmp_path, "run-1", RESUMED)
    assert is_being_written(holder.folder)
    holder._lock.close()  # as the kernel does when a process dies
    assert not is_being_written(holder.folder)
    assert not is_being_written(tmp_path / "nowhere")
    RunRecord(tmp_path, "run-1", RESUMED)


def test_a_folder_in_which_nothing_was_recorded_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "run-1").mkdir()
    assert _read(RunRecord(tmp_path, "run-1", RunConfig()))["status"] == "running"


def test_run_names_sort_by_time() -> None:
    assert new_run_name("demo").startswith("demo-20")
    for stem in ("my quick", "a+b (2)", "..hidden", "münchen", " "):
        name = new_run_name(stem)
        assert parse_run_config({"run.name": name}, "tests").run.name == name


_SIMULATED = {
    "success_rate": 0.5,
    "interval": [0.2, 0.8],
    "mean_return": 0.6,
    "episodes": 4,
    "expert_success_rate": 1.0,
}


def _simulated(record: RunRecord) -> list[int]:
    return [entry["round"] for entry in _read(record).get("simulated", [])]


def test_closed_loop_results_of_rounds_that_are_gone_leave_the_record(record: RunRecord) -> None:
    record.simulated(0, _SIMULATED)
    for round_ in (1, 2, 3):
        record.round_finished(_round(round_))
        record.simulated(round_, _SIMULATED)
    record.round_finished(_round(4, rolled_back_to=1))  # its weights are those of round 1 again
    assert _simulated(record) == [0, 1]
    record.simulated(3, _SIMULATED)  # it took longer than the round
    record.simulated(4, _SIMULATED)
    assert _simulated(record) == [0, 1, 4]
    record.roll_back(2)
    assert _simulated(record) == [0, 1]
    record.resume_after(0, None)
    assert _simulated(record) == [0]
    events = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "simulated"] == [0, 1, 2, 3, 3, 4]


def test_a_node_is_told_of_the_rounds_gone_back_over_until_it_has_done_them_again(record: RunRecord) -> None:
    for round_ in (1, 2, 3):
        record.round_finished(_round(round_))
    record.roll_back(1)
    assert record.undone_rounds("a") == [2, 3, 4]  # it may have trained the one that was under way
    record.round_finished(RoundRecord(2, clients={"a": {}}, rejected={"b": Rejection("norm", "large")}))
    assert [record.undone_rounds(node) for node in "abc"] == [[3, 4], [3, 4], [2, 3, 4]]


def test_only_what_was_measured_of_new_weights_counts_for_a_plateau(record: RunRecord) -> None:
    record.evaluated(0, _evaluation(5.0))
    record.round_finished(RoundRecord(1, evaluation=_evaluation(4.0)))
    record.round_finished(RoundRecord(2, evaluation=_evaluation(4.0), aggregated=False))
    record.round_finished(RoundRecord(3))
    record.round_finished(RoundRecord(4, reverted_to=1))  # it diverged
    record.round_finished(RoundRecord(5, evaluation=_evaluation(9.0), reverted_to=1))
    assert record.held_out_losses == [5.0, 4.0, math.inf, 9.0]


def test_reverts_are_counted_between_evaluations_that_stand(record: RunRecord) -> None:
    counts = []
    for round_, reverted in enumerate([False, True, None, True, False, True], start=1):
        entry = _round(round_, **({"rolled_back_to": 1} if reverted else {}))
        if reverted is None:  # not every round is evaluated
            entry.evaluation = None
        record.round_finished(entry)
        counts.append(record.reverts_in_row)
    assert counts == [0, 1, 1, 2, 0, 1]


def test_reverts_count_from_the_last_change_of_the_settings(record: RunRecord, tmp_path: Path) -> None:
    for round_ in (1, 2, 3):
        record.round_finished(_round(round_, rolled_back_to=0))
    for config, expected in (
        (RunConfig(run=RunSection(resume=True)), 3),
        (RunConfig(run=RunSection(resume=True), training=TrainingConfig(learning_rate=1e-5)), 0),
        (RunConfig(run=RunSection(resume=True), training=TrainingConfig(learning_rate=1e-5)), 0),
    ):
        record._lock.close()
        record = RunRecord(tmp_path, "run-1", config)
        record.resume_after(3, None)
        assert record.reverts_in_row == expected
    record.round_finished(_round(4, rolled_back_to=0))
    assert record.reverts_in_row == 1


def test_reverts_count_from_the_last_change_of_the_measure(record: RunRecord) -> None:
    for round_, reverted in enumerate([False, True, False, True, False, True, False], start=1):
        record.round_finished(_round(round_, **({"rolled_back_to": 1} if reverted else {})))
    record.resume_after(7, None)
    record.evaluated_anew(_evaluation(4.0), 1, _evaluation(3.0), changed="the hold-out changed")
    assert record.reverts_in_row == 0
    record.round_finished(_round(8, rolled_back_to=1))
    assert record.reverts_in_row == 1


def test_the_round_behind_the_weights_is_the_one_that_was_gone_back_to(record: RunRecord) -> None:
    found = []
    for round_, back in enumerate([None, None, 1, 3, None, 0], start=1):
        record.round_finished(_round(round_, **({} if back is None else {"rolled_back_to": back})))
        entry = record.entry_behind
        found.append(entry and entry.round)
    assert found == [1, 2, 1, 1, 5, None]


def test_figures_of_another_measure_leave_the_record(record: RunRecord) -> None:
    record.evaluated(0, _evaluation(9.0))
    for round_ in (1, 2, 3):
        record.round_finished(_round(round_))
    record.resume_after(3, None)
    record.evaluated_anew(_evaluation(4.0), 2, _evaluation(3.0), changed="the hold-out changed")
    metrics = _read(record)
    assert metrics["baseline"]["policy_loss"] == 4.0
    kept = {e["round"]: e["evaluation"]["policy_loss"] for e in metrics["rounds"] if "evaluation" in e}
    assert kept == {2: 3.0}
    assert metrics["resumed"][-1]["evaluated_anew"] == "the hold-out changed"
    assert evaluations_behind(metrics, 3).keys() == {0, 2}


def test_a_reader_of_the_lock_is_not_in_the_way_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run-1").mkdir()
    with (tmp_path / "run-1" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        Timer(0.3, lock.close).start()
        assert _read(RunRecord(tmp_path, "run-1", RunConfig()))["status"] == "running"


def test_a_reopened_run_says_so_before_the_nodes_come(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    record = RunRecord(tmp_path, "run-1", parse_run_config({"run.resume": True}, "tests"), "flower-2")
    lines = (record.folder / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "run_reopened"


def test_the_record_names_flowers_runs_before_the_nodes_come(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run-1", RunConfig(), "17")
    record.close("finished")
    record._lock.close()
    record = RunRecord(tmp_path, "run-1", RunConfig(run=RunSection(resume=True)), "18")
    metrics = _read(record)
    assert (metrics["flower_runs"], metrics["status"]) == (["17", "18"], "running")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy.joint_units", "range"),
        ("policy.fps", 15),
        ("policy.cameras", "top"),
        ("aggregation.strategy", "fedavgm"),
        ("evaluation.ema_decay", 0.5),
    ],
)
def test_a_continuation_cannot_change_what_its_weights_are_made_of(
    tmp_path: Path, key: str, value: object
) -> None:
    _interrupted(tmp_path)
    with pytest.raises(ConfigError, match=rf"{key} = {value!r}: the run began with"):
        RunRecord(tmp_path, "run-1", parse_run_config({"run.resume": True, key: value}, "tests"))
