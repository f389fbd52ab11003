"""`make faults`: those that Flower takes a minute to notice. Collected only if this file is named.

Needs root, for a small file system, and Debian's faketime, for a wrong clock.
"""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from federation.config import parse_run_config
from server.run.recorded import read_metrics
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.faults.cluster import Fault, FaultyCluster, Outcome, events, run_with_faults
from tests.integration.faults.faults import (
    AT_JOIN,
    AWAY,
    GAP,
    ROGUE,
    SERVER,
    SITES,
    STARVED,
    SUPERLINK,
    SURROUNDINGS,
)
from tests.integration.faults.network import Network
from tests.integration.faults.table import write_table
from tests.synthetic import record_dataset

pytestmark = pytest.mark.integration
_SPARE_BYTES = 100e6  # by which the ServerApp may grow while somebody sends it 300 MB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MB."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)], check=True)
    yield folder
    shutil.copytree(folder, tmp_path / "record", ignore=shutil.ignore_patterns("filler"))
    # Lazily: a ServerApp ends a moment after the SuperExec that started it.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def cluster(certs: Path, data: Path, tmp_path: Path, small_disk: Path) -> Iterator[FaultyCluster]:
    """Two sites behind a network that can be cut; outputs on a small disk."""
    sites = {name: data / name for name in ("site-a", "site-b")}
    port = free_port()
    with (
        Network(port + 7, target=port) as network,
        FaultyCluster(
            sites, data / "holdout", small_disk, certs, port, tmp_path / "scratch", network=network
        ) as cluster,
    ):
        yield cluster


def _survive(
    cluster: FaultyCluster, name: str, faults: Mapping[int, Fault], num_rounds: int, **changes: object
) -> None:
    """Have a run of `num_rounds` go through `faults`, and put them into the table."""
    config = parse_run_config(TINY | {"run.name": name, "run.num_rounds": num_rounds} | changes, "tests")
    outcomes = run_with_faults(cluster, cluster.outputs, config, faults)
    write_table(outcomes)
    metrics = read_metrics(cluster.outputs / name)
    assert metrics["status"] == "finished"
    assert [entry["round"] for entry in metrics["rounds"]] == list(range(1, num_rounds + 1))
    assert all(entry["clients"] for entry in metrics["rounds"])
    assert [outcome.completed_rounds_lost for outcome in outcomes] == [0] * len(outcomes)


@pytest.mark.parametrize(
    "faults", [SITES, SERVER, SUPERLINK, SURROUNDINGS], ids=["sites", "server", "superlink", "surroundings"]
)
def test_no_completed_round_is_lost(cluster: FaultyCluster, faults: Sequence[Fault]) -> None:
    # One round more than faults: the last of them shows its recovery there at the latest.
    _survive(cluster, "disturbed", dict(enumerate(faults, start=1)), len(faults) + 1)


def test_a_run_begins_in_spite_of_faults_at_join(cluster: FaultyCluster) -> None:
    for number, fault in enumerate(AT_JOIN):
        _survive(cluster, f"join-{number}", {0: fault}, num_rounds=1)


