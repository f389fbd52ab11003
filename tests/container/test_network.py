"""Sites whose network is cut, or slow and lossy, in the middle of a run."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.container.cluster import REPOSITORY, SITES, Cluster, docker, image_named

pytestmark = pytest.mark.container
_PROXY = """
import time
from network import Network
with Network(8443, target=8443, host="0.0.0.0", target_host="gateway") as network:
    network.delay_seconds, network.loss = 0.2, 0.1
    print("listens", flush=True)
    while True:
        time.sleep(60)
"""


@pytest.fixture
def bad_network(cluster: Cluster) -> Iterator[None]:
    """The way from site-b to the gateway: 200 ms in each direction, one read in ten late."""
    name = f"{cluster.project}-proxy"
    code = REPOSITORY / "tests" / "integration" / "faults" / "network.py"
    place = ["--network", f"{cluster.project}_sites", "--read-only", "--user", "10001:10001"]
    mount = ["--volume", f"{code}:/proxy/network.py:ro", "--env", "PYTHONPATH=/proxy"]
    docker("run", "--detach", "--name", name, *place, *mount, image_named("client"), "python", "-c", _PROXY)
    try:
        give_up_at = time.monotonic() + 240
        while "listens" not in docker("logs", name):
            assert time.monotonic() < give_up_at, docker("logs", name)
            time.sleep(0.2)
        (network,) = json.loads(docker("inspect", name))[0]["NetworkSettings"]["Networks"].values()
        hosts = {"services": {"supernode-b": {"extra_hosts": [f"gateway:{network['IPAddress']}"]}}}
        override = cluster.folder / "bad-network.json"
        override.write_text(json.dumps(hosts))
        cluster.compose("-f", str(override), "up", "--detach", "--no-build", "--no-deps", "supernode-b")
        yield
    finally:
        cluster.compose("up", "--detach", "--no-build", "--no-deps", "supernode-b")
        docker("rm", "--force", name)


def test_a_site_cut_off_for_95_seconds_takes_part_in_the_round(cluster: Cluster, finished_run: str) -> None:
    container = cluster.container("supernode-b")
    (network,) = container["NetworkSettings"]["Networks"]
    run = cluster.submit("one-round")
    cluster.wait_for(run, lambda event: event["event"] == "round_started", 300)
    docker("network", "disconnect", network, container["Id"])
    time.sleep(95)
    docker("network", "connect", network, container["Id"])
    cluster.wait_for(run, lambda event: event["event"] == "run_finished", 400)
    assert cluster.sites_by_round(run) == [[*SITES]]


def test_a_site_behind_a_slow_and_lossy_network_takes_part_in_the_round(
    cluster: Cluster, finished_run: str, bad_network: None
) -> None:
    run = cluster.submit("one-round")
    cluster.wait_for(run, lambda event: event["event"] == "run_finished", 400)
    assert cluster.sites_by_round(run) == [[*SITES]]


def test_nothing_here_goes_through_a_proxy_that_docker_hands_to_containers(
    cluster: Cluster, finished_run: str
) -> None:
    nowhere = "http://127.0.0.1:9"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    proxies = [argument for name in names for argument in ("-e", f"{name}={nowhere}")]
    printed = cluster.compose("run", "--rm", "-T", "--no-deps", *proxies, "supernode-a", "doctor")
    assert "health" in printed
    assert "this site is ready" in printed
