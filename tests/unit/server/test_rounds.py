import dataclasses
import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Error, MetricRecord, RecordDict

from federation.config import RunConfig
from federation.errors import FederationError
from federation.messages import CONFIG, HEADER, LAST_UPDATE, METRICS, UPDATE
from federation.release_ledger import LEDGER_FILE, read_ledger
from federation.settings import EvaluationConfig, FederationConfig, PrivacyConfig, WireConfig
from federation.wire.payload import Header, pack_tensors
from server.grid import exchange
from server.model import GlobalModel
from server.rounds import run_round
from server.run.round_record import Rejection, RoundRecord
from tests.fake_grid import FakeGrid
from tests.unit.server.replies import (
    FAST,
    METRIC_VALUES,
    NAN,
    make_nodes,
    make_reply,
    run_one_round,
)


def test_the_mean_is_weighted_by_examples(record, statistics) -> None:
    grid = FakeGrid({10: make_reply(1.0, num_examples=30), 11: make_reply(5.0, num_examples=10)})
    entry, weights = run_one_round(grid, record, statistics, "a", "b")
    assert weights.tolist() == [2.0, 2.0]
    assert entry.update_norm == pytest.approx(2 * math.sqrt(2))
    assert (entry.num_examples, entry.skipped_frames, entry.aggregated) == (40, 2, True)
    assert entry.policy_loss == {"mean": 1.0, "std": 0.0}
    assert entry.bytes == {"down": 16, "up": 16}


def test_useless_replies_make_no_quorum_that_honest_nodes_are_late_for(
    record, statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_MIN_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(exchange, "_POLL_INTERVAL_SECONDS", 0.02)
    ready_at = time.monotonic() + 0.5

    class Slow(FakeGrid):
        def _answer(self, id_):
            is_early = self.sent[id_].metadata.dst_node_id == 13 and time.monotonic() < ready_at
            return None if is_early else super()._answer(id_)

    bad = make_reply(num_examples=0)
    entry, _ = run_one_round(
        Slow({10: bad, 11: bad, 12: bad, 13: make_reply()}), record, statistics, "a", "b", "c", "d"
    )
    assert (list(entry.clients), entry.missing) == (["d"], [])


def test_a_silent_node_is_missing(record, statistics) -> None:
    entry, weights = run_one_round(FakeGrid({10: None, 11: make_reply(5.0)}), record, statistics, "a", "b")
    assert entry.missing == ["a"]
    assert weights.tolist() == [5.0, 5.0]


def test_without_a_good_update_the_weights_stay_and_the_round_says_so(record, statistics) -> None:
    entry, weights = run_one_round(FakeGrid({10: None, 11: Error(1, "no")}), record, statistics, "a", "b")
    assert weights.tolist() == [0.0, 0.0]
    assert (entry.aggregated, entry.policy_loss, entry.update_norm) == (False, None, 0.0)


def test_with_too_few_good_updates_the_weights_stay_and_the_round_is_marked(record, statistics) -> None:
    grid = FakeGrid({10: make_reply(1.0), 11: Error(1, "no"), 12: make_reply(num_examples=0)})
    entry, weights = run_one_round(grid, record, statistics, "a", "b", "c", min_updates=2)
    assert weights.tolist() == [0.0, 0.0]
    assert (entry.aggregated, entry.update_norm, list(entry.clients)) == (False, 0.0, ["a"])


@pytest.mark.parametrize(("mode", "releases"), [("none", 0), ("local", 2), ("central", 1)])
def test_a_node_that_restarts_in_the_round_is_sent_the_same_weights_again_and_counted(
    record, statistics, mode: str, releases: int
) -> None:
    class Restarting(FakeGrid):
        looks = 0

        def get_nodes(self):
            self.looks += 1
            self.online_since = {10: "t0" if self.looks < 3 else "t1"}
            return super().get_nodes()

    grid = Restarting({10: [None, make_reply(1.0)]})
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=20.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        privacy=PrivacyConfig(mode=mode),
        training=FAST,
    )
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    entry = run_round(grid, model, make_nodes("a"), 1, settings, record)  # type: ignore[arg-type]
    assert list(entry.clients) == ["a"]
    assert read_ledger(record.folder / LEDGER_FILE).count(1.0).total() == releases
    first, second = (message.content[HEADER]["sha256"] for message in grid.sent.values())
    assert first == second


def test_nothing_is_sent_that_is_not_counted_first(record, statistics) -> None:
    (record.folder / LEDGER_FILE).mkdir()
    grid = FakeGrid({10: make_reply(1.0)})
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    settings = RunConfig(privacy=PrivacyConfig(mode="local"))
    with pytest.raises(FederationError, match=f"{LEDGER_FILE} cannot be written"):
        run_round(grid, model, make_nodes("a"), 1, settings, record)  # type: ignore[arg-type]
    assert not grid.sent


def test_the_order_names_mu_and_what_is_evaluated_is_the_average(record, statistics) -> None:
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=dataclasses.replace(FAST, proximal_mu=0.01, adapt_proximal_mu=True),
        evaluation=EvaluationConfig(ema_decay=0.5),
    )
    clients = {"a": {"policy_loss": 0.4}, "b": {"policy_loss": 1.6}}
    previous = RoundRecord(0, proximal_mu=0.01, clients=clients)
    grid = FakeGrid({10: make_reply(0.0), 11: make_reply(4.0)})
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f", average={"w": torch.zeros(2)})
    nodes_ = make_nodes("a", "b")
    record.round_finished(previous)
    entry = run_round(grid, model, nodes_, 1, settings, record)  # type: ignore[arg-type]
    assert model.weights["w"].tolist() == [2.0, 2.0]
    torch.testing.assert_close(model.evaluated["w"], torch.full((2,), 2.0 * 9 / 11))
    assert entry.proximal_mu == 0.02
    assert all(m.content[CONFIG]["proximal_mu"] == 0.02 for m in grid.sent.values())


