import time

import httpx
import pytest
from flwr.app import ConfigRecord, Error, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from federation.errors import RejectionCode
from server.grid import calls, exchange
from server.grid.exchange import Exchange, WaitPolicy
from server.grid.late_replies import LateReplies
from tests.fake_grid import FakeGrid, RawReply, raw_reply

GONE = Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_POLL_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(exchange, "_MIN_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(exchange, "_RETURN_SECONDS", 0.3)


def _send(grid: FakeGrid, policy: WaitPolicy, *node_ids: int) -> Exchange:
    return Exchange(grid, RecordDict, "train", "1", policy).send(node_ids)  # type: ignore[arg-type]


def _exchange(grid: FakeGrid, policy: WaitPolicy | float = 1.0):
    if not isinstance(policy, WaitPolicy):
        policy = WaitPolicy(policy)
    sent = _send(grid, policy, *grid.answers, *grid.not_sent)
    return {reply.node_id: reply for reply in sent.replies()}


def test_every_node_that_was_asked_is_answered_for() -> None:
    grid = FakeGrid({5: RecordDict({"c": ConfigRecord({"x": 1})}), 6: Error(8, "crashed"), 7: None}, (8,))
    replies = _exchange(grid)
    assert replies.keys() == {5, 6, 7, 8}
    assert replies[5].content["c"]["x"] == 1
    assert (replies[6].content, replies[6].error, replies[6].missing) == (None, "crashed", False)
    assert replies[7].missing
    assert "no reply within 1 s" in replies[7].error
    assert "could not be sent" in replies[8].error
    assert replies[8].missing  # it is no fault of the node's


def test_messages_that_superlink_lost_half_of_in_a_restart_are_sent_again_once() -> None:
    grid = FakeGrid({5: RecordDict(), 6: RecordDict()})
    grid.push_errors = [ObjectPushError("object", 1, "session")]
    replies = _exchange(grid)
    assert [reply.content is not None for reply in replies.values()] == [True, True]
    grid.push_errors = [ObjectPushError("object", 1, "session") for _ in range(2)]
    with pytest.raises(ObjectPushError):
        _exchange(grid)


def test_a_lost_message_does_not_hold_the_round_past_its_deadline() -> None:
    started = time.monotonic()
    _exchange(FakeGrid({5: None}), 0.6)
    assert time.monotonic() - started < 30


def test_a_round_with_all_replies_in_ends_before_its_deadline() -> None:
    started = time.monotonic()
    _exchange(FakeGrid({5: RecordDict(), 6: RecordDict()}), 60)
    assert time.monotonic() - started < 30


def test_replies_are_fetched_one_by_one() -> None:
    grid = FakeGrid({5: RecordDict(), 6: RecordDict(), 7: RecordDict()})
    _exchange(grid)
    assert set(grid.asked_for) == {1}


def test_an_error_without_a_reason_names_its_code() -> None:
    assert _exchange(FakeGrid({5: Error(9)}))[5].error == "error code 9"


@pytest.mark.parametrize(
    ("said", "counted_as"),
    [
        (RejectionCode.DATASET, RejectionCode.DATASET),
        (RejectionCode.NON_FINITE, RejectionCode.NON_FINITE),
        (RejectionCode.NORM, RejectionCode.NODE_FAILED),  # else a site could fail for ever without a strike
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, RejectionCode.APP_REFUSED),
        (ErrorCode.CLIENT_APP_CRASHED, RejectionCode.NODE_FAILED),
        (-1, RejectionCode.NODE_FAILED),
        (2**40, RejectionCode.NODE_FAILED),
    ],
)
def test_a_site_chooses_among_the_codes_of_its_own_faults(said: int, counted_as: RejectionCode) -> None:
    assert _exchange(FakeGrid({5: Error(int(said), "no")}))[5].code == counted_as


@pytest.mark.parametrize("seconds", [30.0, 90.0])
def test_a_message_expires_with_its_deadline(seconds: float) -> None:
    grid = FakeGrid({5: RecordDict()})
    _send(grid, WaitPolicy(seconds), 5)
    assert next(iter(grid.sent.values())).metadata.ttl == seconds


class RestartingGrid(FakeGrid):
    """Node 5 restarts after some looks, and loses its message by that."""

    looks = 0

    def get_nodes(self):
        self.looks += 1
        self.online_since = dict.fromkeys(self.answers, "t0") | {5: "t1" if self.looks > 3 else "t0"}
        return super().get_nodes()


def test_a_node_that_restarts_is_asked_again() -> None:
    grid = RestartingGrid({5: [None, RecordDict()], 6: RecordDict()})
    replies = _exchange(grid, 20.0)
    assert replies[5].content is not None
    assert len(grid.sent) == 3
    assert 0 < list(grid.sent.values())[-1].metadata.ttl < 20.0


