"""Who takes part: the join handshake, waiting for nodes, and sampling a round's participants."""

import math
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from federation.config import FederationConfig, RunConfig
from federation.dataset_description import ARM_DIM
from federation.errors import FederationError
from federation.logs import get_logger
from federation.messages import ANSWER, QUERY_JOIN, QUERY_SHUT_OUT, REASON, STATISTICS
from federation.simulated import check_one_kind
from federation.statistics import Statistics, check_statistics
from federation.versions import check_versions, versions
from federation.wire import record_to_statistics
from server.exchange import LateReplies, Patience, Reply, look, send
from server.records import RunRecord
from server.waiting import WaitReport

__all__ = ["Node", "NodeTable", "sample_nodes"]

_JOIN_DEADLINE_SECONDS = 120.0
_JOIN_GRACE_SECONDS = 30.0  # a round waits so long for a node that was asked to join, and no longer
_MOST_REFUSALS_IN_ROW = 3
_SECONDS_BETWEEN_LOOKS = 1.0
_MOST_CHARACTERS = 100
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # it ends up in logs, metrics and reports
_log = get_logger("server.nodes")


@dataclass(frozen=True)
class Node:
    """A node that joined, as it described itself."""

    node_id: int
    name: str
    fps: int
    episodes: int  # used
    frames: int  # of these
    cameras: tuple[str, ...]
    statistics: Statistics
    left_out: int = 0  # episodes that cannot be trained on
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    simulated: bool = False


class NodeTable:
    """The nodes of one run: every online node is asked once who it is, then known or shut out.

    One that has restarted is asked again: its data or its software may have changed. What is known of it
    counts until it answers, for it may only have been cut off and have no time to answer.
    """

    def __init__(
        self, grid: Grid, config: RunConfig, record: RunRecord, held_out: Mapping[str, bool] | None = None
    ) -> None:
        """`held_out`: of each data set that is evaluated on, whether it is simulated, as nodes' must be."""
        self._grid, self._config, self._record = grid, config, record
        self._held_out = dict(held_out or {})
        self.late = LateReplies(grid)  # of earlier rounds
        self._known: dict[int, Node] = {}
        self._asked_since: dict[int, str] = {}  # node id -> since when it had been online when it was asked
        self._asked: dict[int, float] = {}  # node id -> when, of those that have not answered yet
        self._inquiries: list[Iterator[Reply | None]] = []
        self._refused_in_row: dict[int, int] = {}
        self._shut_out: dict[int, str] = {}  # node id -> since when it had been online then
        self._denied: dict[int, str] = {}  # node id -> why, of those that were ever refused at the join
        self._registered: dict[int, str] = {}  # node id -> the name that its key was let in under

    def wait_for_nodes(self) -> dict[int, Node]:
        """The joined nodes that are online now and free, as soon as `min_nodes` joined ones are online.

        One that still works on an earlier round counts as online, and is asked nothing more. Nodes that came
        since the last call are asked to join first: late ones are welcome in any round. One that does not
        answer holds nobody up for longer than `_JOIN_GRACE_SECONDS`.

        Too few is waiting, not failing: sites may be off for a night. It is reported after
        `join_timeout_seconds`.
        """
        settings = self._config.federation
        report = WaitReport(self._record, settings.min_nodes, settings.join_timeout_seconds)
        while True:
            present = list(self._grid.get_nodes())
            online = {node.node_id: node.last_activated_at for node in present}
            self._registered = {node.node_id: node.name for node in present}
            self._ask_to_join(online)
            joined = {id_: node for id_, node in self._known.items() if id_ in online}
            busy = self.late.busy_nodes(online)
            free = {id_: node for id_, node in joined.items() if id_ not in busy}
            now = time.monotonic()
            is_expected = any(now - asked < _JOIN_GRACE_SECONDS for asked in self._asked.values())
            if len(joined) >= settings.min_nodes and len(free) >= settings.min_updates and not is_expected:
                report.enough()
                return free
            if len(joined) < settings.min_nodes:
                report.too_few(len(joined), self._denied_online(online))
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def count_refusals(self, refused: Mapping[str, str], accepted: Iterable[str]) -> None:
        """Leave a node out whose updates were refused three rounds in a row, until it restarts and rejoins.

        Args:
            refused: node name -> reason, of one round.
            accepted: names of the nodes with a good update; a missing node is neither.
        """
        since = {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}
        accepted = set(accepted)
        for node in list(self._known.values()):
            if node.name in accepted:
                self._refused_in_row.pop(node.node_id, None)
            if node.name not in refused:
                continue
            count = self._refused_in_row.get(node.node_id, 0) + 1
            self._refused_in_row[node.node_id] = count
            if count >= _MOST_REFUSALS_IN_ROW:
                del self._known[node.node_id], self._refused_in_row[node.node_id]
                self._shut_out[node.node_id] = since.get(node.node_id, "")
                reason = f"{count} updates in a row refused, the last because {refused[node.name]}"
                _log.warning("%s is left out until its SuperNode restarts: %s", node.name, reason)
                self._record.event("node_left_out", node=node.name, reason=reason)
                self._tell(node.node_id, reason)

    def _ask_to_join(self, online: Mapping[int, str]) -> None:
        for node_id, since in list(self._shut_out.items()):
            if online.get(node_id, since) != since:  # restarted, so perhaps put right
                del self._shut_out[node_id]
        current = {id_ for id_ in self._known if self._asked_since.get(id_) == online.get(id_)}
        strangers = sorted(online.keys() - current - self._shut_out.keys() - self._asked.keys())
        if strangers:
            patience = Patience(_JOIN_DEADLINE_SECONDS)
            pending = send(self._grid, strangers, RecordDict, QUERY_JOIN, "join", patience)
            self._inquiries.append(look(pending))
            self._asked |= dict.fromkeys(strangers, time.monotonic())
            self._asked_since |= {node_id: online[node_id] for node_id in strangers}
        for inquiry in list(self._inquiries):
            for reply in inquiry:
                if reply is None:
                    break
                del self._asked[reply.node_id]
                self._take_answer(reply, online)
            else:
                self._inquiries.remove(inquiry)

    def _take_answer(self, reply: Reply, online: Mapping[int, str]) -> None:
        if reply.missing:
            self._asked_since.pop(reply.node_id, None)
            return  # asked again at the next look
        try:
            if reply.content is None:
                raise FederationError(reply.error)
            node = _read_answer(reply.node_id, reply.content)
            self._check_name(node, online)
            check_one_kind({node.name: node.simulated}, self._held_out)
        except FederationError as error:
            self._known.pop(reply.node_id, None)
            self._shut_out[reply.node_id] = online.get(reply.node_id, "")
            self._denied[reply.node_id] = str(error)
            name = self._registered.get(reply.node_id, "")
            _log.warning("node %s refused: %s", name or reply.node_id, error)
            self._record.event("node_refused", node=name, node_id=str(reply.node_id), reason=str(error))
            if reply.content is not None:  # else it was the node that said so
                self._tell(reply.node_id, str(error))
            return
        self._known[node.node_id] = node
        _log.info("node %s joined: %d episodes, %d frames", node.name, node.episodes, node.frames)
        self._record.node_joined(node.name, _facts(node))

    def _denied_online(self, online: Mapping[int, str]) -> dict[str, str]:
        """Name or id of every node that is online and may not join -> why."""
        denied = [node_id for node_id in self._denied if node_id in self._shut_out and node_id in online]
        return {
            self._registered.get(node_id) or f"node {node_id}": self._denied[node_id] for node_id in denied
        }

    def _tell(self, node_id: int, reason: str) -> None:
        """Have the node's own log say why it takes no part. Nobody waits for its answer."""
        content = RecordDict({REASON: ConfigRecord({"text": reason})})
        send(self._grid, [node_id], lambda: content, QUERY_SHUT_OUT, "join", Patience(_JOIN_DEADLINE_SECONDS))

    def _check_name(self, node: Node, online: Mapping[int, str]) -> None:
        registered = self._registered.get(node.node_id)
        if registered and registered != node.name:  # else a site could pass for another that is away
            raise FederationError(
                f"the node calls itself {node.name}, and its key was registered as {registered}; "
                "use that name in its node configuration"
            )
        for other in list(self._known.values()):
            if other.name != node.name or other.node_id == node.node_id:
                continue
            if other.node_id in online:
                raise FederationError(f"the name {node.name} is taken by another node; give each its own")
            del self._known[other.node_id]  # the same site, back under a new key


