import json
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from federation.config import RunConfig
from server.exporter import RunCollector
from server.records import METRICS_FILE, RunRecord
from tests.unit.test_records import _evaluation, _round

CLIENT = {
    "policy_loss": 1.5,
    "proximal_loss": 0.1,
    "grad_norm": 2.0,
    "update_norm": 0.5,
    "train_seconds": 3.0,
    "num_examples": 12,
    "skipped_frames": 2,
}


def _scrape(outputs: Path) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(RunCollector(outputs))
    lines = generate_latest(registry).decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")
    }


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    record = RunRecord(tmp_path, "run-1", RunConfig())
    facts = {"episodes": 3, "frames": 9, "fps": 30, "cameras": ["top"]}
    record.node_joined("site-a", facts)
    record.node_joined("site-b", facts)
    record.evaluated(0, _evaluation(2.0))
    record.round_finished(_round(1, clients={"site-a": CLIENT, "site-b": CLIENT}))
    record.round_finished(_round(2, clients={"site-a": CLIENT}, missing=["site-b"]))
    return record


def test_it_shows_where_the_run_is_and_how_good_it_is(record: RunRecord, tmp_path: Path) -> None:
    values = _scrape(tmp_path)
    assert values["federation_up"] == 1
    assert values["federation_round"] == 2
    assert values['federation_run_state{run="run-1",state="running"}'] == 1
    assert values['federation_policy_loss{dataset="all"}'] == 0.5
    assert values["federation_policy_loss_best"] == 0.5
    assert values['federation_phase_seconds_total{phase="train"}'] == 4.0
    assert values["federation_participants"] == 1
    assert values['federation_transferred_bytes_total{direction="up"}'] == 2e6


def test_it_counts_by_node(record: RunRecord, tmp_path: Path) -> None:
    values = _scrape(tmp_path)
    assert values['federation_node_num_examples_total{node="site-a"}'] == 24
    assert values['federation_node_num_examples_total{node="site-b"}'] == 12
    assert values['federation_node_missing_total{node="site-b"}'] == 1
    assert values['federation_node_policy_loss{node="site-b"}'] == 1.5


def test_a_restarted_exporter_shows_the_same(record: RunRecord, tmp_path: Path) -> None:
    assert _scrape(tmp_path) == _scrape(tmp_path)


def test_without_a_run_it_is_up_and_says_there_is_none(tmp_path: Path) -> None:
    assert _scrape(tmp_path) == {"federation_up": 0}


def test_a_torn_record_is_not_the_end_of_it(record: RunRecord, tmp_path: Path) -> None:
    (record.folder / METRICS_FILE).write_text("{")
    assert _scrape(tmp_path) == {"federation_up": 0}


def test_the_newest_run_is_shown(record: RunRecord, tmp_path: Path) -> None:
    newer = RunRecord(tmp_path, "run-2", RunConfig())
    future = json.loads((newer.folder / METRICS_FILE).read_text())
    assert future["run"] == "run-2"
    os.utime(record.folder / METRICS_FILE, (1, 1))
    assert 'federation_run_state{run="run-2",state="running"}' in _scrape(tmp_path)
