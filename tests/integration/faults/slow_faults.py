"""`make faults`: those that Flower takes a minute to notice. Collected only if this file is named.

Needs root, for a small file system, and Debian's faketime, for a wrong clock.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from federation.config import parse_run_config
from server.control import run_status, submit_run
from server.records import read_metrics
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.faults.cluster import Fault, FaultyCluster, Outcome, events, run_with_faults
from tests.integration.faults.faults import AT_JOIN, SERVER, SITES, SUPERLINK, SURROUNDINGS
from tests.integration.faults.network import Network
from tests.integration.faults.table import write_table

pytestmark = pytest.mark.integration


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 MB."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)], check=True)
    yield folder
    shutil.copytree(folder, tmp_path / "record", ignore=shutil.ignore_patterns("filler"))
    subprocess.run(["umount", str(folder)], check=True)


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


def _survive(cluster: FaultyCluster, name: str, faults: Mapping[int, Fault], num_rounds: int) -> None:
    """Have a run of `num_rounds` go through `faults`, and put them into the table."""
    config = parse_run_config(TINY | {"run.name": name, "run.num_rounds": num_rounds}, "tests")
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
        run_id = submit_run(cluster.flwr_home, config)
        give_up_at = time.monotonic() + 180
        while not (status := run_status(cluster.flwr_home, run_id)).startswith("finished"):
            assert time.monotonic() < give_up_at
            time.sleep(2)
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


def _library(faketime: str) -> str:
    output = subprocess.run([faketime, "-f", "+1m", "env"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"^LD_PRELOAD=(\S+)$", output, re.MULTILINE)
    assert found, output
    return found.group(1)