def test_the_reply_to_the_first_asking_counts_if_it_comes_after_all() -> None:
    class SlowGrid(RestartingGrid):
        def _answer(self, id_):
            return None if self.looks < 6 else super()._answer(id_)

    grid = SlowGrid({5: [RecordDict(), None]})
    assert _exchange(grid, 20.0)[5].content is not None
    assert len(grid.sent) == 2


def test_a_node_that_superlink_lost_is_asked_again_and_given_up_after_three_times() -> None:
    grid = FakeGrid({5: [GONE, RecordDict()], 6: [GONE, GONE, GONE]})
    replies = _exchange(grid, 20.0)
    assert replies[5].content is not None
    assert (replies[6].missing, replies[6].error) == (True, "it lost the message 3 times")
    assert len(grid.sent) == 5


def test_a_node_that_stays_away_is_not_waited_for_until_the_deadline() -> None:
    grid = FakeGrid({5: None, 6: RecordDict()})
    grid.online_since = {6: "t0"}
    started = time.monotonic()
    replies = _exchange(grid, 60.0)
    assert time.monotonic() - started < 30
    assert replies[5].missing
    assert "went offline" in replies[5].error


def test_a_message_that_waited_for_its_node_is_not_sent_twice() -> None:
    grid = RestartingGrid({5: None, 6: RecordDict()})
    grid.online_since = {6: "t0"}
    sent = _send(grid, WaitPolicy(0.5), 5, 6)
    sent._online_since[5] = None  # it was offline when it was asked
    grid.looks = 10
    assert [reply.missing for reply in sent.replies()] == [False, True]
    assert len(grid.sent) == 2


def test_stragglers_are_left_behind_once_the_quorum_is_in() -> None:
    answers = {5: RecordDict(), 6: RecordDict(), 7: RecordDict(), 8: None}
    started = time.monotonic()
    replies = _exchange(FakeGrid(answers), WaitPolicy(60.0, quorum=0.75, straggler_factor=4.0))
    assert time.monotonic() - started < 30
    assert replies[8].missing
    assert "while 3 nodes have replied" in replies[8].error


def test_replies_without_a_time_make_up_the_quorum_and_hurry_nobody() -> None:
    answers = {5: RecordDict(), 6: RecordDict(), 7: RecordDict(), 8: None}
    sent = _send(FakeGrid(answers), WaitPolicy(1.0, quorum=0.75, straggler_factor=1.0), *answers)
    replies = {}
    for reply in sent.replies():
        replies[reply.node_id] = reply
        if reply.content is not None:
            sent.ignore_time(reply.node_id)
    assert "no reply within 1 s" in replies[8].error


def test_a_node_that_the_round_is_patient_with_is_no_straggler() -> None:
    policy = WaitPolicy(1.0, quorum=0.5, straggler_factor=0.0, patient_with=frozenset({8}))
    replies = _exchange(FakeGrid({5: RecordDict(), 7: None, 8: None, 9: RecordDict()}), policy)
    assert "while 2 nodes have replied" in replies[7].error
    assert "no reply within 1 s" in replies[8].error


def test_a_node_that_was_silent_before_makes_up_no_quorum() -> None:
    started = time.monotonic()
    policy = WaitPolicy(60.0, quorum=0.75, straggler_factor=4.0, doubted=frozenset({8}))
    replies = _exchange(FakeGrid({7: RecordDict(), 8: None}), policy)
    assert time.monotonic() - started < 30
    assert replies[7].content is not None
    assert replies[8].missing
    alone = WaitPolicy(1.0, quorum=0.75, straggler_factor=4.0, doubted=frozenset({8}))
    assert "no reply within 1 s" in _exchange(FakeGrid({8: None}), alone)[8].error


def test_below_the_quorum_the_deadline_counts() -> None:
    answers = {5: RecordDict(), 6: RecordDict(), 7: Error(2, "no"), 8: None}
    started = time.monotonic()
    replies = _exchange(FakeGrid(answers), WaitPolicy(1.0, quorum=0.75, straggler_factor=1.0))
    assert time.monotonic() - started >= 1.0
    assert "no reply within 1 s" in replies[8].error


def _withheld(kind: bytes) -> RawReply:
    """A reply of which one object, the first of this kind, is not uploaded yet."""
    reply = raw_reply(RecordDict({"a": ConfigRecord({"x": 1}), "b": MetricRecord({"y": 2})}))
    reply.contents[next(id_ for id_, content in reply.contents.items() if content.startswith(kind))] = b""
    return reply


