"""Containers that go away in the middle of a run."""

import json

import pytest

from tests.container.cluster import Cluster

pytestmark = pytest.mark.container


def test_a_run_survives_restarts(cluster: Cluster, finished_run: str) -> None:
    faults = {
        1: [("restart", "superlink")],
        2: [("restart", "gateway", "exporter", "prometheus")],
        3: [("restart", "supernode-a")],  # SIGTERM: its message in flight is lost, and it is asked again
        4: [("kill", "supernode-b"), ("start", "supernode-b")],
    }
    run = cluster.submit("faults")
    command = ("python", "-m", "server.submit", "--ca=/run/secrets/ca.crt", "--detach")
    command += ("--config=configs/faults.toml",)
    assert "no other is submitted" in cluster.compose("run", "--rm", "-T", "run", *command)
    for round_, commands in faults.items():
        cluster.wait_for(
            run, lambda event, r=round_: event["event"] == "round_started" and event["round"] == r, 300
        )
        for command in commands:
            cluster.compose(*command)
    cluster.wait_for(run, lambda event: event["event"] == "run_finished", 400)
    metrics = json.loads(cluster.read(run, "federated_metrics.json"))
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2, 3, 4, 5]
    assert all(entry["clients"] for entry in metrics["rounds"])
    assert sorted(metrics["rounds"][-1]["clients"]) == ["site-a", "site-b"]