@pytest.mark.parametrize(("trained", "waits"), [(0.0, False), (100.0, True)])
def test_nobody_is_hurried_by_updates_that_were_trained_when_they_were_asked_for_before(
    record, statistics, monkeypatch: pytest.MonkeyPatch, trained: float, waits: bool
) -> None:
    monkeypatch.setattr(exchange, "_MIN_WAIT_SECONDS", 0.0)
    answers = {node: make_reply(train_seconds=trained) for node in (10, 11, 12)}
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0 if waits else 60.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=FAST,
    )
    grid, model = FakeGrid(answers | {13: None}), GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    entry = run_round(grid, model, make_nodes("a", "b", "c", "d"), 1, settings, record)  # type: ignore
    assert (sorted(entry.clients), entry.missing) == (["a", "b", "c"], ["d"])
    events = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    reason = next(event["reason"] for event in events if event["event"] == "reply_timed_out")
    assert ("no reply within 1 s" in reason) == waits


def test_with_partial_work_each_node_is_asked_for_its_own_steps_and_weighs_the_same(
    record, statistics
) -> None:
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0, partial_work=True),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=dataclasses.replace(FAST, local_steps=40, batch_size=1),
    )
    fast = {"num_examples": 40, "train_seconds": 10.0, "reply_seconds": 10.0}
    slow = {"num_examples": 10, "train_seconds": 10.0, "reply_seconds": 10.0}
    record.round_finished(RoundRecord(1, clients={"a": fast, "b": slow}))
    grid = FakeGrid({10: make_reply(4.0, num_examples=40), 11: make_reply(1.0, num_examples=10)})
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    entry = run_round(grid, model, make_nodes("a", "b"), 1, settings, record)  # type: ignore[arg-type]
    asked = {m.metadata.dst_node_id: m.content[CONFIG]["steps"] for m in grid.sent.values()}
    assert asked == {10: 40, 11: 10}
    assert sorted(entry.clients) == ["a", "b"]
    # 4 and 1 over the root of a quarter, times the mean root.
    torch.testing.assert_close(model.weights["w"], torch.full((2,), 3.0 * 0.75))


def test_without_partial_work_nobody_is_asked_for_steps(record, statistics) -> None:
    grid = FakeGrid({10: make_reply(1.0)})
    run_one_round(grid, record, statistics, "a")
    assert all("steps" not in message.content[CONFIG] for message in grid.sent.values())


def test_the_train_request_names_the_reverted_rounds(record, statistics) -> None:
    grid = FakeGrid({10: make_reply(1.0)})
    run_one_round(grid, record, statistics, "a")
    for entry in (RoundRecord(3, reverted_to=1), RoundRecord(4), RoundRecord(6, reverted_to=4)):
        record.round_finished(entry)
    again = FakeGrid({10: make_reply(1.0)})
    run_one_round(again, record, statistics, "a")
    named = [message.content[CONFIG]["undone"] for g in (grid, again) for message in g.sent.values()]
    assert named == [[], [2, 3, 5, 6]]


def test_each_node_alone_is_told_what_became_of_its_last_update(record, statistics) -> None:
    first = {"a": {}, "b": {}}
    record.round_finished(RoundRecord(1, clients=first, rejected={"c": Rejection("norm", "far too large")}))
    record.round_finished(RoundRecord(2, rejected={"b": NAN}, missing=["d"]))
    grid = FakeGrid({node: make_reply(1.0) for node in range(10, 15)})
    run_one_round(grid, record, statistics, "a", "b", "c", "d", "e")
    told = {m.metadata.dst_node_id: dict(m.content[LAST_UPDATE]) for m in grid.sent.values()}
    assert told == {
        10: {"text": "accepted in round 1"},
        11: {"text": "rejected in round 2: NaN"},
        12: {"text": "rejected in round 1: far too large"},
        13: {"text": "not there in time in round 2"},
        14: {"text": ""},
    }
    orders = [m.content[CONFIG] for m in grid.sent.values()]
    assert all(order == orders[0] for order in orders)  # by it a site knows a request that comes again


def test_what_a_round_leaves_open_is_watched(record, statistics) -> None:
    """A node that is still at work when the round ends must not be asked for the next one."""
    watched: list[dict[str, exchange.OpenMessage]] = []
    late = SimpleNamespace(watch=lambda ended: watched.append(ended.open_messages()))
    grid = FakeGrid({10: make_reply(), 11: None})
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "")
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=FAST,
    )
    run_round(grid, model, make_nodes("a", "b"), 1, settings, record, late=late)  # type: ignore[arg-type]
    ((left,),) = (opened.values() for opened in watched)
    assert left.node_id == 11


def test_an_update_larger_than_the_answer_to_a_question_may_be_is_taken(record, statistics) -> None:
    size = 2_000_000  # 8 MB
    base = pack_tensors([("w", torch.zeros(size))], Header("fp32", "run", 1, ""))[2].sha256
    arrays, header, _ = pack_tensors([("w", torch.ones(size))], Header("fp32", "run", 1, base))
    reply = RecordDict({UPDATE: arrays, HEADER: header, METRICS: MetricRecord(METRIC_VALUES)})  # type: ignore
    settings = RunConfig(wire=WireConfig(download="fp32", upload="fp32"), training=FAST)
    model = GlobalModel({"w": torch.zeros(size)}, statistics, "f")
    entry = run_round(FakeGrid({10: reply}), model, make_nodes("a"), 1, settings, record)  # type: ignore
    assert (list(entry.clients), entry.rejected) == (["a"], {})