@pytest.mark.parametrize("kind", [b"Message", b"RecordDict", b"ConfigRecord"])
def test_an_upload_that_does_not_end_holds_up_nobody_else(kind: bytes) -> None:
    grid = FakeGrid({5: _withheld(kind), 6: RecordDict(), 7: RecordDict(), 8: RecordDict()})
    started = time.monotonic()
    replies = _exchange(grid, WaitPolicy(60.0, quorum=0.75, straggler_factor=4.0))
    assert time.monotonic() - started < 30
    assert replies[5].missing
    assert replies[5].error.endswith(", its upload was under way")
    assert [replies[node_id].content is not None for node_id in (6, 7, 8)] == [True] * 3
    assert not grid.stored  # SuperLink has dropped the upload: its sender is free


def test_an_upload_that_takes_its_time_counts_from_its_last_object_on() -> None:
    slow = _withheld(b"ConfigRecord")
    (missing,) = (id_ for id_, content in slow.contents.items() if not content)
    whole = raw_reply(RecordDict({"a": ConfigRecord({"x": 1}), "b": MetricRecord({"y": 2})})).contents[
        missing
    ]

    class SlowGrid(FakeGrid):
        pulled = 0

        def PullObject(self, request):  # noqa: N802
            self.pulled += 1
            if self.pulled > 10:
                slow.contents[missing] = whole
            return super().PullObject(request)

    grid = SlowGrid({5: slow, 6: RecordDict()})
    assert _exchange(grid, 20.0)[5].content["a"]["x"] == 1
    assert grid.pulled > 10


def test_a_node_whose_upload_broke_off_is_asked_again() -> None:
    broken_off = _withheld(b"ConfigRecord")
    broken_off.contents = {id_: content or None for id_, content in broken_off.contents.items()}
    replies = _exchange(FakeGrid({5: [broken_off, RecordDict()], 6: RecordDict()}), 20.0)
    assert replies[5].content is not None


def test_an_unreadable_reply_is_its_nodes_error() -> None:
    reply = raw_reply(RecordDict({"a": ConfigRecord({"x": 1})}))
    reply.contents = {id_: content + b"?" for id_, content in reply.contents.items()}
    replies = _exchange(FakeGrid({5: reply, 6: RecordDict()}))
    assert (replies[5].content, replies[5].missing) == (None, False)
    assert replies[5].error.startswith("its reply cannot be read")
    assert replies[5].code == RejectionCode.MALFORMED
    assert replies[6].content is not None


def _late(grid: FakeGrid, policy: WaitPolicy) -> LateReplies:
    late = LateReplies(grid)  # type: ignore[arg-type]
    sent = _send(grid, policy, *grid.answers)
    list(sent.replies())
    late.watch(sent)
    return late


HASTY = WaitPolicy(60.0, quorum=0.5, straggler_factor=1.0)


def test_a_node_that_was_not_waited_for_is_busy_until_its_reply_is_in() -> None:
    grid = FakeGrid({5: None, 6: RecordDict()})
    late = _late(grid, HASTY)
    online = {5: "t0", 6: "t0"}
    assert late.busy_nodes(online) == {5}
    grid.answers[5] = RecordDict()
    assert late.busy_nodes(online) == set()
    assert not grid.stored  # and nothing of it stays at SuperLink


def test_a_node_that_was_not_waited_for_is_free_once_it_has_restarted() -> None:
    late = _late(FakeGrid({5: None, 6: RecordDict()}), HASTY)
    assert late.busy_nodes({6: "t0"}) == {5}  # it is away
    assert late.busy_nodes({5: "t1", 6: "t0"}) == set()


def test_a_node_is_busy_no_longer_than_to_the_deadline_where_it_stops_by_itself() -> None:
    late = _late(FakeGrid({5: None, 6: RecordDict()}), WaitPolicy(1.0, quorum=0.5, straggler_factor=1.0))
    assert late.busy_nodes({5: "t0"}) == {5}
    time.sleep(1.0)
    assert late.busy_nodes({5: "t0"}) == set()


def test_a_node_that_replied_once_to_two_messages_is_not_busy() -> None:
    grid = RestartingGrid({5: [None, RecordDict()], 6: RecordDict()})
    assert _late(grid, WaitPolicy(20.0)).busy_nodes({5: "t1", 6: "t0"}) == set()


class BrokenGrid(FakeGrid):
    """SuperLink fails at each kind of request for a while."""

    failures = 2

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            httpx.Response(500, request=httpx.Request("POST", "https://superlink")).raise_for_status()

    def get_nodes(self):
        self._fail()
        return super().get_nodes()

    def push_messages(self, messages):
        self._fail()
        return super().push_messages(messages)


def test_a_superlink_that_fails_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_SECONDS_BETWEEN_SERVER_ERRORS", 0.01)
    assert _exchange(BrokenGrid({5: RecordDict()}))[5].content is not None


def test_a_superlink_that_goes_on_failing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_SERVER_ERROR_SECONDS", 0.0)
    with pytest.raises(httpx.HTTPStatusError):
        _exchange(BrokenGrid({5: RecordDict()}))
