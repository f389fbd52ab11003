"""Sending one message to each of several nodes and taking the replies one by one, as they arrive.

Flower's `send_and_receive` returns when all replies are in and then holds them all, sleeps three seconds
between looks, and does not say which reply never came. Here each reply is handed over and dropped before
the next is fetched, and every node that was asked is answered for: by its reply, its error, or as missing.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

__all__ = ["Pending", "Reply", "receive", "send"]

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Reply:
    """What came of asking one node."""

    node_id: int
    content: RecordDict | None  # None: see `error`
    error: str  # empty if there is content
    missing: bool  # no reply at all before the deadline
    seconds: float  # from sending to here


@dataclass(frozen=True)
class Pending:
    """Messages under way: message id -> node id, and when to stop waiting."""

    node_ids: dict[str, int]
    not_sent: list[int]
    sent_at: float
    deadline_seconds: float


def send(
    grid: Grid, contents: Mapping[int, RecordDict], message_type: str, group_id: str, deadline_seconds: float
) -> Pending:
    """Send `contents[node_id]` to each node; `receive` takes the replies.

    Args:
        deadline_seconds: replies later than this are not waited for, and the message expires.
    """
    sent_at = time.monotonic()
    messages = [
        Message(content, node_id, message_type, ttl=deadline_seconds, group_id=group_id)
        for node_id, content in contents.items()
    ]
    ids: list[str | None] = list(grid.push_messages(messages)) or [None] * len(messages)
    node_ids = {id_: node_id for id_, node_id in zip(ids, contents, strict=True) if id_ is not None}
    not_sent = [node_id for id_, node_id in zip(ids, contents, strict=True) if id_ is None]
    return Pending(node_ids, not_sent, sent_at, deadline_seconds)


def receive(grid: Grid, pending: Pending) -> Iterator[Reply]:
    """Yield exactly one `Reply` for each node asked, in order of arrival."""
    for node_id in pending.not_sent:
        yield Reply(node_id, None, "the message could not be sent to this node", False, 0.0)
    waiting = dict(pending.node_ids)
    while waiting and time.monotonic() - pending.sent_at < pending.deadline_seconds:
        arrived = False
        for message_id in list(waiting):
            # One at a time: the next reply is not fetched before this one is folded in and dropped.
            for message in grid.pull_messages([message_id]):
                arrived = True
                # An error made by SuperLink carries SuperLink's node id, so the asked node is looked up.
                yield _reply(message, waiting.pop(message_id), time.monotonic() - pending.sent_at)
        if not arrived:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    for node_id in waiting.values():
        seconds = pending.deadline_seconds
        yield Reply(node_id, None, f"no reply within {seconds:.0f} s", True, seconds)


def _reply(message: Message, node_id: int, seconds: float) -> Reply:
    if message.has_error():
        reason = message.error.reason or f"error code {message.error.code}"
        return Reply(node_id, None, reason, False, seconds)
    return Reply(node_id, message.content, "", False, seconds)
