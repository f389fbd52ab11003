"""Sending one message to each of several nodes and taking the replies one by one, as they arrive.

Flower's `send_and_receive` returns when all replies are in and then holds them all, sleeps three seconds
between polls, and does not say which reply never came. Here each reply is handed over and dropped before
the next is fetched, and every node that was asked is accounted for: by its reply, its error, or as missing.
Replies are fetched as they arrive at SuperLink (`server/grid/replies.py`), so a slow or an unreadable one
costs its sender and nobody else.

Flower 1.42 never delivers a message again that a SuperNode took and lost in its own restart, and tells
nobody. SuperLink does know since when each node is online, so a node that came back is asked again. Two
others look the same: one that was cut off for longer than its lease, and one that says so that it may have
lost a message or its reply (`client/supernode/lost_messages.py`). What was trained is kept there, and sent.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from federation.errors import RejectionCode, one_line
from federation.logs import get_logger
from server.grid.calls import online_nodes, push_messages
from server.grid.error_codes import LOST, rejection_code
from server.grid.replies import (
    QUERY_LIMITS,
    LostReplyError,
    ReplyDownload,
    ReplyLimits,
    UnusableReplyError,
    claim_reply,
)

__all__ = ["Exchange", "OpenMessage", "Reply", "WaitPolicy"]

_POLL_INTERVAL_SECONDS = 0.5
_COLLECTION_INTERVAL_SECONDS = 2.0
_RETURN_SECONDS = 75.0  # how long an offline node may take to come back
_MIN_WAIT_SECONDS = 30.0  # nobody is a straggler before: Flower itself takes 6 s and more
_MAX_TIMES_ASKED = 3
_log = get_logger("server.grid.exchange")


@dataclass(frozen=True)
class WaitPolicy:
    """How long replies are waited for: never past the deadline, less once a quorum is in."""

    deadline_seconds: float
    quorum: float = 1.0  # share of the asked nodes
    straggler_factor: float = math.inf  # times the median reply time, for the rest
    patient_with: frozenset[int] = frozenset()  # nodes that are waited for until the deadline all the same
    doubted: frozenset[int] = frozenset()  # nodes that do not count among the asked ones


@dataclass(frozen=True)
class Reply:
    """What came of asking one node."""

    node_id: int
    content: RecordDict | None  # None: see `error`
    error: str  # empty if there is content
    missing: bool  # no reply at all
    seconds: float  # since it was asked, for the last time
    code: RejectionCode = RejectionCode.NODE_FAILED  # of the error


@dataclass(frozen=True)
class OpenMessage:
    """A message that an exchange ended without a reply to."""

    node_id: int
    online_since: str | None  # of the node, when it was asked; None: it was offline
    expires_at: float  # monotonic; the node itself stops then
    keeps_busy: bool  # the node may still be at work on it


class Exchange:
    """One message to each of several nodes, and their replies.

    Args:
        make_content: called once for all nodes and again for a node that has to be asked again, so that
            nobody holds the content in between.
        limits: of each reply.
        before_push: called with the nodes that are about to be asked, each time.
        address: makes what one node gets of the content that all get.
    """

    def __init__(
        self,
        grid: Grid,
        make_content: Callable[[], RecordDict],
        message_type: str,
        group_id: str,
        policy: WaitPolicy,
        limits: ReplyLimits = QUERY_LIMITS,
        before_push: Callable[[Sequence[int]], None] = lambda node_ids: None,
        address: Callable[[RecordDict, int], RecordDict] = lambda content, node_id: content,
    ) -> None:
        self._grid, self._make_content, self._policy, self._limits = grid, make_content, policy, limits
        self._message_type, self._group_id = message_type, group_id
        self._before_push, self._address = before_push, address
        self._started = time.monotonic()
        self._node_ids: dict[str, int] = {}  # message id -> node asked
        self._online_since: dict[int, str | None] = {}  # as it was when asked
        self._asked_at: dict[int, float] = {}
        self._times_asked: dict[int, int] = {}
        self._not_sent: list[int] = []
        self._waiting: set[int] = set()
        self._offline_since: dict[int, float] = {}
        self._reply_seconds: dict[int, float] = {}  # of the replies that count for the quorum, by node
        self._downloads: dict[str, ReplyDownload] = {}  # message id -> its reply, arriving
        self._timed_out: set[int] = set()  # nodes that may still be at work

    def send(self, node_ids: Sequence[int]) -> "Exchange":
        """Send the message to each node. Call it once."""
        self._not_sent = self._push(node_ids, self._online())
        self._waiting = set(node_ids) - set(self._not_sent)
        return self

    def replies(self) -> Iterator[Reply]:
        """Yield exactly one `Reply` for each node asked, in order of arrival; wait for them."""
        collected = time.monotonic()
        for reply in self.poll_replies():
            if reply is not None:
                if time.monotonic() - collected > _COLLECTION_INTERVAL_SECONDS:
                    gc.collect()  # httpx ties its responses to themselves: their bytes would stay for long
                    collected = time.monotonic()
                yield reply
                del reply  # before the next one is fetched
            else:
                time.sleep(_POLL_INTERVAL_SECONDS)

    def poll_replies(self) -> Iterator[Reply | None]:
        """Yield what `replies` does, and None where there is nothing yet; the caller waits, or works on."""
        for node_id in self._not_sent:
            yield Reply(node_id, None, "the message could not be sent to this node", True, 0.0)
        counted = {*self._waiting, *self._not_sent} - self._policy.doubted
        quorum = max(1, math.ceil(self._policy.quorum * len(counted)))
        while self._waiting:
            arrived = False
            for message_id, node_id in list(self._node_ids.items()):
                if node_id not in self._waiting:
                    continue
                # One at a time: the next reply is not fetched before this one is folded in and dropped.
                reply, is_lost = self._take(message_id, node_id)
                arrived = arrived or is_lost or reply is not None
                if reply is None:
                    continue  # a node whose message or reply was lost is asked again below, if it is there
                self._waiting.discard(node_id)
                if reply.content is not None:
                    self._reply_seconds[node_id] = reply.seconds
                yield reply
                del reply
            if arrived:
                continue
            if time.monotonic() - self._started >= self._policy.deadline_seconds:
                break
            if len(self._reply_seconds) >= quorum:
                yield from self._drop_stragglers()
            yield from self._follow_restarts()
            yield None
        for node_id in sorted(self._waiting):
            seconds = self._policy.deadline_seconds
            yield self._time_out(node_id, f"no reply within {seconds:.0f} s", seconds)

    def discount(self, node_id: int) -> None:
        """Let the reply of a node, which proved useless, make up no quorum."""
        self._reply_seconds.pop(node_id, None)

    def ignore_time(self, node_id: int) -> None:
        """Let the reply of a node count, and tell nothing of how long the others may take."""
        self._reply_seconds[node_id] = math.inf

    def open_messages(self) -> dict[str, OpenMessage]:
        """Return by message id what has no reply now that the exchange is over."""
        expires_at = self._started + self._policy.deadline_seconds
        # A node that has replied has only a message left that it was sent twice: it answers at once.
        return {
            message_id: OpenMessage(
                node_id, self._online_since[node_id], expires_at, keeps_busy=node_id in self._timed_out
            )
            for message_id, node_id in self._node_ids.items()
        }

    def _take(self, message_id: str, node_id: int) -> tuple[Reply | None, bool]:
        """Return the reply to one message, None if incomplete, and whether it, or the message, is lost."""
        try:
            download = self._downloads.get(message_id)
            if download is None:
                download = claim_reply(self._grid, message_id, self._limits)
                if download is None:
                    return None, False
                self._downloads[message_id] = download
            message = download.advance()
            if message is None:
                return None, False
            # An error made by SuperLink carries SuperLink's node id, so the asked node is looked up.
            reply = _reply(message, node_id, self._seconds_since_asked(node_id))
            is_lost = message.has_error() and message.error.code in LOST
        except UnusableReplyError as error:
            seconds = self._seconds_since_asked(node_id)
            reply, is_lost = Reply(node_id, None, str(error), False, seconds, error.code), False
        except LostReplyError:
            is_lost = True
        self._downloads.pop(message_id, None)
        del self._node_ids[message_id]
        return (None, True) if is_lost else (reply, False)

    def _seconds_since_asked(self, node_id: int) -> float:
        return time.monotonic() - self._asked_at[node_id]

    def _time_out(self, node_id: int, reason: str, seconds: float) -> Reply:
        """Wait no longer for a node. What it has begun to upload is dropped, so that it is free again."""
        uploads = [id_ for id_ in self._downloads if self._node_ids[id_] == node_id]
        for message_id in uploads:
            self._downloads.pop(message_id).discard()
            del self._node_ids[message_id]
        if uploads:
            reason += ", its upload was under way"
        else:
            self._timed_out.add(node_id)
        return Reply(node_id, None, reason, True, seconds)

    def _drop_stragglers(self) -> Iterator[Reply]:
        """Wait no longer for nodes that take many times as long as the others."""
        seconds = list(self._reply_seconds.values())
        # Infinite where too few say how long it takes: then the deadline is the limit.
        limit = max(self._policy.straggler_factor * statistics.median(seconds), _MIN_WAIT_SECONDS)
        for node_id in sorted(self._waiting - self._policy.patient_with):
            if self._seconds_since_asked(node_id) > limit:
                self._waiting.discard(node_id)
                reason = f"no reply within {limit:.0f} s while {len(seconds)} nodes have replied"
                yield self._time_out(node_id, reason, limit)

    def _follow_restarts(self) -> Iterator[Reply]:
        """Ask the nodes again that came back; give up those that stay away."""
        online = self._online()
        now = time.monotonic()
        for node_id in sorted(self._waiting):
            if node_id not in online:
                if now - self._offline_since.setdefault(node_id, now) > _RETURN_SECONDS:
                    reason = f"it went offline and did not come back within {_RETURN_SECONDS:.0f} s"
                    yield self._give_up(node_id, reason)
                continue
            self._offline_since.pop(node_id, None)
            is_open = node_id in self._node_ids.values()
            known = self._online_since[node_id]
            if is_open and known is None:  # the message waited for it at SuperLink
                self._online_since[node_id] = online[node_id]
            elif is_open and known == online[node_id]:
                continue
            elif self._times_asked[node_id] < _MAX_TIMES_ASKED:
                _log.warning("node %d was away, may have lost its message and is asked again", node_id)
                self._push([node_id], online)
            elif not is_open:
                yield self._give_up(node_id, f"it lost the message {_MAX_TIMES_ASKED} times")

    def _give_up(self, node_id: int, reason: str) -> Reply:
        self._waiting.discard(node_id)
        return Reply(node_id, None, reason, True, self._seconds_since_asked(node_id))

    def _push(self, node_ids: Sequence[int], online: dict[int, str]) -> list[int]:
        """Send to `node_ids`; return those that could not be sent to. A message expires at the deadline."""
        seconds = self._policy.deadline_seconds
        if self._times_asked:
            seconds = max(1.0, seconds - (time.monotonic() - self._started))
        self._before_push(node_ids)
        content, kind = self._make_content(), self._message_type
        messages = [
            Message(self._address(content, id_), id_, kind, ttl=seconds, group_id=self._group_id)
            for id_ in node_ids
        ]
        ids = push_messages(self._grid, messages)
        for id_, node_id in zip(ids, node_ids, strict=True):
            self._asked_at[node_id] = time.monotonic()
            self._online_since[node_id] = online.get(node_id)
            self._times_asked[node_id] = self._times_asked.get(node_id, 0) + 1
            if id_ is not None:
                self._node_ids[id_] = node_id
        return [node_id for id_, node_id in zip(ids, node_ids, strict=True) if id_ is None]

    def _online(self) -> dict[int, str]:
        """Return the nodes that are online -> since when, as SuperLink reports it."""
        return {node.node_id: node.last_activated_at for node in online_nodes(self._grid)}


def _reply(message: Message, node_id: int, seconds: float) -> Reply:
    if message.has_error():
        reason = one_line(message.error.reason or f"error code {message.error.code}")
        return Reply(node_id, None, reason, False, seconds, rejection_code(message.error.code))
    return Reply(node_id, message.content, "", False, seconds)
