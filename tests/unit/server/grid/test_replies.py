"""Replies whose bytes, size and shape are their sender's."""

import contextlib
import hashlib
import inspect

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.superlink.grid.http_grid import HttpGrid
from hypothesis import given, settings
from hypothesis import strategies as st

from server.grid import replies
from server.grid.replies import (
    QUERY_LIMITS,
    LostReplyError,
    ReplyLimits,
    UnusableReplyError,
    claim_reply,
    limits_of_update,
)
from tests.fake_grid import FakeGrid, RawReply, raw_reply

CONTENT = RecordDict(
    {
        "arrays": ArrayRecord({"a": Array(np.arange(10, dtype=np.uint8))}),
        "config": ConfigRecord({"x": 1}),
        "metrics": MetricRecord({"y": 2.0}),
    }
)


def _take(reply: RawReply | RecordDict | Error, limits: ReplyLimits = QUERY_LIMITS) -> Message | None:
    grid = FakeGrid({5: reply})
    (message_id,) = grid.push_messages([Message(RecordDict(), 5, "train")])
    download = claim_reply(grid, message_id, limits)  # type: ignore[arg-type]
    assert download is not None
    try:
        message = download.advance()
    except UnusableReplyError:  # SuperLink has dropped it: nobody asks for it, or pays for it, again
        assert len(grid.confirmed) == 1
        raise
    if message is not None:
        assert len(grid.confirmed) == 1
        assert claim_reply(grid, message_id, limits) is None  # type: ignore[arg-type]
    return message


