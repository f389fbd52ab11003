"""The ServerApp's own decisions; whole runs: tests/integration."""

import shutil
from pathlib import Path

import pytest

from federation.config import RunConfig, parse_run_config
from federation.errors import DatasetError
from server import app
from server.evaluation.datasets import check_samples, find_evaluation_datasets
from server.run.recorded import read_metrics
from server.run.records import RunRecord
from tests.conftest import TINY
from tests.synthetic import split_video


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(tmp_path, "run-1", RunConfig())


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
    monkeypatch.setenv("FEDERATION_SCRATCH", str(tmp_path / "none yet"))
    config = parse_run_config(TINY, "tests")
    with pytest.raises(DatasetError, match="holdout: the pictures of the camera top differ in size"):
        check_samples(config, *find_evaluation_datasets(config))


def test_the_policy_of_the_run_before_is_not_put_in_the_place_of_the_one_to_start_from() -> None:
    assert app._brings_former(parse_run_config({}, "tests"))
    assert not app._brings_former(parse_run_config({"run.deliver": "never"}, "tests"))
    assert not app._brings_former(parse_run_config({"policy.pretrained": "run:demo-1"}, "tests"))
