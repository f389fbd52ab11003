"""With a proxy in the environment: nothing on this machine goes through it, the way to SuperLink does."""

import time
from pathlib import Path

import pytest

from certs.issue import issue_all
from server.deploy.local_cluster import LocalCluster
from server.superlink.control import online_sites
from tests.connect_proxy import ConnectProxy
from tests.integration.conftest import free_port

pytestmark = pytest.mark.integration
HOST = "fed.example.org"


class RemoteSite(LocalCluster):
    """A cluster whose site-b reaches SuperLink under a name that only the proxy knows."""

    def _start(self, name: str, command: list[str], *others: object, **more: object) -> None:
        if name == "site-b":
            address = command.index("--superlink") + 1
            command = [*command[:address], f"{HOST}:443", *command[address + 1 :]]
        super()._start(name, command, *others, **more)  # type: ignore[arg-type]


def _wait_for_nodes(cluster: LocalCluster, count: int) -> None:
    give_up_at = time.monotonic() + 240
    while len(online_sites(cluster.superlink)) < count:
        cluster.check_processes()
        assert time.monotonic() < give_up_at, (cluster.logs / "site-b.log").read_text()
        time.sleep(0.5)


def test_only_the_way_out_goes_through_the_proxy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certs, port = tmp_path / "certs", free_port()
    issue_all(certs, hosts=[HOST], sites=["site-a", "site-b"])
    sites = {name: data / name for name in ("site-a", "site-b")}
    with ConnectProxy({f"{HOST}:443": ("127.0.0.1", port)}) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        arguments = (data / "holdout", tmp_path / "outputs", certs, port, tmp_path / "scratch")
        with RemoteSite(sites, *arguments) as cluster:
            _wait_for_nodes(cluster, 2)
        assert proxy.asked
        assert set(proxy.asked) == {f"CONNECT {HOST}:443 HTTP/1.1"}