def _object(kind: str, body: bytes, *children: str) -> tuple[str, bytes]:
    """Id and bytes of an object as SuperLink lets it pass: the head fits, the body is anything."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


def _chain(*objects: tuple[str, bytes]) -> RawReply:
    """A tree of which each object is the only child of the one before."""
    tree: ObjectTree | None = None
    for id_, _ in reversed(objects):
        tree = ObjectTree(object_id=id_, children=[tree] if tree else [])
    assert tree
    return RawReply(tree, dict(objects))


def test_a_reply_comes_out_as_it_was_sent() -> None:
    message = _take(CONTENT)
    assert message
    assert message.content == CONTENT


class WithStray(FakeGrid):
    """Another node has sent SuperLink a message of its own, which comes with every answer."""

    def PullMessages(self, request):  # type: ignore[no-untyped-def]  # noqa: N802
        """Answer with what was asked for behind what was not."""
        stray, answer = raw_reply(RecordDict()), PullAppMessagesResponse()
        self.stored[stray.tree.object_id] = stray
        answer.messages_list.append(ProtoMessage())
        answer.messages_list[0].metadata.message_id = stray.tree.object_id
        answer.message_object_trees.append(stray.tree)
        answer.MergeFrom(super().PullMessages(request))
        return answer


@pytest.mark.parametrize("reply", [CONTENT, None])
def test_what_is_no_reply_to_the_message_is_nobodys_reply(reply: RecordDict | None) -> None:
    grid = WithStray({5: reply})
    (message_id,) = grid.push_messages([Message(RecordDict(), 5, "train")])
    download = claim_reply(grid, message_id, QUERY_LIMITS)  # type: ignore[arg-type]
    if reply is None:
        assert download is None
    else:
        assert download is not None
        message = download.advance()
        assert message is not None
        assert message.content == CONTENT


def test_an_error_comes_out_as_it_was_sent() -> None:
    message = _take(Error(3, "no data"))
    assert message
    assert (message.error.code, message.error.reason) == (3, "no data")


KINDS = ["Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "ConfigRecord", "MetricRecord"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.binary(max_size=200)), min_size=1, max_size=5))
def test_arbitrary_bodies_make_an_unusable_reply_and_no_other_error(bodies: list[tuple[str, bytes]]) -> None:
    objects: list[tuple[str, bytes]] = []
    for kind, body in reversed(bodies):
        objects.insert(0, _object(kind, body, *(id_ for id_, _ in objects[:1])))
    try:
        message = _take(_chain(*objects))
    except UnusableReplyError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(message, Message)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_object_makes_an_unusable_reply_and_no_other_error(data: st.DataObject) -> None:
    reply = raw_reply(CONTENT)
    damaged = data.draw(st.sampled_from(sorted(reply.contents)))
    content = reply.contents[damaged]
    assert content
    head, _, body = content.partition(b"\0")
    changed = data.draw(st.one_of(st.binary(max_size=300), st.just(body[:-1]), st.just(body + b"1")))
    reply.contents[damaged] = b" ".join([*head.split(b" ")[:2], str(len(changed)).encode()]) + b"\0" + changed
    with contextlib.suppress(UnusableReplyError):
        assert isinstance(_take(reply), Message)


@pytest.mark.parametrize(
    "body",
    [b"not json", b"[]", b'{"a": 1}', b"[" * 100_000, b"1" * 10_000],
    ids=["text", "list", "number", "deep", "digits"],
)
def test_a_record_whose_json_is_not_what_it_should_be_is_unusable(body: bytes) -> None:
    record = _object("RecordDict", body)
    with pytest.raises(UnusableReplyError, match="cannot be read"):
        _take(_chain(_object("Message", b"", record[0]), record))


def test_a_root_that_is_no_message_is_unusable() -> None:
    with pytest.raises(UnusableReplyError, match="is a ConfigRecord without content"):
        _take(_chain(_object("ConfigRecord", b"")))


def test_a_missing_child_makes_an_unusable_reply() -> None:
    reply = raw_reply(CONTENT)
    del reply.tree.children[:]
    with pytest.raises(UnusableReplyError, match="cannot be read \\(KeyError"):
        _take(reply)


def test_a_reply_of_too_many_objects_is_refused_before_any_is_fetched() -> None:
    tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=f"{i:064x}") for i in range(2000)])
    grid = FakeGrid({5: RawReply(tree, {})})
    (message_id,) = grid.push_messages([Message(RecordDict(), 5, "train")])
    with pytest.raises(UnusableReplyError, match="more than 1024 objects"):
        claim_reply(grid, message_id, QUERY_LIMITS)  # type: ignore[arg-type]
    assert grid.confirmed == ["0" * 64]


def test_a_reply_of_too_many_bytes_is_refused() -> None:
    with pytest.raises(UnusableReplyError, match="more than 1000 bytes"):
        _take(RecordDict({"a": ArrayRecord({"a": Array(np.zeros(2000, np.uint8))})}), ReplyLimits(100, 1000))


def test_a_chunk_that_an_array_names_a_million_times_is_refused() -> None:
    chunk = _object("ArrayChunk", bytes(2**20))
    ids = ", ".join(["0"] * 200_000)
    body = f'{{"dtype": "uint8", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [{ids}]}}'
    array = _object("Array", body.encode(), chunk[0])
    record = _object("ArrayRecord", f'{{"a": "{array[0]}"}}'.encode(), array[0])
    content = _object("RecordDict", f'{{"a": "{record[0]}"}}'.encode(), record[0])
    with pytest.raises(UnusableReplyError, match="the arrays of its reply"):
        _take(_chain(_object("Message", b"", content[0]), content, record, array, chunk))


def test_a_record_of_megabytes_is_refused() -> None:
    reply = RecordDict({"c": ConfigRecord({"x": "a" * 2 * 2**20})})
    with pytest.raises(UnusableReplyError, match="a ConfigRecord of 2"):
        _take(reply)


def test_what_superlink_has_dropped_is_lost() -> None:
    reply = raw_reply(CONTENT)
    reply.contents = dict.fromkeys(reply.contents)
    with pytest.raises(LostReplyError):
        _take(reply)


def _failing(status: int) -> FakeGrid:
    class Failing(FakeGrid):
        calls = 0

        def PullMessages(self, request):  # noqa: N802
            self.calls += 1
            response = httpx.Response(status, request=httpx.Request("POST", "https://superlink"))
            response.raise_for_status()

    return Failing({5: RecordDict()})


@pytest.mark.parametrize("status", [413, 500, 503])
def test_where_superlink_fails_the_reply_is_asked_for_again_later(status: int) -> None:
    assert claim_reply(_failing(status), "message-0", QUERY_LIMITS) is None  # type: ignore[arg-type]


def test_a_download_goes_on_where_superlink_failed() -> None:
    class Failing(FakeGrid):
        failures = 3

        def PullObject(self, request):  # noqa: N802
            if self.failures:
                self.failures -= 1
                httpx.Response(500, request=httpx.Request("POST", "https://superlink")).raise_for_status()
            return super().PullObject(request)

    grid = Failing({5: CONTENT})
    (message_id,) = grid.push_messages([Message(RecordDict(), 5, "train")])
    download = claim_reply(grid, message_id, QUERY_LIMITS)  # type: ignore[arg-type]
    assert download
    assert [download.advance() for _ in range(3)] == [None] * 3
    message = download.advance()
    assert message
    assert message.content == CONTENT


def test_other_errors_of_the_connection_pass_through() -> None:
    with pytest.raises(httpx.HTTPStatusError):
        claim_reply(_failing(404), "message-0", QUERY_LIMITS)  # type: ignore[arg-type]


@pytest.mark.parametrize("megabytes", [0.001, 1, 103, 400])
def test_an_honest_update_is_within_its_limits(megabytes: float) -> None:
    size = int(megabytes * 1e6)
    part = 20 * 2**20
    arrays = {
        str(start): Array(np.arange(start, min(start + part, size), dtype=np.uint32).astype(np.uint8))
        for start in range(0, size, part)
    }
    reply = raw_reply(RecordDict({"update": ArrayRecord(arrays), **dict(CONTENT)}))
    limits = limits_of_update(size)
    assert len(reply.contents) < limits.objects
    assert sum(len(content or b"") for content in reply.contents.values()) < limits.bytes


def test_flower_still_has_what_is_used_of_it() -> None:
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="t")
    for name in ("PullMessages", "PullObject", "ConfirmMessageReceived"):
        assert callable(getattr(replies._client(grid), name))
    assert replies._node(grid) is not None
    assert isinstance(inspect.getattr_static(HttpGrid, "run"), property)
