"""`make faults`: those that Flower takes a minute to notice. Collected only if this file is named."""

from pathlib import Path

import pytest

from federation.config import parse_run_config
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.faults.cluster import FaultyCluster, events, run_with_faults
from tests.integration.faults.faults import SLOW
from tests.integration.faults.table import write_table

pytestmark = pytest.mark.integration


def test_no_completed_round_is_lost(certs: Path, data: Path, tmp_path: Path) -> None:
    changes = {"run.name": "slow", "run.num_rounds": 1 + len(SLOW), "federation.min_nodes": 1}
    config = parse_run_config(TINY | changes, "tests")
    sites = {name: data / name for name in ("site-a", "site-b")}
    with FaultyCluster(
        sites, data / "holdout", tmp_path, certs, free_port(), tmp_path / "scratch"
    ) as cluster:
        outcomes = run_with_faults(cluster, tmp_path, config, dict(enumerate(SLOW, start=2)))
    write_table(outcomes)
    finished = [event["round"] for event in events(tmp_path / "slow") if event["event"] == "round_finished"]
    assert finished == list(range(1, config.run.num_rounds + 1))
    assert [outcome.completed_rounds_lost for outcome in outcomes] == [0] * len(outcomes)
