"""What docs/operate.md has an operator type while the federation lives, as it stands there."""

import json
import ssl
import subprocess
from pathlib import Path

import pytest

from certs.issue import rotate
from federation.release_ledger import Release, append_release
from tests.container.cluster import SITES, Cluster

pytestmark = pytest.mark.container

_ONCE = ("run", "--rm", "--no-deps", "-T")
_VOLUMES = {"outputs": "server", "state": "superlink"}  # -> a service that has it


def test_sites_that_run_stay_when_the_certificate_is_renewed(cluster: Cluster, finished_run: str) -> None:
    rotate(cluster.certs, hosts=[])
    subprocess.run([cluster.folder / "docker" / "prepare.sh"], check=True)
    cluster.compose("restart", "superlink", "gateway", "exporter")
    assert _sites_of_one_round(cluster) == [*SITES]
    served = ssl.get_server_certificate(("127.0.0.1", cluster.gateway_port))
    assert served.split() == (cluster.certs / "superlink" / "server.crt").read_text().split()


def test_a_run_goes_on_from_the_checkpoint_that_it_was_taken_back_to(
    cluster: Cluster, finished_run: str
) -> None:
    command = ("python", "-m", "server.cli", "rollback", finished_run, "1", "--outputs", "/outputs")
    assert f"{finished_run} is back at round 1" in cluster.compose(*_ONCE, "server", *command)
    cluster.compose("up", "--detach", "--no-build", "run")
    assert cluster.wait_for_run() == finished_run
    metrics = json.loads(cluster.read(finished_run, "federated_metrics.json"))
    assert metrics["status"] == "finished"
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]
    assert [resumed["after_round"] for resumed in metrics["resumed"]] == [1]


def test_a_backup_is_restored_into_empty_volumes(cluster: Cluster, finished_run: str, tmp_path: Path) -> None:
    metrics = cluster.read(finished_run, "federated_metrics.json")
    cluster.compose("stop")
    for volume, service in _VOLUMES.items():
        pack = f"cd /{volume} && tar -c *"
        cluster.pack(tmp_path / f"{volume}.tar", *_ONCE, "--entrypoint", "sh", service, "-c", pack)
    cluster.compose("down", "--volumes")
    for volume, service in _VOLUMES.items():
        unpack = ("--entrypoint", "tar", service, "-C", f"/{volume}", "-x")
        cluster.unpack(tmp_path / f"{volume}.tar", *_ONCE, *unpack)
    ledger, kept = tmp_path / "site-a-ledger.jsonl", ("supernode-a", "/scratch/privacy_ledger.jsonl")
    append_release(ledger, Release("earlier", 1, ("site-a",), 1.0))
    cluster.unpack(ledger, *_ONCE, "--entrypoint", "tee", *kept)
    cluster.pack(tmp_path / "again.jsonl", *_ONCE, "--entrypoint", "cat", *kept)
    assert (tmp_path / "again.jsonl").read_bytes() == ledger.read_bytes()
    cluster.compose("up", "--detach", "--no-build")
    assert cluster.read(finished_run, "federated_metrics.json") == metrics
    assert "has finished; docker compose run --rm run --new" in cluster.end_of_run_service()
    assert _sites_of_one_round(cluster) == [*SITES]


def _sites_of_one_round(cluster: Cluster) -> list[str]:
    run = cluster.submit("one-round")
    cluster.wait_for(run, lambda event: event["event"] == "run_finished", 400)
    (sites,) = cluster.sites_by_round(run)
    return sites
