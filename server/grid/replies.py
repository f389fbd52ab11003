"""One node's reply, taken out of SuperLink object by object, within limits and without waiting for any of it.

`server/grid/exchange.py` calls this. Flower's own `pull_messages` blocks until a reply is complete, for hours
if its sender uploads slowly, holds whatever bytes the sender chose, and lets the errors of unreadable bytes
end the run. Here a reply is first *claimed*: SuperLink says which objects it consists of. Then each call of
`ReplyDownload.advance` fetches what has arrived by then. Whatever a sender does wrong comes out as
`UnusableReplyError`, and an upload that broke off as `LostReplyError`; that SuperLink is away is retried by
Flower's client, and any other error of the connection passes through.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflatable_class_registry,
    inflate_object_from_contents,
)

from federation.errors import FederationError, RejectionCode
from federation.logs import get_logger

__all__ = [
    "QUERY_LIMITS",
    "LostReplyError",
    "ReplyDownload",
    "ReplyLimits",
    "UnusableReplyError",
    "claim_reply",
    "limits_of_update",
]

_MAX_RECORD_BYTES = 2**20  # only the chunks of arrays may be larger
_log = get_logger("server.grid.replies")


class UnusableReplyError(FederationError):
    """The sender's bytes make up no reply that could be read."""

    code = RejectionCode.MALFORMED


class LostReplyError(FederationError):
    """SuperLink dropped the reply: its sender went away in the middle of the upload."""


@dataclass(frozen=True)
class ReplyLimits:
    """What a reply may consist of at most."""

    objects: int
    bytes: int


# A join: some forty arrays of statistics, each with its chunk.
QUERY_LIMITS = ReplyLimits(objects=1024, bytes=4 * 2**20)


