import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.config import RunConfig
from federation.errors import ConfigError, FederationError
from server.run.recorded import (
    as_continuation,
    config_to_resume,
    evaluations_behind,
    is_finished,
    parse_event,
    read_events,
    read_metrics,
    recorded_config,
    recorded_runs,
)
from server.run.records import RunRecord
from tests.unit.server.run.test_records import RESUMED, _evaluation, _interrupted, _round


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


@pytest.mark.parametrize(("written", "named"), [("node_refused", "join_denied"), ("evaluated", "evaluated")])
def test_events_of_the_first_release_are_read_under_todays_names(written: str, named: str) -> None:
    line = json.dumps({"time": 1.0, "event": written, "round": 2})
    assert parse_event(line) == {"time": 1.0, "event": named, "round": 2}


def test_the_run_that_was_written_last_stands_at_the_end(tmp_path: Path) -> None:
    assert recorded_runs(tmp_path / "nowhere") == []
    for age, name in enumerate(("c", "a", "b")):
        record = RunRecord(tmp_path, name, RunConfig())
        os.utime(record.folder / "federated_metrics.json", (1000 - age, 1000 - age))
    (tmp_path / "no run").mkdir()
    assert [folder.name for folder in recorded_runs(tmp_path)] == ["b", "a", "c"]


def test_a_run_goes_on_with_its_own_configuration_or_with_that_of_a_file(tmp_path: Path) -> None:
    folder = _interrupted(tmp_path)
    own = config_to_resume(folder)
    assert own.run.resume
    assert own == as_continuation(recorded_config(folder))
    file = tmp_path / "other.toml"
    file.write_text('[run]\nname = "other"\nnum_rounds = 7\n')
    other = config_to_resume(folder, file)
    assert (other.run.name, other.run.num_rounds, other.run.resume) == ("run-1", 7, True)
    file.write_text("[run]\nnum_rounds = 0\n")
    with pytest.raises(ConfigError, match=r"other.toml: run.num_rounds = 0"):
        config_to_resume(folder, file)
    with pytest.raises(FederationError, match="name a run's folder"):
        config_to_resume(tmp_path / "nowhere")


def test_what_other_files_add_is_not_written_into_the_record_of_a_resumed_run(tmp_path: Path) -> None:
    folder = _interrupted(tmp_path)
    assert read_metrics(folder)["delivered"] == {}
    RunRecord(tmp_path, "run-1", RESUMED, "18")
    assert "delivered" not in json.loads((folder / "federated_metrics.json").read_text())


def test_events_are_read_by_name_up_to_the_last_whole_line(tmp_path: Path) -> None:
    assert list(read_events(tmp_path, ("join_denied",))) == []
    lines = [{"event": "node_refused", "node": "a"}, {"event": "evaluated"}, {"event": "join_denied"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "events.jsonl").write_text(text + '{"event": "join_denied", "no')
    assert [event.get("node") for event in read_events(tmp_path, ("join_denied",))] == ["a", None]


def test_a_finished_run_is_finished_until_it_is_resumed(tmp_path: Path) -> None:
    assert not is_finished(tmp_path / "run-1")
    record = RunRecord(tmp_path, "run-1", RunConfig(), "17")
    assert not is_finished(record.folder)
    record.close("finished")
    record._lock.close()
    assert is_finished(record.folder)
    assert is_finished(record.folder, "17")
    assert not is_finished(record.folder, "18")  # it has not begun yet
    RunRecord(tmp_path, "run-1", RESUMED, "18")
    assert not is_finished(record.folder, "18")


def test_the_evaluations_behind_the_weights_leave_out_what_a_revert_took_back(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run-1", RunConfig())
    assert evaluations_behind(read_metrics(record.folder), 0) == {}
    record.evaluated(0, _evaluation(9.0))
    for round_, back in enumerate([None, None, 1, None], start=1):
        record.round_finished(_round(round_, **({} if back is None else {"rolled_back_to": back})))
    metrics = read_metrics(record.folder)
    found = [list(evaluations_behind(metrics, round_)) for round_ in range(5)]
    assert found == [[0], [0, 1], [0, 1, 2], [0, 1], [0, 1, 4]]
