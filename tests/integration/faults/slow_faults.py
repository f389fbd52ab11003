"""`make faults`: those that Flower takes a minute to notice. Collected only if this file is named.

Needs root, for a small file system, and Debian's faketime, for a wrong clock.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.config import parse_run_config
from server.control import run_status, submit_run
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.faults.cluster import FaultyCluster, events, run_with_faults
from tests.integration.faults.faults import SLOW, SLOW_RUN
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
    subprocess.run(["umount", str(folder)], check=True)


def test_no_completed_round_is_lost(certs: Path, data: Path, tmp_path: Path, small_disk: Path) -> None:
    changes = {"run.name": SLOW_RUN, "run.num_rounds": len(SLOW), "federation.min_nodes": 1}
    config = parse_run_config(TINY | changes, "tests")
    sites = {name: data / name for name in ("site-a", "site-b")}
    port = free_port()
    with (
        Network(port + 7, target=port) as network,
        FaultyCluster(
            sites, data / "holdout", small_disk, certs, port, tmp_path / "scratch", network=network
        ) as cluster,
    ):
        outcomes = run_with_faults(cluster, small_disk, config, dict(enumerate(SLOW)))
    write_table(outcomes)
    shutil.copytree(small_disk / SLOW_RUN, tmp_path / SLOW_RUN)
    finished = {e["round"] for e in events(small_disk / SLOW_RUN) if e["event"] == "round_finished"}
    assert finished == set(range(1, config.run.num_rounds + 1))
    assert [outcome.completed_rounds_lost for outcome in outcomes] == [0] * len(outcomes)


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
        wrong = {"LD_PRELOAD": _library(faketime), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        with monkeypatch.context() as environment:
            for name, value in wrong.items():
                environment.setenv(name, value)
            cluster.start_supernode("site-b", data / "site-b")
        run_id = submit_run(cluster.flwr_home, config)
        give_up_at = time.monotonic() + 180
        while not (status := run_status(cluster.flwr_home, run_id)).startswith("finished"):
            assert time.monotonic() < give_up_at
            time.sleep(2)
        log = (cluster.logs / "site-b.log").read_text()
        assert status == "finished:completed", events(tmp_path / "skewed")
    print(log[-1500:])
    joined = [event["node"] for event in events(tmp_path / "skewed") if event["event"] == "node_joined"]
    assert joined == ["site-a"]


def _library(faketime: str) -> str:
    output = subprocess.run([faketime, "-f", "+1m", "env"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"^LD_PRELOAD=(\S+)$", output, re.MULTILINE)
    assert found, output
    return found.group(1)
