"""What a round takes in: whose update is good, rejected or held for its norm, and what it weighs."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from federation.config import RunConfig
from federation.errors import FederationError
from federation.messages import HEADER, METRICS, UPDATE
from federation.settings import FederationConfig, PrivacyConfig, TrainingConfig, WireConfig
from federation.wire.payload import Header, Payload
from server import update_collector
from server.aggregation.verification import verify_reply
from server.grid.exchange import Reply
from server.join_answer import Node
from server.model import GlobalModel
from server.rounds import run_round
from server.update_collector import UpdateCollector
from tests.fake_grid import FakeGrid
from tests.unit.server.replies import (
    FAST,
    METRIC_VALUES,
    make_nodes,
    make_reply,
    make_update,
    run_one_round,
)


def _damaged() -> RecordDict:
    reply = make_reply()
    reply[UPDATE]["000000"] = Array(np.array([1.0, np.nan], np.float32).view(np.uint8))
    return reply


def _replayed() -> RecordDict:
    reply = make_reply()
    reply[UPDATE], reply[HEADER] = make_update(1.0, run="another")
    return reply


def _without_arrays() -> RecordDict:
    reply = make_reply()
    reply[UPDATE] = ArrayRecord({})
    return reply


def _with_an_impossible_shape() -> RecordDict:
    reply = make_reply()
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (-2, -16)}
    np.lib.format.write_array_header_1_0(file, header)
    reply[UPDATE]["000000"] = Array("uint8", (8,), "numpy.ndarray", file.getvalue() + bytes(32))
    return reply


BAD_REPLIES = [
    (_damaged(), "NaN or infinity"),
    (_with_an_impossible_shape(), "does not hold the uint8 values expected"),
    (_replayed(), "run is 'another', expected 'run'"),
    (make_reply(num_examples=0), "nothing was trained on"),
    (make_reply(num_examples=-5), "not negative"),
    (make_reply(skipped_frames=2**62), "whole number from 0 to 1000000000000000"),
    (make_reply(download_bytes=-1), "not negative"),
    (make_reply(train_seconds=-1.0), "train_seconds = -1.0 must not be negative"),
    (make_reply(setup_seconds=1e9), "setup_seconds = 1000000000.0 must be a finite number, not beyond 1e+07"),
    (make_reply(device_memory_bytes=-1), "must not be negative"),
    (make_reply(answered_at=-1e9), "must not be negative"),
    (make_reply(gpu_utilisation=1.5), "gpu_utilisation = 1.5 must be a finite number, not beyond 1"),
    (make_reply(gpu_celsius=float("nan")), "gpu_celsius = nan must be a finite number"),
    (make_reply(learning_rate=-1e-3), "must not be negative"),
    (make_reply(policy_loss=[1.0, 2.0]), "policy_loss = [1.0, 2.0]"),
    (make_reply(num_examples=2.5), "whole number"),
    (make_reply(num_examples=10**9), "the round's steps are of 3200 at most"),
    (make_reply(3e38), "no training"),
    (make_reply(policy_loss=1e300), "policy_loss = 1e+300"),
    (Error(1, "one\nWARNING another line" + 10**6 * "x"), "one WARNING another linexxx"),
    (make_reply(policy_loss=float("inf")), "policy_loss = inf"),
    (make_reply(policy_loss=None), "policy_loss = None"),
    (make_reply(policy_loss=-0.5), "policy_loss = -0.5 must not be negative"),
    (make_reply(proximal_loss=-1e-3), "proximal_loss = -0.001 must not be negative"),
    (make_reply(grad_norm=-1), "grad_norm = -1 must not be negative"),
    (RecordDict(), "lacks 'update', 'header' or 'metrics'"),
    (RecordDict({UPDATE: ConfigRecord({}), METRICS: MetricRecord({})}), "lacks"),
    (_without_arrays(), "it holds 0 bytes"),
    (Error(1, "out of memory"), "out of memory"),
]


def _code_of(reason: str) -> str:
    if reason == "no training":
        return "norm"
    if "expected 'run'" in reason:
        return "not_current"
    if any(word in reason for word in ("finite", "NaN", " = inf", " = None", "1e+300", "[1.0, 2.0]")):
        return "non_finite"
    return "node_failed" if "another line" in reason or reason == "out of memory" else "malformed"


@pytest.mark.parametrize(("bad", "reason"), BAD_REPLIES, ids=[reason for _, reason in BAD_REPLIES])
def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(record, statistics, bad, reason) -> None:
    entry, weights = run_one_round(FakeGrid({10: bad, 11: make_reply(5.0)}), record, statistics, "a", "b")
    assert weights.tolist() == [5.0, 5.0]
    assert list(entry.clients) == ["b"]
    assert reason in entry.rejected["a"].reason
    assert len(entry.rejected["a"].reason) < 1000
    assert entry.rejected["a"].code == _code_of(reason)
    record.round_finished(entry)  # JSON takes it


def test_figures_at_their_limit_can_be_averaged_and_recorded(record, statistics) -> None:
    grid = FakeGrid({10: make_reply(policy_loss=1e18, learning_rate=1e18), 11: make_reply()})
    entry, _ = run_one_round(grid, record, statistics, "a", "b")
    assert entry.rejected == {}
    record.round_finished(entry)


NORM_OF_1 = math.sqrt(2)


@pytest.mark.parametrize("norms", [(), (NORM_OF_1,) * 4], ids=["first round", "later round"])
def test_an_update_a_thousand_times_as_large_is_refused(record, statistics, norms) -> None:
    answers = {10: make_reply(1000.0), 11: make_reply(1.0), 12: make_reply(2.0), 13: make_reply(1.5)}
    entry, weights = run_one_round(FakeGrid(answers), record, statistics, "a", "b", "c", "d", norms=norms)
    assert list(entry.clients) == ["b", "c", "d"]
    reason = entry.rejected["a"].reason
    assert "1000 times the median of the round" in reason or "norm is" in reason
    assert weights.tolist() == [1.5, 1.5]


LOCAL_EPOCHS = dataclasses.replace(FAST, local_epochs=1.0, batch_size=10, gradient_accumulation_steps=2)


def _epoch(
    record, statistics, sites: dict[str, tuple[int, float]], training: TrainingConfig = LOCAL_EPOCHS
) -> tuple[dict, GlobalModel]:
    """A round with `local_epochs`: name -> frames that the site claims, and the value of its update."""
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=training,
    )
    joined = [Node(i, n, 30, 3, frames, ("top",), {}) for i, (n, (frames, _)) in enumerate(sites.items(), 10)]
    grid = FakeGrid(
        {node.node_id: make_reply(sites[node.name][1], num_examples=node.frames) for node in joined}
    )
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    return run_round(grid, model, joined, 1, settings, record), model  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "is_refused"), [(39.0, False), (200.0, True)])
def test_with_local_epochs_norms_are_judged_by_the_root_of_the_steps(
    record, statistics, value: float, is_refused: bool
) -> None:
    entry, model = _epoch(record, statistics, {"a": (20, 1.0), "b": (20, 1.0), "c": (1000, value)})
    assert list(entry.rejected) == (["c"] if is_refused else [])
    if is_refused:
        assert "its norm is 282.8, for its steps 50 times the median" in entry.rejected["c"].reason
        assert list(model.norms) == []
    else:  # as of the steps of the median site
        assert list(model.norms) == pytest.approx([NORM_OF_1])


def test_an_honest_small_site_beside_large_ones_is_not_refused(record, statistics) -> None:
    small, large = 2.41, 10.9  # tests/benchmarks/update_norms.json: 10 and 1000 steps
    for sites in (
        {"a": (200, small), "b": (20000, large), "c": (20000, large)},
        {"a": (200, small), "b": (200, small), "c": (20000, large)},
    ):
        entry, _ = _epoch(record, statistics, sites)
        assert entry.rejected == {}


@pytest.mark.parametrize("others", [1, 2, 4])
def test_a_site_that_claims_any_number_of_frames_gains_nothing(record, statistics, others: int) -> None:
    """It weighs as much as the others, and its update is divided by the root of the steps that count."""
    honest = {f"site-{i}": (100, 0.0) for i in range(others)}
    entry, model = _epoch(record, statistics, {**honest, "liar": (10**9, 1.0)})
    assert entry.capped == {"liar": 100.0}
    assert model.weights["w"].tolist() == pytest.approx([1 / (1 + others) / 4] * 2)
    record.round_finished(entry)
    slow = dataclasses.replace(LOCAL_EPOCHS, learning_rate=1e-4)
    entry, _ = _epoch(record, statistics, {**honest, "liar": (10**9, 1.0)}, slow)
    assert "steps of this learning rate make" in entry.rejected["liar"].reason


@pytest.mark.parametrize(
    ("now", "is_refused"),
    [({}, True), ({"frames": 60, "episodes": 4}, False), ({"frames": 0}, True), ({"frames": 10**10}, True)],
)
def test_a_site_that_was_given_a_recording_since_it_joined_may_train_on_it(
    record, statistics, now: dict[str, int], is_refused: bool
) -> None:
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=LOCAL_EPOCHS,
    )
    joined = [Node(i, name, 30, 3, 20, ("top",), {}) for i, name in enumerate("ab", 10)]
    grid = FakeGrid({10: make_reply(1.0, num_examples=60, **now), 11: make_reply(1.0, num_examples=20)})
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    entry = run_round(grid, model, joined, 1, settings, record)  # type: ignore[arg-type]
    assert list(entry.rejected) == (["a"] if is_refused else [])
    assert entry.capped == ({} if is_refused else {"a": 20})  # it weighs no more for its own word


def test_without_local_epochs_nobody_is_capped(record, statistics) -> None:
    entry, _ = run_one_round(
        FakeGrid({10: make_reply(num_examples=3200), 11: make_reply(num_examples=1)}),
        record,
        statistics,
        "a",
        "b",
    )
    assert entry.capped == {}


@pytest.mark.parametrize("value", [1e-6, 0.0, 1000.0])
@pytest.mark.parametrize("norms", [(), (NORM_OF_1,) * 4], ids=["first round", "later round"])
def test_of_two_nobody_is_judged_by_the_other(record, statistics, value: float, norms) -> None:
    entry, weights = run_one_round(
        FakeGrid({10: make_reply(1.0), 11: make_reply(value)}), record, statistics, "a", "b", norms=norms
    )
    assert entry.rejected == {}
    assert weights.tolist() == pytest.approx([(1 + value) / 2] * 2)


def test_of_two_updates_that_came_of_three_nobody_is_judged_by_the_other(record, statistics) -> None:
    grid = FakeGrid({10: make_reply(1.0), 11: make_reply(1000.0), 12: None})
    entry, _ = run_one_round(grid, record, statistics, "a", "b", "c")
    assert (list(entry.clients), entry.rejected) == (["a", "b"], {})


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_an_update_that_no_training_makes_is_refused_however_few_sites_there_are(
    record, statistics, names: str
) -> None:
    grid = FakeGrid({10: make_reply(1e6)} | {10 + i: make_reply(1.0) for i in range(1, len(names))})
    entry, weights = run_one_round(grid, record, statistics, *names)
    assert "its norm is 1.414e+06; steps of this learning rate make 5.6" in entry.rejected["a"].reason
    assert weights.tolist() == ([1.0, 1.0] if len(names) > 1 else [0.0, 0.0])


def test_the_history_of_norms_is_one_figure_a_round_that_no_site_alone_can_move(record, statistics) -> None:
    settings = RunConfig(wire=WireConfig(download="fp32", upload="fp32"), training=FAST)
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")

    def norms_after(*values: float) -> list[float]:
        names = "abcd"[: len(values)]
        grid = FakeGrid({10 + i: make_reply(value) for i, value in enumerate(values)})
        run_round(grid, model, make_nodes(*names), 1, settings, record)  # type: ignore[arg-type]
        model.weights["w"].zero_()  # the made-up replies are to the weights of the start
        return [norm / NORM_OF_1 for norm in model.norms]

    assert norms_after(1e-6, 1.0) == []
    assert norms_after(1e-6, 1.0, 2.0) == pytest.approx([1.0])
    assert norms_after(9.0, 1.0, 2.0) == pytest.approx([1.0, 2.0])
    assert norms_after(1e-6, 3.0, 4.0, 5.0) == pytest.approx([1.0, 2.0, 3.0])


METRICS_OF_STRANGERS = st.dictionaries(
    st.sampled_from(list(METRIC_VALUES)),
    st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.lists(st.floats(), max_size=3)
    | st.lists(st.integers(0, 9)),
)


@given(METRICS_OF_STRANGERS)
def test_whatever_a_node_reports_of_its_training_it_is_usable_or_refused_with_one_line(changes: dict) -> None:
    content = make_reply(**changes)
    expected = Header("fp32", "run", 1, str(content[HEADER]["base"]))
    try:
        _, metrics = verify_reply(
            Reply(1, content, "", False, 2.0), {"w": torch.Size([2])}, expected, max_examples=10**9
        )
    except FederationError as error:
        assert "\n" not in str(error)
    else:
        assert all(math.isfinite(value) and value >= 0 for value in metrics.values())
        spent = update_collector._transfer_seconds(2.0, metrics["received_at"], metrics["answered_at"])
        assert all(0 <= seconds <= 2.0 for seconds in spent.values())


def test_a_jump_that_all_nodes_share_is_no_reason_to_refuse_them(record, statistics) -> None:
    grid = FakeGrid({10: make_reply(40.0), 11: make_reply(42.0), 12: make_reply(44.0)})
    entry, weights = run_one_round(grid, record, statistics, "a", "b", "c", norms=(NORM_OF_1,) * 30)
    assert entry.rejected == {}
    assert weights.tolist() == [42.0, 42.0]


def test_the_noise_on_the_server_is_not_undone_by_whose_norms_are_compared(record, statistics) -> None:
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        privacy=PrivacyConfig(mode="central", clip_norm=NORM_OF_1, noise_multiplier=1e-9),
    )
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    grid = FakeGrid({10: make_reply(1.0), 11: make_reply(1.0), 12: make_reply(1000.0)})
    entry = run_round(grid, model, make_nodes("a", "b", "c"), 1, settings, record)  # type: ignore[arg-type]
    assert list(entry.clients) == ["a", "b", "c"]
    torch.testing.assert_close(model.weights["w"], torch.ones(2))


def test_nodes_that_learnt_nothing_do_not_make_the_others_guilty(record, statistics) -> None:
    grid = FakeGrid({10: make_reply(0.0), 11: make_reply(0.0), 12: make_reply(3.0)})
    entry, _ = run_one_round(grid, record, statistics, "a", "b", "c")
    assert entry.rejected == {}


def _collector(
    record, statistics, *names: str, norms: tuple[float, ...] = (), asked: dict[str, int] | None = None
) -> UpdateCollector:
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    model.norms.extend(norms)
    expected = Header("fp32", "run", 1, str(make_reply()[HEADER]["base"]))
    most = dict.fromkeys(names, 1000) | (asked or {})
    training = dataclasses.replace(FAST, local_steps=100, batch_size=1)
    return UpdateCollector(model, expected, RunConfig(training=training), record, most, asked or {})


def _replied(content: RecordDict | None, error: str = "", *, missing: bool = False) -> Reply:
    return Reply(1, content, error, missing, 2.0)


def test_a_reply_counts_once_by_what_it_brought_and_only_a_usable_one_for_the_quorum(
    record, statistics
) -> None:
    collector = _collector(record, statistics, "a", "b", "c", norms=(NORM_OF_1,) * 4)
    assert collector.add("a", _replied(make_reply()))
    assert not collector.add("b", _replied(None, "no reply in time", missing=True))
    assert not collector.add("c", _replied(None, "out of memory"))
    assert collector.finalize() == 1
    assert (list(collector.clients), collector.missing, list(collector.rejected)) == (["a"], ["b"], ["c"])
    events = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["node"]) for event in events] == [
        ("update_received", "a"),
        ("reply_timed_out", "b"),
        ("update_rejected", "c"),
    ]


def test_an_update_unlike_the_recent_ones_is_held_until_all_are_in(record, statistics) -> None:
    collector = _collector(record, statistics, "a", "b", "c", "d", norms=(NORM_OF_1,) * 4)
    for name, value in zip("abcd", (1.0, 1000.0, 1.5, 2.0), strict=True):
        assert collector.add(name, _replied(make_reply(value)))
    assert list(collector.clients) == ["a", "c", "d"]
    assert collector.rejected == {}
    assert collector.finalize() == 3
    assert list(collector.rejected) == ["b"]
    assert collector.typical_norm == pytest.approx(1.5 * NORM_OF_1)


def test_an_update_of_fewer_steps_is_judged_as_it_counts_in_the_mean(record, statistics) -> None:
    asked = {"a": 100, "b": 100, "c": 25, "d": 25}
    collector = _collector(record, statistics, *asked, asked=asked)
    for (name, steps), value in zip(asked.items(), (1.0, 1.5, 0.5, 6.0), strict=True):
        collector.add(name, _replied(make_reply(value, num_examples=steps)))
    assert collector.finalize() == 3
    assert "for its steps 12 times the median" in collector.rejected["d"].reason  # twice 6, over 1
    (_, mean), *_ = collector.aggregator.aggregate()
    # 1, 1.5 and twice 0.5, times the mean root of the shares
    torch.testing.assert_close(mean, torch.full((2,), 3.5 / 3 * 2.5 / 3))


@pytest.mark.parametrize("claimed", [9, 11])
def test_a_site_takes_the_steps_that_it_was_asked_for(record, statistics, claimed: int) -> None:
    collector = _collector(record, statistics, "a", asked={"a": 10})
    assert not collector.add("a", _replied(make_reply(1.0, num_examples=claimed)))
    assert f"num_examples = {claimed}: the" in collector.rejected["a"].reason


@pytest.mark.parametrize("is_writable", [True, False])
def test_updates_that_are_held_beyond_a_bound_wait_on_disk(
    record, statistics, tmp_path, monkeypatch, caplog, is_writable: bool
) -> None:
    """In a first round all are held. The sum is the same, and where scratch fails they stay in memory."""
    scratch = tmp_path / "scratch"
    if is_writable:
        scratch.mkdir()
    monkeypatch.setenv("FEDERATION_SCRATCH", str(scratch))
    on_disk: list[Payload] = []
    to_disk = Payload.on_disk

    def counted(payload: Payload, folder: Path) -> Payload:
        on_disk.append(to_disk(payload, folder))
        return on_disk[-1]

    monkeypatch.setattr(Payload, "on_disk", counted)
    sums = []
    for bound in (500 * 10**6, 10):  # an update is 8 bytes
        monkeypatch.setattr(update_collector, "_MAX_HELD_BYTES", bound)
        collector = _collector(record, statistics, "a", "b", "c")
        for name, value in zip("abc", (1.0, 1.5, 2.0), strict=True):
            assert collector.add(name, _replied(make_reply(value)))
        assert collector.finalize() == 3
        sums.append(dict(collector.aggregator.aggregate())["w"])
    assert torch.equal(*sums)
    assert len(on_disk) == (2 if is_writable else 0)
    assert ("scratch cannot be written" in caplog.text) != is_writable


def test_a_node_is_believed_no_time_that_the_reply_did_not_take(record, statistics) -> None:
    collector = _collector(record, statistics, "a")
    collector.add("a", _replied(make_reply(received_at=0.0, answered_at=1e9)))
    collector.finalize()
    figures = collector.clients["a"]
    assert (figures["download_seconds"], figures["upload_seconds"], figures["reply_seconds"]) == (0, 0, 2)
    assert figures["update_bytes"] == 8
    assert collector.typical_norm is None  # of one, nobody else's to compare with


@pytest.mark.parametrize(
    "held", [{"frames": 0}, {"frames": 10**10}, {"episodes": 0}, {"episodes": -1}, {"episodes": 10**12}]
)
def test_what_a_site_says_that_it_holds_is_read_within_limits(record, statistics, held) -> None:
    grid = FakeGrid({10: make_reply(1.0, **held), 11: make_reply(5.0)})
    entry, _ = run_one_round(grid, record, statistics, "a", "b")
    assert list(entry.clients) == ["b"]
    assert f"{next(iter(held))} = " in entry.rejected["a"].reason


def test_a_site_of_fewer_steps_weighs_the_same_among_three(record, statistics) -> None:
    asked = {"a": 100, "b": 100, "c": 25}
    collector = _collector(record, statistics, *asked, asked=asked)
    for (name, steps), value in zip(asked.items(), (1.0, 1.0, 2.0), strict=True):
        collector.add(name, _replied(make_reply(value, num_examples=steps)))
    assert collector.finalize() == 3
    ((_, mean),) = collector.aggregator.aggregate()
    torch.testing.assert_close(mean, torch.full((2,), 6 / 3 * 2.5 / 3))
