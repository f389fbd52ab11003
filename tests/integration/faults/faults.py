"""The faults, each with what brings back what it took."""

import contextlib
import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from tests.conftest import TINY
from tests.integration.faults.cluster import Fault, FaultyCluster, events, wait_for
from tests.integration.superlink import kill_before_answer

_TOO_FEW_BYTES = 2 * 10**9  # of addresses: enough to join, too few to load torch


def _begins(event: dict) -> bool:
    return bool(event["event"] == "run_started")


def _round_sent(event: dict) -> bool:
    return bool(event["event"] == "round_started")


def _first_update(event: dict) -> bool:
    return bool(event["event"] == "update_received")


def _has_trained(cluster: FaultyCluster, round_: int) -> bool:
    """Whether site-a has trained its last step of the round."""
    trained = {"round": round_, "step": TINY["training.local_steps"]}
    with contextlib.suppress(FileNotFoundError):
        return trained.items() <= json.loads(cluster.progress_file("site-a").read_text()).items()
    return False


def _wait_for_upload(cluster: FaultyCluster, folder: Path) -> None:
    """Return when site-a has trained its last step of this round and is about to send its update."""
    round_ = events(folder)[-1]["round"]
    give_up_at = time.monotonic() + 240
    while not _has_trained(cluster, round_):
        assert time.monotonic() < give_up_at, round_
        time.sleep(0.02)


def _wait_for_evaluation(cluster: FaultyCluster, folder: Path) -> None:
    """Return when both updates of the round are in."""
    wait_for(folder, _all_updates_are_in)
    time.sleep(0.2)


def _all_updates_are_in(events: list[dict]) -> bool:
    last = [event["event"] for event in events if event.get("round") == events[-1].get("round")]
    return last.count("update_received") == 2


def _let_run_until(process: psutil.Process, condition: Callable[[], bool], slice_seconds: float) -> None:
    """Let a process run a moment at a time until `condition` holds; leave it stopped, ready to be killed."""
    give_up_at = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < give_up_at, process
        process.send_signal(signal.SIGCONT)
        time.sleep(slice_seconds)
        process.send_signal(signal.SIGSTOP)


def _kill_in_checkpoint(cluster: FaultyCluster, folder: Path) -> None:
    """Kill the ServerApp while it writes a checkpoint."""
    server_app = cluster.app("serverapp", "superexec")
    checkpoints = folder / "checkpoints"
    before = set(checkpoints.iterdir())
    _wait_for_evaluation(cluster, folder)
    _let_run_until(server_app, lambda: set(checkpoints.iterdir()) != before, 0.001)
    server_app.kill()


def _kill_in_upload(cluster: FaultyCluster, folder: Path) -> None:
    """Kill the ClientApp of site-a between its last step and its reply."""
    client_app = cluster.app("clientapp", "site-a")
    round_ = events(folder)[-1]["round"]
    _let_run_until(client_app, lambda: _has_trained(cluster, round_), 0.02)
    client_app.kill()


def _end(
    cluster: FaultyCluster,
    folder: Path,
    name: str,
    number: signal.Signals = signal.SIGKILL,
    away: float = 1.0,
    after: Callable[[FaultyCluster, Path], None] | None = None,
) -> None:
    """Take SuperLink, SuperExec or a SuperNode away for some seconds."""
    if after:
        after(cluster, folder)
    cluster.kill(name, number)
    time.sleep(away)
    cluster.start_again(name)


def _kill_superlink_before_answer(cluster: FaultyCluster, folder: Path, request: str) -> None:
    """Kill SuperLink when it has done next what a SuperNode asked, before it says so; back after 5 s."""
    kill_before_answer(cluster.database, request)
    cluster.wait_for_end("superlink", seconds=240)
    time.sleep(5)
    cluster.start_again("superlink")


def _kill_supernode(cluster: FaultyCluster, folder: Path) -> float:
    """It comes back at once, and is refused until its lease of a minute is over."""
    cluster.app("clientapp", "site-a")
    cluster.kill("site-a")
    killed = time.time()
    cluster.start_again_when_let_in("site-a", seconds=240)
    return killed


def _end_app(
    cluster: FaultyCluster,
    folder: Path,
    kind: str,
    parent: str,
    number: signal.Signals = signal.SIGKILL,
    after: Callable[[FaultyCluster, Path], None] | None = None,
) -> None:
    """End the ServerApp, or the ClientApp of a site. Flower or the supervisor starts the next one."""
    process = cluster.app(kind, parent)
    if after:
        after(cluster, folder)
    process.send_signal(number)


def _cut_network(cluster: FaultyCluster, folder: Path, seconds: float) -> None:
    assert cluster.network
    cluster.network.cut(seconds)


def _slow_network(cluster: FaultyCluster, folder: Path) -> None:
    assert cluster.network
    cluster.network.delay_seconds, cluster.network.loss = 0.2, 0.1


