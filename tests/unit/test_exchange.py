import time

import pytest
from flwr.app import ConfigRecord, Error, RecordDict

from server.exchange import receive, send
from tests.fake_grid import FakeGrid


def _exchange(grid: FakeGrid, deadline_seconds: float = 1.0):
    contents = {node_id: RecordDict() for node_id in [*grid.answers, *grid.not_sent]}
    pending = send(grid, contents, "train", "1", deadline_seconds)  # type: ignore[arg-type]
    return {reply.node_id: reply for reply in receive(grid, pending)}  # type: ignore[arg-type]


def test_every_node_that_was_asked_is_answered_for() -> None:
    grid = FakeGrid({5: RecordDict({"c": ConfigRecord({"x": 1})}), 6: Error(3, "crashed"), 7: None}, (8,))
    replies = _exchange(grid)
    assert replies.keys() == {5, 6, 7, 8}
    assert replies[5].content["c"]["x"] == 1
    assert (replies[6].content, replies[6].error, replies[6].missing) == (None, "crashed", False)
    assert replies[7].missing
    assert "no reply within 1 s" in replies[7].error
    assert "could not be sent" in replies[8].error


def test_a_lost_message_does_not_hold_the_round_past_its_deadline() -> None:
    started = time.monotonic()
    _exchange(FakeGrid({5: None}), deadline_seconds=0.6)
    assert time.monotonic() - started < 5


def test_a_round_with_all_replies_in_ends_before_its_deadline() -> None:
    started = time.monotonic()
    _exchange(FakeGrid({5: RecordDict(), 6: RecordDict()}), deadline_seconds=60)
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
    send(grid, {5: RecordDict()}, "train", "1", seconds)  # type: ignore[arg-type]
    assert next(iter(grid.sent.values())).metadata.ttl == seconds
