"""What SuperLink knows of nodes and runs, asked at intervals in the background for the exporter.

Flower's command line starts a Python process for each question, 1.5 s of a core; its own HTTP client is used
in this process instead, without the interceptor that ends the process on a version mismatch.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest
from flwr.supercore.control import ControlHttpClient

from federation.logs import get_logger

__all__ = ["SuperLinkState", "SuperLinkWatch", "ask_superlink"]

_SECONDS_BETWEEN_QUESTIONS = 15.0
# A node is online until two heartbeat intervals after its last heartbeat (flwr.supercore.constant).
_HEARTBEATS_BEFORE_OFFLINE = 2
_log = get_logger("server.superlink_state")


@dataclass(frozen=True)
class SuperLinkState:
    """One answer. Times are Unix seconds by SuperLink's clock."""

    up: bool
    response_seconds: float = 0.0
    nodes: dict[str, int] = field(default_factory=dict)  # status -> count
    runs: dict[str, int] = field(default_factory=dict)  # status -> count
    online: dict[str, bool] = field(default_factory=dict)  # by the name under which a key was registered
    last_seen: dict[str, float] = field(default_factory=dict)


def ask_superlink(address: str, ca_certificate: bytes) -> SuperLinkState:
    """Ask the SuperLink at `address` ("host:port") over TLS; any failure is an answer too: not up."""
    started = time.monotonic()
    try:
        client = ControlHttpClient.from_server_address(
            address, insecure=False, root_certificates=ca_certificate, interceptors=[]
        )
        try:
            nodes = list(client.ListNodes(ListNodesRequest()).nodes_info)
            runs = list(client.ListRuns(ListRunsRequest()).run_dict.values())
        finally:
            client.close()
    except Exception as error:  # whatever keeps SuperLink from answering, the exporter must go on
        _log.warning("SuperLink at %s does not answer: %s", address, error)
        return SuperLinkState(up=False)
    named = {node.name: node for node in nodes if node.name and node.status != "unregistered"}
    return SuperLinkState(
        up=True,
        response_seconds=time.monotonic() - started,
        nodes=dict(Counter(node.status for node in nodes)),
        runs=dict(Counter(run.status.sub_status or run.status.status for run in runs)),
        online={name: node.status == "online" for name, node in named.items()},
        last_seen={
            name: node.online_until - _HEARTBEATS_BEFORE_OFFLINE * node.heartbeat_interval
            for name, node in named.items()
            if node.HasField("online_until")
        },
    )


class SuperLinkWatch:
    """Asks every 15 seconds in a thread of its own, so that a scrape never waits for SuperLink."""

    def __init__(self, address: str, ca_certificate: Path) -> None:
        self._address, self._ca = address, ca_certificate.read_bytes()
        self.state = ask_superlink(self._address, self._ca)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_QUESTIONS)
            self.state = ask_superlink(self._address, self._ca)