def _cut_network_in_training(cluster: FaultyCluster, folder: Path) -> None:
    """Cut both sites off for longer than SuperLink waits for their heartbeats, while they train."""
    for site in ("site-a", "site-b"):
        _wait_for_training(cluster, folder, site)
    _cut_network(cluster, folder, 95)


def _wait_for_training(cluster: FaultyCluster, folder: Path, site: str) -> None:
    """Return when the site has trained its first step of this round."""
    round_ = events(folder)[-1]["round"]
    give_up_at = time.monotonic() + 240
    while not _works_on(cluster, site, round_):
        assert time.monotonic() < give_up_at, site
        time.sleep(0.02)


def _works_on(cluster: FaultyCluster, site: str, round_: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return bool(json.loads(cluster.progress_file(site).read_text())["round"] == round_)
    return False


def _take_both_sites_away(cluster: FaultyCluster, folder: Path, seconds: float) -> None:
    """Take them away between two rounds, so that the next one finds nobody."""
    server_app = cluster.app("serverapp", "superexec")
    _let_run_until(server_app, lambda: _all_updates_are_in(events(folder)), 0.02)
    for site in ("site-a", "site-b"):
        cluster.kill(site, signal.SIGTERM)
    server_app.resume()
    time.sleep(seconds)
    for site in ("site-a", "site-b"):
        cluster.start_again(site)


def _starve(cluster: FaultyCluster, folder: Path) -> None:
    """Let the ClientApps of site-a have too little memory to train, until the site is left out for it."""
    server = cluster.fork_server("site-a")
    _, most = server.rlimit(psutil.RLIMIT_AS)
    server.rlimit(psutil.RLIMIT_AS, (_TOO_FEW_BYTES, most))
    wait_for(folder, lambda seen: any(event["event"] == "node_suspended" for event in seen))
    server.rlimit(psutil.RLIMIT_AS, (most, most))


def _kill_fork_server(cluster: FaultyCluster, folder: Path) -> None:
    cluster.fork_server("site-a").kill()


def _kill_fork_server_after_fork(cluster: FaultyCluster, folder: Path) -> None:
    """Its fork trains on."""
    _wait_for_training(cluster, folder, "site-a")
    _kill_fork_server(cluster, folder)


def _kill_fork_server_in_fork(cluster: FaultyCluster, folder: Path) -> None:
    """Kill it while SuperExec waits for the fork that it has asked for."""
    server = cluster.fork_server("site-a")
    server.suspend()
    time.sleep(5)  # within a second SuperNode has the request and SuperExec asks
    server.kill()


def _wait_for_spoilt_reply(cluster: FaultyCluster, folder: Path) -> None:
    """Return when the rogue site has begun with its reply of this round."""
    round_ = events(folder)[-1]["round"]
    give_up_at = time.monotonic() + 240
    while f"train {round_}: " not in (cluster.logs / "site-c.log").read_text():
        assert time.monotonic() < give_up_at, round_
        time.sleep(0.1)


def _full_disk(cluster: FaultyCluster, folder: Path) -> None:
    """Fill what holds the outputs, a small file system of its own; make room again after the run failed."""
    server_app = cluster.app("serverapp", "superexec")
    filler = cluster.outputs / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    server_app.wait(240)
    filler.unlink()


_TERM = signal.SIGTERM
_client_app = partial(_end_app, kind="clientapp", parent="site-a")
_server_app = partial(_end_app, kind="serverapp", parent="superexec")
_superlink = partial(_end, name="superlink")
_superexec = partial(_end, name="superexec")
_supernode = partial(_end, name="site-a", number=_TERM)


def _terminate_training_supernode(cluster: FaultyCluster, folder: Path) -> None:
    cluster.app("clientapp", "site-a")
    _supernode(cluster, folder)


QUICK = (
    Fault(
        "SuperNode: SIGTERM, back after 1 s",
        "in training",
        _round_sent,
        _terminate_training_supernode,
        "site-a",
    ),
    Fault(
        "SuperLink: kill -9, away 5 s",
        "as it hands out the request of a round",
        _round_sent,
        partial(_kill_superlink_before_answer, request="pull_messages"),
    ),
    Fault("ServerApp: kill -9", "in aggregation", _first_update, _server_app),
)
# Each strikes a run of its own: there is one join in a run.
AT_JOIN = (
    Fault("SuperLink: kill -9, away 5 s", "at join", _begins, partial(_superlink, away=5)),
    Fault("SuperNode: SIGTERM, back after 1 s", "at join", _begins, _supernode, "site-a"),
    Fault("SuperNode: kill -9, restarted always", "at join", _begins, _kill_supernode, "site-a"),
    Fault("ClientApp: kill -9", "at join", _begins, _client_app, "site-a"),
    Fault("ServerApp: kill -9", "at join", _begins, _server_app),
    Fault("SuperExec: kill -9, back after 1 s", "at join", _begins, _superexec),
    Fault("Fork server: kill -9", "at join", _begins, _kill_fork_server, "site-a"),
)
# Each of these strikes one round of one run, in this order. What strikes in evaluation comes last: its round
# ends all the same, and only the next one shows that it has recovered.
SITES = (
    Fault("SuperNode: kill -9, restarted always", "in training", _round_sent, _kill_supernode, "site-a"),
    Fault(
        "SuperNode: SIGTERM, back after 1 s",
        "in upload",
        _round_sent,
        partial(_supernode, after=_wait_for_upload),
        "site-a",
    ),
    Fault(
        "ClientApp: kill -9, as out of memory does",
        "in training",
        _round_sent,
        partial(_client_app, after=partial(_wait_for_training, site="site-a")),
        "site-a",
    ),
    Fault("ClientApp: kill -9", "as it starts", _round_sent, partial(_client_app, parent="site-b"), "site-b"),
    Fault(
        "Fork server: kill -9",
        "while it is asked for a fork",
        _round_sent,
        _kill_fork_server_in_fork,
        "site-a",
    ),
    Fault("Fork server: kill -9", "in training", _round_sent, _kill_fork_server_after_fork, "site-a"),
    Fault(  # of the other site: one that fails three rounds in a row is left out for some
        "ClientApp: SIGTERM",
        "in training",
        _round_sent,
        partial(_client_app, parent="site-b", number=_TERM, after=partial(_wait_for_training, site="site-b")),
        "site-b",
    ),
    Fault("ClientApp: kill -9", "in upload", _round_sent, _kill_in_upload, "site-a"),
    Fault(
        "SuperNode: SIGTERM, back after 1 s",
        "in evaluation",
        _first_update,
        partial(_supernode, after=_wait_for_evaluation),
        "site-a",
    ),
)
SERVER = (
    Fault("ServerApp: SIGTERM", "in training", _round_sent, partial(_server_app, number=_TERM)),
    Fault("ServerApp: kill -9", "in upload", _round_sent, partial(_server_app, after=_wait_for_upload)),
    Fault(
        "ServerApp: kill -9", "in evaluation", _first_update, partial(_server_app, after=_wait_for_evaluation)
    ),
    Fault("ServerApp: kill -9", "in checkpoint", _first_update, _kill_in_checkpoint),
    Fault("SuperExec: kill -9, back after 1 s", "in training", _round_sent, _superexec),
    Fault(
        "SuperExec: SIGTERM, back after 1 s",
        "in aggregation",
        _first_update,
        partial(_superexec, number=_TERM),
    ),
)
SUPERLINK = (
    Fault(
        "SuperLink: SIGTERM, back after 1 s", "in training", _round_sent, partial(_superlink, number=_TERM)
    ),
    Fault("SuperLink: kill -9, away 5 s", "in training", _round_sent, partial(_superlink, away=5)),
    Fault(
        "SuperLink: kill -9, away 5 s",
        "as it takes a part of a reply",
        _round_sent,
        partial(_kill_superlink_before_answer, request="push_object"),
    ),
    Fault(
        "SuperLink: kill -9, away 15 s",
        "in upload",
        _round_sent,
        partial(_superlink, away=15, after=_wait_for_upload),
    ),
    Fault("SuperLink: kill -9, away 5 s", "in aggregation", _first_update, partial(_superlink, away=5)),
    Fault("SuperLink: kill -9, away 95 s", "in training", _round_sent, partial(_superlink, away=95)),
    Fault(
        "SuperLink: kill -9, away 5 s",
        "in evaluation",
        _first_update,
        partial(_superlink, away=5, after=_wait_for_evaluation),
    ),
)
GAP = Fault(
    "network: cut for 95 s, longer than the lease", "in training", _round_sent, _cut_network_in_training
)
AWAY = Fault(
    "both SuperNodes: SIGTERM, away 60 s, four times the join timeout",
    "between rounds",
    _first_update,
    partial(_take_both_sites_away, seconds=60),
)
STARVED = Fault(
    "ClientApp: out of memory three rounds in a row", "in training", _round_sent, _starve, "site-a"
)
# What a rogue site does, round by round; see `rogue.py`. It hides behind a registered key.
ROGUE = {
    "withheld": Fault("reply: a part is withheld", "in upload", _round_sent, _wait_for_spoilt_reply),
    "huge": Fault("reply: 300 MB in honest parts", "in upload", _round_sent, _wait_for_spoilt_reply),
}
SURROUNDINGS = (
    Fault("network: cut for 15 s", "in training", _round_sent, partial(_cut_network, seconds=15)),
    Fault("network: cut for 95 s", "in upload", _first_update, partial(_cut_network, seconds=95)),
    Fault("disk of the outputs: full", "in training", _round_sent, _full_disk),
    # The last: it stays so until the run ends.
    Fault("network: 200 ms delay, one read in ten late", "from here on", _round_sent, _slow_network),
)
