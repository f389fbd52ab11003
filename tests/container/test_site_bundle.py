"""A site elsewhere: its owner makes a key, is invited and starts it; the operator shuts it out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.cluster import Cluster
from tests.container.elsewhere import compose_site, operate, site_elsewhere, wait_for_logs

pytestmark = pytest.mark.container


@pytest.fixture
def site(cluster: Cluster, data: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of lab-b, which is invited."""
    with site_elsewhere(cluster, data, tmp_path) as folder:
        yield folder


def test_a_site_elsewhere_checks_joins_and_is_shut_out(
    cluster: Cluster, finished_run: str, site: Path
) -> None:
    doctor = compose_site(site, "run", "--rm", "-T", "supernode", "doctor")
    assert "this site is ready" in doctor
    assert "/data/kitchen" in doctor

    compose_site(site, "up", "--detach")
    wait_for_logs(site, "SuperNode ID", 60)
    operate(cluster, "revoke", "lab-b")
    assert not (cluster.certs / "invited" / "lab-b").exists()
    assert (site / "site" / "node.key").stat().st_mode & 0o777 == 0o600
    compose_site(site, "restart")
    wait_for_logs(site, "code: 2004", 60)


def test_the_doctor_of_a_site_says_what_is_wrong(cluster: Cluster, site: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = (site / ".env").read_text().splitlines()
    settings = [f"DATASET={empty}" if line.startswith("DATASET=") else line for line in settings]
    (site / ".env").write_text("\n".join(settings) + "\n")
    with pytest.raises(AssertionError, match=r"meta/info\.json"):
        compose_site(site, "run", "--rm", "-T", "supernode", "doctor")
