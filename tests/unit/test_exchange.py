import time

import pytest
from flwr.app import ConfigRecord, Error, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from server import exchange
from server.exchange import Patience, receive, send
from tests.fake_grid import FakeGrid

GONE = Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(exchange, "_LEAST_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(exchange, "_RETURN_SECONDS", 0.3)


def _exchange(grid: FakeGrid, patience: Patience | float = 1.0):
    if not isinstance(patience, Patience):
        patience = Patience(patience)
    pending = send(grid, [*grid.answers, *grid.not_sent], RecordDict, "train", "1", patience)  # type: ignore
    return {reply.node_id: reply for reply in receive(pending)}


def test_every_node_that_was_asked_is_answered_for() -> None:
    grid = FakeGrid({5: RecordDict({"c": ConfigRecord({"x": 1})}), 6: Error(8, "crashed"), 7: None}, (8,))
    replies = _exchange(grid)
    assert replies.keys() == {5, 6, 7, 8}
    assert replies[5].content["c"]["x"] == 1
    assert (replies[6].content, replies[6].error, replies[6].missing) == (None, "crashed", False)
    assert replies[7].missing
    assert "no reply within 1 s" in replies[7].error
    assert "could not be sent" in replies[8].error


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
    assert time.monotonic() - started < 5


def test_a_round_with_all_replies_in_ends_before_its_deadline() -> None:
    started = time.monotonic()
    _exchange(FakeGrid({5: RecordDict(), 6: RecordDict()}), 60)
    assert time.monotonic() - started < 5


def test_replies_are_fetched_one_by_one() -> None:
    grid = FakeGrid({5: RecordDict(), 6: RecordDict(), 7: RecordDict()})
    _exchange(grid)
    assert set(grid.pulled_at_once) == {1}


def test_an_error_without_a_reason_names_its_code() -> None:
    assert _exchange(FakeGrid({5: Error(9)}))[5].error == "error code 9"


@pytest.mark.parametrize("seconds", [30.0, 90.0])
def test_a_message_expires_with_its_deadline(seconds: float) -> None:
    grid = FakeGrid({5: RecordDict()})
    send(grid, [5], RecordDict, "train", "1", Patience(seconds))  # type: ignore[arg-type]
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
        def pull_messages(self, message_ids):
            return [] if self.looks < 6 else super().pull_messages(message_ids)

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
    assert time.monotonic() - started < 10
    assert replies[5].missing
    assert "went offline" in replies[5].error


def test_a_message_that_waited_for_its_node_is_not_sent_twice() -> None:
    grid = RestartingGrid({5: None, 6: RecordDict()})
    grid.online_since = {6: "t0"}
    send_pending = send(grid, [5, 6], RecordDict, "train", "1", Patience(0.5))  # type: ignore[arg-type]
    send_pending.online_since[5] = None  # it was offline when it was asked
    grid.looks = 10
    assert [reply.missing for reply in receive(send_pending)] == [False, True]
    assert len(grid.sent) == 2


def test_stragglers_are_left_behind_once_the_quorum_is_in() -> None:
    answers = {5: RecordDict(), 6: RecordDict(), 7: RecordDict(), 8: None}
    started = time.monotonic()
    replies = _exchange(FakeGrid(answers), Patience(60.0, quorum=0.75, straggler_factor=4.0))
    assert time.monotonic() - started < 10
    assert replies[8].missing
    assert "while 3 nodes have replied" in replies[8].error


def test_below_the_quorum_the_deadline_counts() -> None:
    answers = {5: RecordDict(), 6: RecordDict(), 7: Error(2, "no"), 8: None}
    started = time.monotonic()
    replies = _exchange(FakeGrid(answers), Patience(1.0, quorum=0.75, straggler_factor=1.0))
    assert time.monotonic() - started >= 1.0
    assert "no reply within 1 s" in replies[8].error
