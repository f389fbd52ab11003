"""An operator without arms: no site on this machine, one that is invited."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.cluster import Cluster
from tests.container.elsewhere import compose_site, site_elsewhere

pytestmark = pytest.mark.container


@pytest.fixture
def lonely_cluster(
    images: tuple[str, ...], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The containers of a machine without a site, up; the run is submitted and waits."""
    with Cluster(tmp_path_factory.mktemp("invited"), data, is_without_sites=True).up() as cluster:
        yield cluster


def test_a_run_waits_for_the_site_that_is_invited_and_ends_with_its_policy_there(
    lonely_cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    services = ["exporter", "gateway", "prometheus", "run", "server", "superlink"]
    assert sorted(lonely_cluster.services()) == services
    with site_elsewhere(lonely_cluster, data, tmp_path) as site:
        compose_site(site, "up", "--detach")
        name = lonely_cluster.wait_for_run()
        trained = [e["node"] for e in lonely_cluster.events(name) if e["event"] == "update_received"]
        assert trained == ["lab-b"]
        assert list((site / "site").rglob("policy/model.safetensors"))