def limits_of_update(payload_bytes: int) -> ReplyLimits:
    """Return the limits of a reply that carries an update of `payload_bytes`, encoded.

    Flower cuts arrays into chunks of 5 MiB; the metrics, the header and the heads of the objects are small.
    """
    return ReplyLimits(objects=64 + payload_bytes // 2**20, bytes=payload_bytes + payload_bytes // 50 + 2**20)


class ReplyDownload:
    """A claimed reply, complete or not. SuperLink hands it to nobody else.

    Args:
        root_id: of the message object.
        object_ids: of all objects, those that are uploaded last first: while one of them is missing, next to
            nothing is held here.
    """

    def __init__(self, grid: Grid, root_id: str, object_ids: list[str], max_bytes: int) -> None:
        self._grid, self._root_id, self._missing, self._max_bytes = grid, root_id, object_ids, max_bytes
        self._contents: dict[str, bytes] = {}
        self._bytes = 0

    def advance(self) -> Message | None:
        """Fetch what has arrived at SuperLink; return the reply once it is complete, None before.

        Raises:
            UnusableReplyError: it is too large or cannot be read.
            LostReplyError: its upload broke off.
        """
        while self._missing:
            answer = _call(
                _client(self._grid).PullObject,
                PullObjectRequest(
                    node=_node(self._grid), run_id=_run_id(self._grid), object_id=self._missing[0]
                ),
            )
            if answer is None:
                return None
            if not answer.object_found:
                raise LostReplyError("its upload broke off")
            if not answer.object_available:
                return None
            self._contents[self._missing.pop(0)] = answer.object_content
            self._bytes += len(answer.object_content)
            if self._bytes > self._max_bytes:
                self.discard()
                raise UnusableReplyError(f"its reply has more than {self._max_bytes} bytes")
        self.discard()
        return _inflate(self._root_id, self._contents, self._max_bytes)

    def discard(self) -> None:
        """Have SuperLink drop the reply; if it is still being uploaded, that fails and its sender is free."""
        _call(
            _client(self._grid).ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(
                node=_node(self._grid), run_id=_run_id(self._grid), message_object_id=self._root_id
            ),
        )


def claim_reply(grid: Grid, message_id: str, limits: ReplyLimits) -> ReplyDownload | None:
    """Take the reply to the message `message_id` out of SuperLink's queue; None if there is none yet.

    SuperLink adds to its answer whatever nodes sent to SuperLink itself (Flower 1.42), with any name and any
    content: only what it links to `message_id` is the reply of the node that was asked.

    Raises:
        UnusableReplyError: it has too many objects.
    """
    answer = _call(_client(grid).PullMessages, PullAppMessagesRequest(message_ids=[message_id]))
    if answer is None:
        return None
    found = zip(answer.messages_list, answer.message_object_trees, strict=True)
    replies = [(m.metadata.message_id, t) for m, t in found if m.metadata.reply_to_message_id == message_id]
    if len(answer.messages_list) > len(replies):
        _log.warning("a node sent messages that answer nothing; they are dropped")
    if not replies:
        return None
    root_id, tree = replies[0]
    try:
        object_ids = _object_ids(tree, limits.objects)
    except UnusableReplyError:
        ReplyDownload(grid, root_id, [], 0).discard()
        raise
    return ReplyDownload(grid, root_id, object_ids, limits.bytes)


def _object_ids(tree: ObjectTree, limit: int) -> list[str]:
    """Return the ids in `tree`, each once, from the root to the first leaf: the upload's order reversed."""
    ids: dict[str, None] = {}
    pending, seen = [tree], 0
    while pending:
        node = pending.pop()
        ids[node.object_id] = None
        pending.extend(node.children)
        seen += 1
        if seen + len(pending) > limit:
            raise UnusableReplyError(f"its reply consists of more than {limit} objects")
    return list(ids)


def _inflate(root_id: str, contents: dict[str, bytes], max_bytes: int) -> Message:
    """Build the message out of its objects, whose bytes are the sender's."""
    try:
        if _array_bytes(contents) > max_bytes:
            raise UnusableReplyError(f"the arrays of its reply have more than {max_bytes} bytes")
        message = inflate_object_from_contents(root_id, contents)
    except UnusableReplyError:
        raise
    except Exception as error:  # Flower's parsers raise whatever the bytes make them raise
        raise UnusableReplyError(f"its reply cannot be read ({type(error).__name__})") from None
    if not isinstance(message, Message) or not (message.has_content() or message.has_error()):
        raise UnusableReplyError(f"its reply is a {type(message).__name__} without content")
    return message


def _array_bytes(contents: Mapping[str, bytes]) -> int:
    """Bytes of all arrays once their chunks are put together: an array may name one chunk many times."""
    total = 0
    for content in contents.values():
        kind, children, body_bytes = get_object_head_values_from_object_content(content)
        if kind != "ArrayChunk" and body_bytes > _MAX_RECORD_BYTES:
            raise UnusableReplyError(f"its reply holds a {kind} of {body_bytes} bytes")
        if kind == "Array":
            body = json.loads(get_object_body(content, inflatable_class_registry[kind]))
            total += sum(len(contents[children[index]]) for index in body["arraychunk_ids"])
    return total


def _call(method: Callable[[Any], Any], request: Any) -> Any | None:
    """`method(request)`, or None where SuperLink fails at it: then it is asked again later.

    It fails for everybody while one site's upload keeps its database locked, so nobody is blamed for it.
    """
    try:
        return method(request)
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code < 500 and code != httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise
        _log.debug("SuperLink fails at a reply (HTTP %d)", code)
    except ValueError as error:  # Flower's client: no protobuf message
        _log.debug("SuperLink's answer about a reply cannot be read (%s)", error)
    return None


# Flower has no public way to fetch less than a whole reply; tests/unit/server/grid/test_replies.py checks
# these names.
def _client(grid: Any) -> Any:
    return grid._runtime_client


def _node(grid: Any) -> Any:
    return grid.node


def _run_id(grid: Any) -> int:
    return int(grid.run.run_id)
