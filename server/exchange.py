"""Sending one message to each of several nodes and taking the replies one by one, as they arrive.

Flower's `send_and_receive` returns when all replies are in and then holds them all, sleeps three seconds
between looks, and does not say which reply never came. Here each reply is handed over and dropped before
the next is fetched, and every node that was asked is answered for: by its reply, its error, or as missing.
Replies are fetched as they arrive at SuperLink (`server/replies.py`), so a slow or an unreadable one costs
its sender and nobody else.

Flower 1.42 never delivers a message again that a SuperNode took and lost in its own restart, and tells
nobody. SuperLink does say since when each node is online, so a node that came back is asked again. One that
was cut off for longer than its lease looks the same; it has kept its reply, and sends that.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from federation.errors import RejectionCode, one_line
from federation.logs import get_logger
from server.replies import (
    QUERY_LIMITS,
    LostReplyError,
    ReplyDownload,
    ReplyLimits,
    UnusableReplyError,
    claim_reply,
)

__all__ = ["LateReplies", "Patience", "Pending", "Reply", "look", "online_nodes", "receive", "send"]

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_COLLECTIONS = 2.0
_RETURN_SECONDS = 75.0  # how long an offline node may take to come back
_LEAST_PATIENCE_SECONDS = 30.0  # nobody is a straggler before: Flower itself takes 6 s and more
_MOST_TIMES_ASKED = 3
_SERVER_ERROR_SECONDS, _SECONDS_BETWEEN_SERVER_ERRORS = 60.0, 1.0
# What a site may say of itself. The others are the server's to find, above all `NORM`, which is no strike.
_CODES_OF_SITES = (
    RejectionCode.NON_FINITE,
    RejectionCode.FROZEN_WEIGHTS,
    RejectionCode.PRIVACY,
    RejectionCode.DATASET,
)
_LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
_log = get_logger("server.exchange")


@dataclass(frozen=True)
class Patience:
    """How long replies are waited for: never past the deadline, less once a quorum is in."""

    deadline_seconds: float
    quorum: float = 1.0  # share of the asked nodes
    straggler_factor: float = math.inf  # times the median reply time, for the rest


@dataclass(frozen=True)
class Reply:
    """What came of asking one node."""

    node_id: int
    content: RecordDict | None  # None: see `error`
    error: str  # empty if there is content
    missing: bool  # no reply at all
    seconds: float  # since it was asked, for the last time
    code: RejectionCode = RejectionCode.NODE_FAILED  # of the error


@dataclass
class Pending:
    """What is under way to the nodes of one exchange."""

    grid: Grid
    make_content: Callable[[], RecordDict]
    message_type: str
    group_id: str
    patience: Patience
    limits: ReplyLimits
    before_push: Callable[[Sequence[int]], None]
    started: float
    node_ids: dict[str, int] = field(default_factory=dict)  # message id -> node asked
    online_since: dict[int, str | None] = field(default_factory=dict)  # as it was when asked; None: offline
    asked_at: dict[int, float] = field(default_factory=dict)
    times_asked: dict[int, int] = field(default_factory=dict)
    not_sent: list[int] = field(default_factory=list)
    discounted: set[int] = field(default_factory=set)  # whose reply is useless: it makes up no quorum
    downloads: dict[str, ReplyDownload] = field(default_factory=dict)  # message id -> its reply, arriving
    timed_out: set[int] = field(default_factory=set)  # nodes that may still be at work

    @property
    def elapsed(self) -> float:
        """Seconds since the exchange began."""
        return time.monotonic() - self.started


def send(
    grid: Grid,
    node_ids: Sequence[int],
    make_content: Callable[[], RecordDict],
    message_type: str,
    group_id: str,
    patience: Patience,
    limits: ReplyLimits = QUERY_LIMITS,
    before_push: Callable[[Sequence[int]], None] = lambda node_ids: None,
) -> Pending:
    """Send the same content to each node; `receive` or `look` takes the replies.

    Args:
        make_content: called once for all nodes and again for a node that has to be asked again, so that
            nobody holds the content in between.
        limits: of each reply.
        before_push: called with the nodes that are about to be asked, each time.
    """
    started = time.monotonic()
    pending = Pending(grid, make_content, message_type, group_id, patience, limits, before_push, started)
    pending.not_sent = _push(pending, node_ids, _online(grid))
    return pending


def receive(pending: Pending) -> Iterator[Reply]:
    """Yield exactly one `Reply` for each node asked, in order of arrival; wait for them."""
    collected = time.monotonic()
    for reply in look(pending):
        if reply is not None:
            if time.monotonic() - collected > _SECONDS_BETWEEN_COLLECTIONS:
                gc.collect()  # httpx ties its responses to themselves: their bytes would stay for many rounds
                collected = time.monotonic()
            yield reply
            del reply  # before the next one is fetched
        else:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def look(pending: Pending) -> Iterator[Reply | None]:
    """Like `receive`, but yield None where there is nothing yet: the caller waits, or does something else."""
    for node_id in pending.not_sent:
        yield Reply(node_id, None, "the message could not be sent to this node", True, 0.0)
    waiting = set(pending.asked_at) - set(pending.not_sent)
    quorum = math.ceil(pending.patience.quorum * (len(waiting) + len(pending.not_sent)))
    offline_since: dict[int, float] = {}
    replied: dict[int, float] = {}  # node -> seconds, of replies that count for the quorum
    while waiting:
        arrived = False
        for message_id, node_id in list(pending.node_ids.items()):
            if node_id not in waiting:
                continue
            # One at a time: the next reply is not fetched before this one is folded in and dropped.
            reply, is_lost = _take(pending, message_id, node_id)
            arrived = arrived or is_lost or reply is not None
            if reply is None:
                continue  # a node whose message or reply was lost is asked again below, if it is there
            waiting.discard(node_id)
            if reply.content is not None:
                replied[node_id] = reply.seconds
            yield reply
            del reply
        if arrived:
            continue
        if pending.elapsed >= pending.patience.deadline_seconds:
            break
        reply_seconds = [s for id_, s in replied.items() if id_ not in pending.discounted]
        if len(reply_seconds) >= quorum:
            yield from _drop_stragglers(pending, waiting, reply_seconds)
        yield from _follow_restarts(pending, waiting, offline_since)
        yield None
    for node_id in sorted(waiting):
        seconds = pending.patience.deadline_seconds
        yield _time_out(pending, node_id, f"no reply within {seconds:.0f} s", seconds)


def _take(pending: Pending, message_id: str, node_id: int) -> tuple[Reply | None, bool]:
    """The reply to one message if it is complete, else None; and whether it, or the message, is lost."""

    def seconds() -> float:
        return time.monotonic() - pending.asked_at[node_id]

    try:
        download = pending.downloads.get(message_id)
        if download is None:
            download = claim_reply(pending.grid, message_id, pending.limits)
            if download is None:
                return None, False
            pending.downloads[message_id] = download
        message = download.advance()
        if message is None:
            return None, False
        # An error made by SuperLink carries SuperLink's node id, so the asked node is looked up.
        reply = _reply(message, node_id, seconds())
        is_lost = message.has_error() and message.error.code in _LOST
    except UnusableReplyError as error:
        reply, is_lost = Reply(node_id, None, str(error), False, seconds(), error.code), False
    except LostReplyError:
        is_lost = True
    pending.downloads.pop(message_id, None)
    del pending.node_ids[message_id]
    return (None, True) if is_lost else (reply, False)


def _time_out(pending: Pending, node_id: int, reason: str, seconds: float) -> Reply:
    """Wait no longer for a node. What it has begun to upload is dropped, so that it is free again."""
    uploads = [id_ for id_ in pending.downloads if pending.node_ids[id_] == node_id]
    for message_id in uploads:
        pending.downloads.pop(message_id).discard()
        del pending.node_ids[message_id]
    if uploads:
        reason += ", its upload was under way"
    else:
        pending.timed_out.add(node_id)
    return Reply(node_id, None, reason, True, seconds)


def _drop_stragglers(pending: Pending, waiting: set[int], reply_seconds: list[float]) -> Iterator[Reply]:
    """Wait no longer for nodes that take many times as long as the others."""
    limit = pending.patience.straggler_factor * statistics.median(reply_seconds)
    limit = max(limit, _LEAST_PATIENCE_SECONDS)
    for node_id in sorted(waiting):
        if time.monotonic() - pending.asked_at[node_id] > limit:
            waiting.discard(node_id)
            reason = f"no reply within {limit:.0f} s while {len(reply_seconds)} nodes have replied"
            yield _time_out(pending, node_id, reason, limit)


def _follow_restarts(pending: Pending, waiting: set[int], offline_since: dict[int, float]) -> Iterator[Reply]:
    """Ask the nodes again that came back; give up those that stay away."""
    online = _online(pending.grid)
    now = time.monotonic()
    for node_id in sorted(waiting):
        if node_id not in online:
            away = now - offline_since.setdefault(node_id, now)
            if away > _RETURN_SECONDS:
                waiting.discard(node_id)
                reason = f"it went offline and did not come back within {_RETURN_SECONDS:.0f} s"
                yield Reply(node_id, None, reason, True, now - pending.asked_at[node_id])
            continue
        offline_since.pop(node_id, None)
        is_open = node_id in pending.node_ids.values()
        known = pending.online_since[node_id]
        if is_open and known is None:  # the message waited for it at SuperLink
            pending.online_since[node_id] = online[node_id]
            continue
        if is_open and known == online[node_id]:
            continue
        if pending.times_asked[node_id] >= _MOST_TIMES_ASKED:
            if not is_open:
                waiting.discard(node_id)
                reason = f"it lost the message {_MOST_TIMES_ASKED} times"
                yield Reply(node_id, None, reason, True, now - pending.asked_at[node_id])
            continue
        _log.warning("node %d lost its message in a restart and is asked again", node_id)
        _push(pending, [node_id], online)


def _push(pending: Pending, node_ids: Sequence[int], online: dict[int, str]) -> list[int]:
    """Send to `node_ids`; return those that it could not be sent to. A message expires at the deadline."""
    seconds = pending.patience.deadline_seconds
    if pending.times_asked:
        seconds = max(1.0, seconds - pending.elapsed)
    pending.before_push(node_ids)
    content = pending.make_content()
    messages = [
        Message(content, node_id, pending.message_type, ttl=seconds, group_id=pending.group_id)
        for node_id in node_ids
    ]
    try:
        pushed = _retry(lambda: pending.grid.push_messages(messages))
    except ObjectPushError:
        # SuperLink went away between storing an object and saying so, and refuses the repeated request. It
        # takes what it lacks of the same messages; with new ones the nodes would wait minutes for the old.
        _log.warning("SuperLink went away in the middle of the messages to the nodes: they are sent again")
        pushed = _retry(lambda: pending.grid.push_messages(messages))
    ids: list[str | None] = list(pushed) or [None] * len(messages)
    for id_, node_id in zip(ids, node_ids, strict=True):
        pending.asked_at[node_id] = time.monotonic()
        pending.online_since[node_id] = online.get(node_id)
        pending.times_asked[node_id] = pending.times_asked.get(node_id, 0) + 1
        if id_ is not None:
            pending.node_ids[id_] = node_id
    return [node_id for id_, node_id in zip(ids, node_ids, strict=True) if id_ is None]


def _online(grid: Grid) -> dict[int, str]:
    """The nodes that are online -> since when, as SuperLink says it."""
    return {node.node_id: node.last_activated_at for node in online_nodes(grid)}


def online_nodes(grid: Grid) -> list[Any]:
    """The nodes that are online, as Flower's `NodeInfo`."""
    return _retry(lambda: list(grid.get_nodes()))


