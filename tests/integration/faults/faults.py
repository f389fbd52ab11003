"""The faults, each with what brings back what it took."""

import signal
import time

from tests.integration.faults.cluster import Fault, FaultyCluster


def _round_sent(event: dict) -> bool:
    return bool(event["event"] == "round_started")


def _first_update(event: dict) -> bool:
    return bool(event["event"] == "update_received")


def _terminate_supernode(cluster: FaultyCluster) -> None:
    cluster.app("clientapp", "site-a")
    cluster.kill("site-a", signal.SIGTERM)
    time.sleep(1)
    cluster.start_again("site-a")


def _kill_supernode(cluster: FaultyCluster) -> None:
    cluster.app("clientapp", "site-a")
    cluster.kill("site-a")
    cluster.start_again_when_let_in("site-a", seconds=120)


def _kill_client_app(cluster: FaultyCluster) -> None:
    cluster.app("clientapp", "site-b").kill()


def _kill_server_app(cluster: FaultyCluster) -> None:
    cluster.app("serverapp", "superexec").kill()


def _kill_superexec(cluster: FaultyCluster) -> None:
    cluster.kill("superexec")
    time.sleep(2)
    cluster.start_again("superexec")


def _superlink_away(cluster: FaultyCluster, seconds: float) -> None:
    cluster.kill("superlink")
    time.sleep(seconds)
    cluster.start_again("superlink")


QUICK = (
    Fault("SuperNode: SIGTERM, back after 1 s", "in training", _round_sent, _terminate_supernode),
    Fault("SuperLink: kill -9, away 5 s", "in training", _round_sent, lambda c: _superlink_away(c, 5)),
    Fault("ServerApp: kill -9", "in aggregation", _first_update, _kill_server_app),
)
SLOW = (
    Fault("SuperNode: kill -9, restarted always", "in training", _round_sent, _kill_supernode),
    Fault("ClientApp: kill -9, as out of memory does", "in training", _round_sent, _kill_client_app),
    Fault("SuperExec: kill -9, back after 2 s", "in training", _round_sent, _kill_superexec),
    Fault("SuperLink: kill -9, away 15 s", "in upload", _first_update, lambda c: _superlink_away(c, 15)),
    Fault("SuperLink: kill -9, away 95 s", "in training", _round_sent, lambda c: _superlink_away(c, 95)),
)
