"""What SuperLink and a SuperNode refuse: other programs of the machine, a node that poses as another."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.runtime import RuntimeHttpClient

from server.deploy.local_cluster import LocalCluster
from server.superlink.control import ControlError, SuperLink, active_run, register_supernode
from tests.integration.conftest import free_port
from tests.integration.faults.rogue import Answer, Fleet
from tests.integration.membership import wait_for

pytestmark = pytest.mark.integration
SUPERLINK = 1


@pytest.fixture(scope="module")
def cluster(certs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("guard")
    sites = {"site-a": data / "site-a"}
    with LocalCluster(
        sites, data / "holdout", folder / "out", certs, free_port(), folder / "scratch"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def fleet(cluster: LocalCluster, certs: Path) -> Fleet:
    """Signed requests of a node whose key is registered."""
    keys = certs / "sites" / "site-b"
    register_supernode(cluster.superlink, (keys / "node.key.pub").read_text(), "site-b")
    return Fleet(int(cluster.superlink.address.rpartition(":")[2]), keys)


@pytest.mark.parametrize("sender", [SUPERLINK, "itself"])
def test_a_node_cannot_put_a_message_of_its_own_beside_the_replies(fleet: Fleet, sender: int | str) -> None:
    """Which SuperLink would hand to the ServerApp at its next question, as anybody's."""
    source = fleet.node.node_id if sender == "itself" else SUPERLINK
    content = RecordDict({"answer": ConfigRecord({"name": "site-a"})})
    metadata = Metadata(1, "", source, SUPERLINK, "", "1", 1.8e9, 60.0, "train")  # type: ignore[arg-type]
    message = Message(content, metadata=metadata)  # type: ignore[call-overload]
    contents = {id_: part.deflate() for id_, part in get_all_nested_objects(message).items()}
    with pytest.raises(httpx.HTTPStatusError) as raised:
        fleet.push(Answer(message, get_object_tree(message), contents))
    assert raised.value.response.status_code == 400


def test_the_control_api_refuses_whoever_lacks_its_secret(cluster: LocalCluster, tmp_path: Path) -> None:
    assert active_run(cluster.superlink) is None
    (tmp_path / "ca.crt").write_bytes(cluster.superlink.ca_certificate.read_bytes())
    (tmp_path / "control.secret").write_text("0" * 64)
    with pytest.raises(ControlError, match=r"HTTP 401; its secret is not that of .*: restart it after make"):
        active_run(SuperLink(cluster.superlink.address, tmp_path / "ca.crt"))


def test_a_supernode_gives_its_tasks_to_its_own_superexec_alone(cluster: LocalCluster) -> None:
    process = psutil.Process(cluster.process_id("site-a"))
    log = cluster.logs / "site-a.log"
    wait_for(lambda: "Starting Flower SuperExec" in log.read_text(), log)
    command = process.cmdline()
    address = f"127.0.0.1:{command[command.index('--port') + 1]}"
    authority = cluster.superlink.ca_certificate.read_bytes()
    stranger = RuntimeHttpClient.from_server_address(address, False, authority, [])
    with pytest.raises(httpx.HTTPStatusError) as raised:
        stranger.AcquireTask(AcquireTaskRequest())
    assert raised.value.response.status_code in (401, 403)