def _retry[T](ask: Callable[[], T]) -> T:
    """`ask()`, again for a minute where SuperLink fails: one site's upload can lock its database."""
    give_up_at = time.monotonic() + _SERVER_ERROR_SECONDS
    while True:
        try:
            return ask()
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500 or time.monotonic() >= give_up_at:
                raise
            _log.warning("SuperLink fails (HTTP %d) and is asked again", error.response.status_code)
            time.sleep(_SECONDS_BETWEEN_SERVER_ERRORS)


def _reply(message: Message, node_id: int, seconds: float) -> Reply:
    if message.has_error():
        reason = one_line(message.error.reason or f"error code {message.error.code}")
        return Reply(node_id, None, reason, False, seconds, _code(message.error.code))
    return Reply(node_id, message.content, "", False, seconds)


def _code(number: int) -> RejectionCode:
    if number == ErrorCode.CLIENT_APP_RAISED_EXCEPTION:  # by the site's consent: our ClientApp raises nothing
        return RejectionCode.APP_REFUSED
    return next((code for code in _CODES_OF_SITES if code == number), RejectionCode.NODE_FAILED)


@dataclass(frozen=True)
class _LateReply:
    node_id: int
    online_since: str | None  # of the node, when it was asked
    expires_at: float  # monotonic; the node itself stops then
    keeps_busy: bool


