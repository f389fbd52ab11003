"""Who takes part: the join handshake, waiting for nodes, and the suspension of those whose updates fail."""

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from federation.config import RunConfig
from federation.data.simulated import check_one_kind
from federation.errors import FederationError, RejectionCode, one_line
from federation.logs import get_logger
from federation.messages import JOIN_SECONDS, QUERY_JOIN, QUERY_SHUT_OUT, REASON
from federation.policy.identity import check_adapter, describe_adapter
from server.grid.calls import online_nodes
from server.grid.exchange import Exchange, Reply, WaitPolicy
from server.grid.late_replies import LateReplies
from server.join_answer import Node, node_facts, read_answer
from server.run.environment import folder_of
from server.run.records import RunRecord
from server.run.round_record import Rejection
from server.sampling import sample_size
from server.waiting import WaitReport

__all__ = ["NodeTable"]

_JOIN_GRACE_SECONDS = 30.0  # a round waits so long for a node that was asked to join, and no longer
_MAX_REJECTIONS_IN_ROW = 3
_MIN_SUSPENDED_ROUNDS, _MAX_SUSPENDED_ROUNDS = 3, 48  # the first time, and at most
_NO_STRIKES = (RejectionCode.NORM.label,)
_POLL_INTERVAL_SECONDS = 1.0
_log = get_logger("server.nodes")