@pytest.mark.parametrize("offset", ["+10m", "-10m"])
def test_a_site_whose_clock_is_wrong_is_kept_out_and_the_others_train(
    certs: Path, data: Path, tmp_path: Path, offset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faketime = shutil.which("faketime")
    assert faketime, "install faketime"
    config = parse_run_config(
        TINY | {"run.name": "skewed", "run.num_rounds": 1, "federation.min_nodes": 1}, "tests"
    )
    cluster = FaultyCluster(
        {"site-a": data / "site-a"}, data / "holdout", tmp_path, certs, free_port(), tmp_path / "scratch"
    )
    with cluster:
        cluster._register("site-b")
        wrong = {"LD_PRELOAD": _library(faketime), "FAKETIME": offset}
        with monkeypatch.context() as environment:
            for name, value in wrong.items():
                environment.setenv(name, value)
            cluster.start_supernode("site-b", data / "site-b")
        status = cluster.finish(config)
        log = (cluster.logs / "site-b.log").read_text(errors="replace")
        assert status == "finished:completed", events(tmp_path / "skewed")
    joined = [event["node"] for event in events(tmp_path / "skewed") if event["event"] == "node_joined"]
    assert joined == ["site-a"]
    # What is behind by more than the certificates' age does not get as far as a signature.
    (reason,) = re.findall(
        r"SuperLink refuses this site's signature: the clock here [^\n]*|"
        r"certificate verify failed: certificate is not yet valid",
        log,
    )
    sees = f"the site does not join, the others train; its own log: {reason}"
    fault = Fault(f"clock of a site: wrong by {offset}", "at join", lambda _: True, lambda *_: None)
    write_table([Outcome(fault, 0, None, sees)])


def test_a_site_trains_a_round_once_though_it_is_cut_off_for_longer_than_its_lease(
    cluster: FaultyCluster,
) -> None:
    _survive(cluster, "gap", {1: GAP}, num_rounds=1)
    for site in ("site-a", "site-b"):
        log = (cluster.logs / f"{site}.log").read_text(errors="replace")
        assert len(re.findall(r"round 1 \| trained \d+ steps", log)) == 1, log[-3000:]


def test_a_run_waits_for_sites_that_stay_away_longer_than_it_means_to(cluster: FaultyCluster) -> None:
    _survive(cluster, "away", {1: AWAY}, num_rounds=2, **{"federation.join_timeout_seconds": 15})
    seen = [event["event"] for event in events(cluster.outputs / "away")]
    after_round = seen[seen.index("round_finished") :]
    assert {"waiting_for_nodes", "waiting_ended"} <= set(after_round)
    assert not {"run_failed", "run_resumed"} & set(seen)


def test_a_site_that_was_out_of_memory_three_times_is_tried_again(cluster: FaultyCluster) -> None:
    _survive(cluster, "starved", {1: STARVED}, num_rounds=7, **{"federation.min_nodes": 1})
    rounds = read_metrics(cluster.outputs / "starved")["rounds"]
    assert [sorted(entry["refused"]) for entry in rounds[:3]] == [["site-a"]] * 3
    assert [sorted(entry["clients"]) for entry in rounds] == [["site-b"]] * 6 + [["site-a", "site-b"]]


def test_a_rogue_site_ends_no_round_and_fills_no_memory(cluster: FaultyCluster, data: Path) -> None:
    faults = dict(enumerate(ROGUE.values(), start=1))
    plan = {str(round_): way for round_, way in enumerate(ROGUE, start=1)}
    cluster.start_rogues(data / "site-b", {"site-c": plan}, parse_run_config(TINY, "tests").policy)
    changes = {"federation.min_nodes": 3, "federation.quorum": 0.5, "federation.straggler_factor": 1}
    with _memory_of_server_app(cluster) as bytes_at:
        _survive(cluster, "rogue", faults, len(faults) + 1, **changes)
    rounds = read_metrics(cluster.outputs / "rogue")["rounds"]
    assert rounds[0]["missing"] == ["site-c"]
    assert [sorted(entry["refused"]) for entry in rounds] == [[], ["site-c"], []]
    assert "site-c" in rounds[-1]["clients"]
    assert all({"site-a", "site-b"} <= entry["clients"].keys() for entry in rounds)
    seen = events(cluster.outputs / "rogue")
    began = {e["round"]: e["time"] for e in seen if e["event"] == "round_started"}
    ended = {e["round"]: e["time"] for e in seen if e["event"] == "round_finished"}
    honest = {
        e["round"]: e["time"] for e in seen if e["event"] == "update_received" and e["node"] != "site-c"
    }
    assert all(ended[round_] - honest[round_] < 75 for round_ in began)
    before = max(size for when, size in bytes_at if when < began[2])
    assert max(size for _, size in bytes_at) - before < _SPARE_BYTES


def test_a_run_that_is_resumed_with_another_hold_out_undoes_nothing(
    certs: Path, data: Path, tmp_path: Path
) -> None:
    holdout = Path(shutil.copytree(data / "holdout", tmp_path / "holdout"))
    sites = {name: data / name for name in ("site-a", "site-b")}
    config = parse_run_config(TINY | {"run.name": "resumed", "run.num_rounds": 1}, "tests")
    folder = tmp_path / "resumed"
    with FaultyCluster(sites, holdout, tmp_path, certs, free_port(), tmp_path / "scratch") as cluster:
        assert cluster.finish(config) == "finished:completed"
        before = read_metrics(folder)["rounds"][0]["evaluation"]["policy_loss"]
        shutil.rmtree(holdout)
        record_dataset(holdout, seed=2, reach=150)
        began = time.time()
        config = replace(config, run=replace(config.run, num_rounds=2, resume=True))
        assert cluster.finish(config) == "finished:completed", events(folder)[-3:]
    rounds = read_metrics(folder)["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2]
    assert not any("rolled_back_to" in entry for entry in rounds)
    assert rounds[1]["evaluation"]["policy_loss"] > config.evaluation.rollback_ratio * before
    seen = events(folder)
    (dropped,) = [event for event in seen if event["event"] == "evaluations_dropped"]
    recovered = next(e["time"] for e in seen if e["event"] == "update_received" and e["time"] > began)
    fault = Fault("hold-out: another one when resumed", "between runs", lambda _: True, lambda *_: None)
    sees = f"{dropped['reason']}: the best checkpoint is evaluated anew"
    write_table([Outcome(fault, 0, recovered - began, sees)])


@contextmanager
def _memory_of_server_app(cluster: FaultyCluster) -> Iterator[list[tuple[float, int]]]:
    """Unix time and resident bytes of the ServerApp, five times a second while this is entered."""
    seen: list[tuple[float, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            with suppress(AssertionError, psutil.Error):
                seen.append((time.time(), cluster.app("serverapp", "superexec").memory_info().rss))

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield seen
    finally:
        ended.set()


def _library(faketime: str) -> str:
    output = subprocess.run([faketime, "-f", "+1m", "env"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"^LD_PRELOAD=(\S+)$", output, re.MULTILINE)
    assert found, output
    return found.group(1)
