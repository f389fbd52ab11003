"""Processes are taken away in the middle of a run; nothing that was complete is lost, and nothing changes.

The faults that Flower takes a minute to notice are in `slow_faults.py`: make faults.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from federation.config import RunConfig, parse_run_config
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.faults.cluster import FaultyCluster, Outcome, run_with_faults
from tests.integration.faults.faults import QUICK
from tests.integration.faults.table import write_table

pytestmark = pytest.mark.integration
ROUNDS = len(QUICK)  # one fault in each


def _config(name: str) -> RunConfig:
    # Error feedback at the sites and momentum on the server: a round done twice would show.
    changes = {"run.name": name, "run.num_rounds": ROUNDS, "aggregation.strategy": "fedavgm"}
    return parse_run_config(TINY | changes, "tests")


@pytest.fixture(scope="module")
def runs(
    certs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[Outcome]]:
    """The folders of a run that nothing happened to and of one with faults, and their outcomes."""
    outputs = tmp_path_factory.mktemp("faults")
    sites = {name: data / name for name in ("site-a", "site-b")}
    scratch = outputs / "scratch"
    with FaultyCluster(sites, data / "holdout", outputs, certs, free_port(), scratch) as cluster:
        run_with_faults(cluster, outputs, _config("undisturbed"), {})
        faults = dict(enumerate(QUICK, start=1))
        outcomes = run_with_faults(cluster, outputs, _config("disturbed"), faults)
    write_table(outcomes)
    return outputs / "undisturbed", outputs / "disturbed", outcomes


def test_no_completed_round_is_lost(runs: tuple[Path, Path, list[Outcome]]) -> None:
    _, disturbed, outcomes = runs
    metrics = json.loads((disturbed / "federated_metrics.json").read_text())
    assert metrics["status"] == "finished"
    assert [entry["round"] for entry in metrics["rounds"]] == list(range(1, ROUNDS + 1))
    assert [outcome.completed_rounds_lost for outcome in outcomes] == [0] * len(outcomes)
    assert [resumed["after_round"] for resumed in metrics["resumed"]] == [ROUNDS - 1]


def test_every_site_took_part_in_every_round(runs: tuple[Path, Path, list[Outcome]]) -> None:
    metrics = json.loads((runs[1] / "federated_metrics.json").read_text())
    assert [sorted(entry["clients"]) for entry in metrics["rounds"]] == [["site-a", "site-b"]] * ROUNDS


def test_the_disturbed_run_ends_with_the_same_weights_bit_for_bit(
    runs: tuple[Path, Path, list[Outcome]],
) -> None:
    undisturbed, disturbed, _ = runs
    last = f"checkpoints/round_{ROUNDS:04d}.safetensors"
    expected, weights = load_file(undisturbed / last), load_file(disturbed / last)
    assert expected.keys() == weights.keys()
    assert all(weights[name].equal(tensor) for name, tensor in expected.items())