class NodeTable:
    """The nodes of one run: every online node is asked once who it is, then known, or its join is denied.

    One that has restarted is asked again: its data or its software may have changed. What is known of it
    counts until it answers, for it may only have been cut off and have no time to answer.
    """

    def __init__(
        self, grid: Grid, config: RunConfig, record: RunRecord, held_out: Mapping[str, bool] | None = None
    ) -> None:
        """`held_out`: of each dataset that is evaluated on, whether it is simulated, as nodes' must be."""
        self._grid, self._config, self._record = grid, config, record
        self._held_out = dict(held_out or {})
        self.late = LateReplies(grid)  # of earlier rounds
        self._known: dict[int, Node] = {}
        self._asked_since: dict[int, str] = {}  # node id -> since when it had been online when it was asked
        self._asked: dict[int, float] = {}  # node id -> when at first, of those that have not answered yet
        self._waited_for: dict[int, float] = {}  # the same of those that have: none has a second grace
        self._pending: set[int] = set()  # of these, those whose answer is not given up yet
        self._inquiries: list[Iterator[Reply | None]] = []
        self._rejected_in_row: dict[int, int] = {}
        self._suspensions: dict[int, int] = {}  # node id -> how many since its last good update
        self._suspended_until: dict[int, int] = {}  # node id -> round in which it is tried again
        self._shut_out: dict[int, str] = {}  # node id -> since when it had been online then
        self._denied: dict[int, str] = {}  # node id -> why, of those that were ever denied to join
        self._registered: dict[int, str] = {}  # node id -> the name that its key is registered under

    def wait_for_nodes(self, check: Callable[[], None] = lambda: None) -> dict[int, Node]:
        """Return the joined nodes that are online and free, as soon as `min_nodes` joined ones are online.

        One that still works on an earlier round counts as online, and is asked nothing more. Nodes that came
        since the last call are asked to join first: late ones are welcome in any round. Those that do not
        answer hold nobody up for longer than `_JOIN_GRACE_SECONDS`.

        Too few is waiting, not failing: sites may be off for a night. It is reported after
        `join_timeout_seconds`.

        Args:
            check: called again and again, to end the wait by what it raises.
        """
        settings = self._config.federation
        report = WaitReport(self._record, settings.min_nodes, settings.join_timeout_seconds)
        enough_since = math.inf
        while True:
            check()
            present = online_nodes(self._grid)
            online = {node.node_id: node.last_activated_at for node in present}
            # Also of one that is gone when its answer is read: no node passes for another.
            self._registered |= {node.node_id: node.name for node in present}
            self._ask_to_join(online)
            joined = {id_: node for id_, node in self._known.items() if id_ in online}
            busy = self.late.busy_nodes(online)
            free = {id_: node for id_, node in joined.items() if id_ not in busy}
            now = time.monotonic()
            sampled = sample_size(len(free), settings)  # busy ones are free again by their deadline
            if len(joined) >= settings.min_nodes and sampled >= settings.min_updates:
                enough_since = min(enough_since, now)
                newest = max(self._asked.values(), default=-math.inf)  # each may use up the grace but once
                if now - min(newest, enough_since) >= _JOIN_GRACE_SECONDS:
                    report.enough()
                    return free
            if len(joined) < settings.min_nodes:
                report.too_few(len(joined), self._denied_online(online))
            time.sleep(_POLL_INTERVAL_SECONDS)

    def joined(self) -> set[str]:
        """Return the names of the nodes that joined, whether they are online or not."""
        return {node.name for node in self._known.values()}

    def count_rejections(
        self, round_: int, rejected: Mapping[str, Rejection], accepted: Collection[str]
    ) -> None:
        """Suspend a node whose updates were rejected three rounds in a row, or lift its suspension.

        One whose owner's rules forbid the round is suspended at once.

        After some rounds, or a restart of its SuperNode, it is tried again; rejected at once, it is suspended
        for twice as long. A rejection for its norm is no sign of a fault at the node, and is not counted. Nor
        is a node suspended that the others are too few without: then there would be no more rounds.

        Args:
            round_: that has just been completed.
            rejected: by the names of the nodes.
            accepted: names of the nodes with a good update; a missing node is neither.
        """
        for node_id in [id_ for id_, until in self._suspended_until.items() if until <= round_ + 1]:
            self._lift_suspension(node_id)
        since = {node.node_id: node.last_activated_at for node in online_nodes(self._grid)}
        for node in list(self._known.values()):
            if node.name in accepted:
                self._rejected_in_row.pop(node.node_id, None)
                self._suspensions.pop(node.node_id, None)
            rejection = rejected.get(node.name)
            if rejection is None or rejection.code in _NO_STRIKES:
                continue
            reason = rejection.reason
            count = self._rejected_in_row.get(node.node_id, 0) + 1
            self._rejected_in_row[node.node_id] = count
            is_owners_wish = rejection.code == RejectionCode.OWNER_RULE.label
            if (
                count < _MAX_REJECTIONS_IN_ROW
                and node.node_id not in self._suspensions
                and not is_owners_wish  # asked again, it would spend what its owner does not want to spend
            ):
                continue
            others = sum(id_ in since for id_ in self._known if id_ != node.node_id)
            if others < self._config.federation.min_nodes:
                _log.warning("%s is not suspended: too few nodes would be left (%s)", node.name, reason)
                continue
            why = (
                reason if is_owners_wish else f"{count} updates in a row rejected, the last because {reason}"
            )
            self._suspend(node, round_, why, since.get(node.node_id, ""))

    def note_holdings(self, clients: Mapping[str, Mapping[str, float]]) -> None:
        """Take over what nodes said in a round that they hold now: owners add recordings, and remove some.

        The normalisation stays that of the run.

        Args:
            clients: the metrics of good updates, by the names of the nodes.
        """
        for node in list(self._known.values()):
            told = clients.get(node.name, {})
            episodes = int(told.get("episodes", node.episodes))
            frames = int(told.get("frames", node.frames))
            if (episodes, frames) == (node.episodes, node.frames):
                continue
            self._known[node.node_id] = dataclasses.replace(node, episodes=episodes, frames=frames)
            _log.info("%s now holds %d episodes, %d frames", node.name, episodes, frames)
            self._record.node_changed(node.name, {"episodes": episodes, "frames": frames})

    def _suspend(self, node: Node, round_: int, reason: str, since: str) -> None:
        earlier = self._suspensions.get(node.node_id, 0)
        rounds = min(_MIN_SUSPENDED_ROUNDS * 2**earlier, _MAX_SUSPENDED_ROUNDS)
        until = round_ + rounds + 1
        self._suspensions[node.node_id] = earlier + 1
        self._suspended_until[node.node_id] = until
        self._shut_out[node.node_id] = since
        del self._known[node.node_id]
        _log.warning("%s is suspended until round %d or until it restarts: %s", node.name, until, reason)
        self._record.event("node_suspended", node=node.name, until_round=until, reason=reason)
        self._send_reason(node.node_id, f"until round {until}, or until its SuperNode restarts: {reason}")

    def _lift_suspension(self, node_id: int) -> None:
        """Have the node asked to join again, as if it had just come."""
        self._suspended_until.pop(node_id, None)
        self._shut_out.pop(node_id, None)

    def _ask_to_join(self, online: Mapping[int, str]) -> None:
        for node_id, since in list(self._shut_out.items()):
            if online.get(node_id, since) != since:  # restarted, so perhaps put right
                self._lift_suspension(node_id)
                self._rejected_in_row.pop(node_id, None)
                self._suspensions.pop(node_id, None)
        if sum(id_ in self._known for id_ in online) < self._config.federation.min_nodes:
            for node_id in list(self._suspended_until.keys() & online.keys()):  # better it than no round
                self._lift_suspension(node_id)
        current = {id_ for id_ in self._known if self._asked_since.get(id_) == online.get(id_)}
        strangers = sorted(online.keys() - current - self._shut_out.keys() - self._pending)
        if strangers:
            exchange = Exchange(self._grid, RecordDict, QUERY_JOIN, "join", WaitPolicy(JOIN_SECONDS))
            self._inquiries.append(exchange.send(strangers).poll_replies())
            self._pending.update(strangers)
            now = time.monotonic()
            self._asked = {id_: self._waited_for.get(id_, now) for id_ in strangers} | self._asked
            self._asked_since |= {node_id: online[node_id] for node_id in strangers}
        for inquiry in list(self._inquiries):
            for reply in inquiry:
                if reply is None:
                    break
                self._pending.remove(reply.node_id)
                self._add_answer(reply, online)
            else:
                self._inquiries.remove(inquiry)

    def _add_answer(self, reply: Reply, online: Mapping[int, str]) -> None:
        if reply.missing:
            self._asked_since.pop(reply.node_id, None)
            return  # asked again at the next poll
        self._waited_for[reply.node_id] = self._asked.pop(reply.node_id)
        try:
            if reply.content is None:
                raise FederationError(reply.error)
            node = read_answer(reply.node_id, reply.content)
            self._check_name(node, online)
            self._check_adapter(node)
            check_one_kind({node.name: node.simulated}, self._held_out)
        except FederationError as error:
            self._known.pop(reply.node_id, None)
            self._shut_out[reply.node_id] = online.get(reply.node_id, "")
            self._deny(reply.node_id, reason := one_line(str(error)))
            if reply.content is not None:  # else the node itself gave the reason
                self._send_reason(reply.node_id, f"until its SuperNode restarts: {reason}")
            return
        self._known[node.node_id] = node
        _log.info("node %s joined: %d episodes, %d frames", node.name, node.episodes, node.frames)
        self._record.node_joined(node.name, node_facts(node))

    def _deny(self, node_id: int, reason: str) -> None:
        """Record why a node may not join; once for each reason, however often its SuperNode restarts."""
        if self._denied.get(node_id) == reason:
            return
        self._denied[node_id] = reason
        name = self._registered.get(node_id, "")
        _log.warning("join of node %s denied: %s", name or node_id, reason)
        self._record.event("join_denied", node=name, node_id=str(node_id), reason=reason)

    def _denied_online(self, online: Mapping[int, str]) -> dict[str, str]:
        """Name or id of every node that is online and may not join -> why."""
        denied = [node_id for node_id in self._denied if node_id in self._shut_out and node_id in online]
        return {
            self._registered.get(node_id) or f"node {node_id}": self._denied[node_id] for node_id in denied
        }

    def _send_reason(self, node_id: int, reason: str) -> None:
        """Send the node, for its own log, why it takes no part. Nobody waits for its answer."""
        content = RecordDict({REASON: ConfigRecord({"text": reason})})
        policy = WaitPolicy(JOIN_SECONDS)
        Exchange(self._grid, lambda: content, QUERY_SHUT_OUT, "join", policy).send([node_id])

    def _check_adapter(self, node: Node) -> None:
        if self._config.policy.adapter != "none":
            ours = describe_adapter(self._config.policy, folder_of("FEDERATION_SCRATCH"))
            check_adapter(node.adapter, ours)

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
