"""A SuperLink of today on the database of the release before: `state` outlives the upgrade.

`superlink-1.41.sql` is what Flower 1.41.0 wrote: two keys let in, of which one node has been online, and two
runs of an app that does nothing, one stopped and one waiting. For the next upgrade make one like it with the
release that is about to go: start its SuperLink with --database, register, submit, stop it, dump the file.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.proto.control_pb2 import ListNodesRequest

from server.deploy.local_cluster import LocalCluster
from server.superlink.control import SuperLink, connect, run_status
from tests.integration.conftest import free_port
from tests.integration.superlink import with_database

pytestmark = pytest.mark.integration
OLD = Path(__file__).with_name("superlink-1.41.sql")
NODES = {"9914454989103993034": "offline", "3019679854281337838": "registered"}
RUNS = {"17164492641959897018": "finished:stopped", "4609435512727824056": "pending"}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "superlink.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(OLD.read_text(encoding="utf-8"))
    connection.close()
    return file


@pytest.fixture
def superlink(
    database: Path, certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SuperLink]:
    """The connection to an installed SuperLink that was started on the old database."""
    port = free_port()
    cluster = LocalCluster({}, tmp_path, tmp_path / "outputs", certs, port, tmp_path / "scratch")
    start = cluster._start
    monkeypatch.setattr(
        cluster,
        "_start",
        lambda name, command, **others: start(name, with_database(command, database), **others),
    )
    try:
        cluster._start_superlink()
        yield cluster.superlink
    finally:
        cluster._stop()


def _revision(database: Path) -> str:
    connection = sqlite3.connect(database)
    try:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    finally:
        connection.close()


def test_keys_and_runs_of_the_release_before_are_there(database: Path, superlink: SuperLink) -> None:
    client = connect(superlink)
    nodes = client.ListNodes(ListNodesRequest()).nodes_info
    client.close()
    assert {str(node.node_id): node.status for node in nodes} == NODES
    assert {run_id: run_status(superlink, run_id) for run_id in RUNS} == RUNS
    assert _revision(database) != "d90a2f91f23c"  # it was migrated
