"""The faults, each with what brings back what it took."""

import contextlib
import signal
import time

from tests.integration.faults.cluster import Fault, FaultyCluster, wait_for

SLOW_RUN = "slow"  # the run that the slow faults happen to


def _begins(event: dict) -> bool:
    return bool(event["event"] == "run_started")


def _round_sent(event: dict) -> bool:
    return bool(event["event"] == "round_started")


def _first_update(event: dict) -> bool:
    return bool(event["event"] == "update_received")


def _evaluated(event: dict) -> bool:
    return bool(event["event"] == "evaluated")


def _terminate_supernode(cluster: FaultyCluster) -> None:
    cluster.app("clientapp", "site-a")
    cluster.kill("site-a", signal.SIGTERM)
    time.sleep(1)
    cluster.start_again("site-a")


def _kill_supernode(cluster: FaultyCluster) -> None:
    cluster.app("clientapp", "site-a")
    cluster.kill("site-a")
    cluster.start_again_when_let_in("site-a", seconds=240)


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


def _kill_evaluating_server_app(cluster: FaultyCluster) -> None:
    def all_updates_are_in(events: list[dict]) -> bool:
        last = [e["event"] for e in events if e.get("round") == events[-1].get("round")]
        return last.count("update_received") == 2

    wait_for(cluster.outputs / SLOW_RUN, all_updates_are_in)
    time.sleep(0.5)
    _kill_server_app(cluster)


def _cut_network(cluster: FaultyCluster, seconds: float) -> None:
    assert cluster.network
    cluster.network.cut(seconds)


def _slow_network(cluster: FaultyCluster) -> None:
    assert cluster.network
    cluster.network.delay_seconds, cluster.network.loss = 0.2, 0.1


def _full_disk(cluster: FaultyCluster) -> None:
    """Fill what holds the outputs, a small file system of its own; make room again after the run failed."""
    server_app = cluster.app("serverapp", "superexec")
    filler = cluster.outputs / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    server_app.wait(120)
    filler.unlink()


QUICK = (
    Fault("SuperNode: SIGTERM, back after 1 s", "in training", _round_sent, _terminate_supernode),
    Fault("SuperLink: kill -9, away 5 s", "in training", _round_sent, lambda c: _superlink_away(c, 5)),
    Fault("ServerApp: kill -9", "in aggregation", _first_update, _kill_server_app),
)
SLOW = (
    Fault("SuperLink: kill -9, away 5 s", "at join", _begins, lambda c: _superlink_away(c, 5)),
    Fault("SuperNode: kill -9, restarted always", "in training", _round_sent, _kill_supernode),
    Fault("ClientApp: kill -9, as out of memory does", "in training", _round_sent, _kill_client_app),
    Fault("SuperExec: kill -9, back after 2 s", "in training", _round_sent, _kill_superexec),
    Fault("SuperLink: kill -9, away 15 s", "in upload", _first_update, lambda c: _superlink_away(c, 15)),
    Fault("SuperLink: kill -9, away 95 s", "in training", _round_sent, lambda c: _superlink_away(c, 95)),
    Fault("ServerApp: kill -9", "in evaluation", _first_update, _kill_evaluating_server_app),
    Fault("ServerApp: kill -9", "in checkpoint", _evaluated, _kill_server_app),
    Fault("network: cut for 15 s", "in training", _round_sent, lambda c: _cut_network(c, 15)),
    Fault("network: cut for 95 s", "in upload", _first_update, lambda c: _cut_network(c, 95)),
    Fault("disk of the outputs: full", "in training", _round_sent, _full_disk),
    # The last: it stays so until the run ends.
    Fault("network: 200 ms delay, one read in ten late", "from here on", _round_sent, _slow_network),
)