def sample_nodes(nodes: Mapping[int, Node], config: FederationConfig, seed: int, round_: int) -> list[Node]:
    """This round's participants: `fraction_fit` of `nodes`, rounded up, in order of their names.

    Fair: those come first who were sampled least, had these nodes been there from the first round; who comes
    first among equals is drawn. Depends on the seed, the round and the nodes' names only, so a resumed run
    samples as one that was not interrupted.
    """
    by_name = {node.name: node for node in sorted(nodes.values(), key=lambda node: node.name)}
    count = math.ceil(config.fraction_fit * len(by_name))
    if count == len(by_name):
        return list(by_name.values())
    times_sampled = dict.fromkeys(by_name, 0)
    chosen: list[str] = []
    for earlier in range(1, round_ + 1):
        drawn = random.Random(f"{seed}/{earlier}").sample(list(by_name), len(by_name))
        chosen = sorted(drawn, key=times_sampled.__getitem__)[:count]
        for name in chosen:
            times_sampled[name] += 1
    return [by_name[name] for name in sorted(chosen)]


def _read_answer(node_id: int, content: RecordDict) -> Node:
    try:
        answer: Any = content[ANSWER]
        cameras, device = list(answer["cameras"]), answer["device"]
        texts = [answer["name"], *cameras, *answer["versions"], device]
        if not all(isinstance(t, str) and t.isprintable() and 0 < len(t) <= _MOST_CHARACTERS for t in texts):
            raise ValueError("a text")
        if not _NAME.fullmatch(answer["name"]):
            raise FederationError("the node's name must be of letters, digits, '.', '_' and '-'")
        installed = dict(part.split(" ", 1) for part in answer["versions"])
        check_versions(installed, versions())
        statistics = record_to_statistics(content.array_records[STATISTICS])
        frames = int(answer["frames"])
        check_statistics(statistics, ARM_DIM, frames)
        return Node(
            node_id=node_id,
            name=answer["name"],
            fps=int(answer["fps"]),
            episodes=int(answer["episodes"]),
            frames=frames,
            cameras=tuple(cameras),
            statistics=statistics,
            left_out=int(answer["left_out"]),
            versions=installed,
            device=device,
            simulated=_as_bool(answer["simulated"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FederationError(f"the node's answer lacks or garbles {error}; install this version") from None


def _as_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("simulated, which is true or false")
    return value


def _facts(node: Node) -> dict[str, Any]:
    return {
        "node_id": str(node.node_id),  # 64 bits: more than a JSON number holds
        "fps": node.fps,
        "episodes": node.episodes,
        "left_out": node.left_out,
        "frames": node.frames,
        "cameras": list(node.cameras),
        "versions": dict(node.versions),
        "device": node.device,
        "simulated": node.simulated,
    }
