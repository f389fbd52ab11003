"""What SuperLink knows of nodes and runs, asked at intervals in the background for the exporter."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest

from federation.errors import one_line
from federation.logs import get_logger
from server.superlink.control import MAX_RUNS, SuperLink, connect

__all__ = ["SuperLinkState", "SuperLinkWatch", "ask_superlink"]

_POLL_INTERVAL_SECONDS = 15.0
_TIMEOUT_SECONDS = 5.0  # Flower's own 30 would show a SuperLink that hangs as up for as long
# A node is online until two heartbeat intervals after its last heartbeat (flwr.supercore.constant).
_HEARTBEATS_BEFORE_OFFLINE = 2
_log = get_logger("server.monitoring.superlink")


@dataclass(frozen=True)
class SuperLinkState:
    """One answer. Times are Unix seconds by SuperLink's clock."""

    up: bool
    error: str = ""  # why it is not
    response_seconds: float = 0.0
    nodes: dict[str, int] = field(default_factory=dict)  # status -> count
    runs: dict[str, int] = field(default_factory=dict)  # status -> count
    online: dict[str, bool] = field(default_factory=dict)  # by the name under which a key was registered
    last_seen: dict[str, float] = field(default_factory=dict)


def ask_superlink(superlink: SuperLink) -> SuperLinkState:
    """Ask `superlink` over TLS; any failure is an answer too: not up."""
    started = time.monotonic()
    try:
        client = connect(superlink, _TIMEOUT_SECONDS)
        try:
            nodes = list(client.ListNodes(ListNodesRequest()).nodes_info)
            runs = list(client.ListRuns(ListRunsRequest(limit=MAX_RUNS)).run_dict.values())
        finally:
            client.close()
    except Exception as error:  # whatever keeps SuperLink from answering, the exporter must go on
        return SuperLinkState(up=False, error=one_line(error))
    # A site that was given a new key has two nodes of its name: the one heard of last is it.
    named = {
        node.name: node
        for node in sorted(nodes, key=lambda node: node.online_until)
        if node.name and node.status != "unregistered"
    }
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

    def __init__(self, superlink: SuperLink) -> None:
        self._superlink = superlink
        self.state = SuperLinkState(up=True)
        self.poll()
        threading.Thread(target=self._watch, daemon=True).start()

    def poll(self) -> None:
        """Ask now; a change from up to down or back is logged, not every answer."""
        before, self.state = self.state, ask_superlink(self._superlink)
        if before.up and not self.state.up:
            _log.warning("SuperLink at %s does not answer: %s", self._superlink.address, self.state.error)
        elif self.state.up and not before.up:
            _log.info("SuperLink at %s answers again", self._superlink.address)

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL_INTERVAL_SECONDS)
            self.poll()
