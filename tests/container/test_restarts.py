"""Containers that go away in the middle of a run."""

import json
import time

import pytest

from tests.container.cluster import Cluster, docker, run_name

pytestmark = pytest.mark.container


def test_a_run_survives_restarts(cluster: Cluster, finished_run: str) -> None:
    faults = {
        1: [("restart", "superlink")],
        2: [
            ("kill", "gateway", "exporter"),
            ("start", "gateway", "exporter"),
            ("restart", "prometheus"),
        ],
        3: [("restart", "supernode-a")],  # SIGTERM: its message in flight is lost, and it is asked again
        4: [("kill", "supernode-b"), ("start", "supernode-b")],
    }
    run = cluster.submit("faults")
    command = ("--config=configs/faults.toml", "--detach")
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


def test_a_run_goes_on_after_its_server_was_restarted(cluster: Cluster, finished_run: str) -> None:
    cluster.compose("up", "--detach", "--no-build", "--force-recreate", "--no-deps", "run")
    assert "has finished; docker compose run --rm run --new" in cluster.end_of_run_service()
    container = cluster.compose("run", "--detach", "--no-deps", "run", "--new").split()[-1]
    give_up_at = time.monotonic() + 900
    run, restarted, metrics = "", False, {}
    while metrics.get("status") != "finished":
        logs = docker("logs", container)
        assert time.monotonic() < give_up_at, logs
        time.sleep(1)
        run = run or ("submitted as" in logs and run_name(logs)) or ""
        metrics = json.loads(cluster.read(run, "federated_metrics.json") or "{}") if run else {}
        if metrics.get("rounds") and not restarted:
            cluster.compose("restart", "server")
            restarted = True
    assert restarted
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]
    assert [resumed["after_round"] for resumed in metrics["resumed"]] == [1]