class LateReplies:
    """What nobody waits for any more: it is dropped when it comes, and until then its node is busy.

    A SuperNode takes no message while it works on another. One that is asked again before it is done would
    answer each round too late for ever.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._open: dict[str, _LateReply] = {}

    def watch(self, pending: Pending) -> None:
        """Take over what an exchange that has ended left open."""
        expires_at = pending.started + pending.patience.deadline_seconds
        for message_id, node_id in pending.node_ids.items():
            # A node that has replied has only a message left that it was sent twice: it answers at once.
            keeps_busy = node_id in pending.timed_out
            self._open[message_id] = _LateReply(
                node_id, pending.online_since[node_id], expires_at, keeps_busy
            )

    def busy_nodes(self, online: Mapping[int, str]) -> set[int]:
        """Drop what has come; return the nodes that still work on what they were asked.

        Args:
            online: the nodes that are online -> since when. One that has restarted has lost its work.
        """
        for message_id, late in list(self._open.items()):
            has_restarted = online.get(late.node_id, late.online_since) != late.online_since
            if self._drop(message_id) or has_restarted or time.monotonic() > late.expires_at:
                del self._open[message_id]
        return {late.node_id for late in self._open.values() if late.keeps_busy}

    def _drop(self, message_id: str) -> bool:
        """Whether there was a reply; its objects are not fetched."""
        try:
            download = claim_reply(self._grid, message_id, QUERY_LIMITS)
        except UnusableReplyError:
            return True
        if download is not None:
            download.discard()
        return download is not None
