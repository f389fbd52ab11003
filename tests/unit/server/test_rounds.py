import dataclasses
import io
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.config import (
    EvaluationConfig,
    FederationConfig,
    PrivacyConfig,
    RunConfig,
    TrainingConfig,
    WireConfig,
)
from federation.data.description import describe_dataset
from federation.data.statistics import Statistics
from federation.errors import FederationError
from federation.messages import ANSWER, CONFIG, HEADER, METRICS, QUERY_SHUT_OUT, REASON, STATISTICS, UPDATE
from federation.release_ledger import LEDGER_FILE, read_ledger
from federation.versions import versions
from federation.wire.payload import Header, pack_tensors, statistics_to_record
from server import join_answer, nodes, update_collector, waiting
from server.aggregation.verification import largest_norm, verify_reply
from server.grid import exchange
from server.grid.exchange import Exchange, Reply, WaitPolicy
from server.join_answer import Node
from server.model import GlobalModel
from server.nodes import NodeTable
from server.rounds import run_round
from server.run.records import RunRecord
from server.run.round_record import Rejection, RoundRecord
from server.sampling import sample_nodes
from tests.fake_grid import FakeGrid

FAST = TrainingConfig(learning_rate=1e3)  # the updates here are made up, and far from what 1e-4 can train
METRIC_VALUES = {
    "num_examples": 10,
    "skipped_frames": 1,
    "download_bytes": 8,
    "policy_loss": 1.0,
    "proximal_loss": 0.1,
    "grad_norm": 2.0,
    "update_norm": 3.0,
    "learning_rate": 1e-3,
    "train_seconds": 1.0,
    "setup_seconds": 1.0,
    "data_seconds": 0.5,
    "device_memory_bytes": 1000,
    "received_at": 1.0,
    "answered_at": 3.0,
}


def _reply(value: float = 1.0, **changes: object) -> RecordDict:
    metrics = {key: v for key, v in (METRIC_VALUES | changes).items() if v is not None}
    arrays, header = _update(value)
    return RecordDict({UPDATE: arrays, HEADER: header, METRICS: MetricRecord(metrics)})  # type: ignore


def _update(value: float, run: str = "run") -> tuple[ArrayRecord, ConfigRecord]:
    base = pack_tensors([("w", torch.zeros(2))], Header("fp32", run, 1, ""))[2].sha256
    arrays, header, _ = pack_tensors([("w", torch.full((2,), value))], Header("fp32", run, 1, base))
    return arrays, header


NAN = Rejection("non_finite", "NaN")
OUT_OF_MEMORY = Rejection("node_failed", "out of memory")


def _nodes(*names: str) -> list[Node]:
    return [Node(i, name, 30, 3, 90, ("top",), {}) for i, name in enumerate(names, start=10)]


@pytest.fixture
def record(tmp_path) -> RunRecord:
    return RunRecord(tmp_path, "run", RunConfig())


def _run(
    grid: FakeGrid,
    record: RunRecord,
    statistics,
    *names: str,
    min_updates: int = 1,
    norms: tuple[float, ...] = (),
) -> tuple[RoundRecord, torch.Tensor]:
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    model.norms.extend(norms)
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0, min_updates=min_updates),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=FAST,
    )
    return run_round(grid, model, _nodes(*names), 1, settings, record), model.weights["w"]  # type: ignore


def test_the_mean_is_weighted_by_examples(record, statistics) -> None:
    grid = FakeGrid({10: _reply(1.0, num_examples=30), 11: _reply(5.0, num_examples=10)})
    entry, weights = _run(grid, record, statistics, "a", "b")
    assert weights.tolist() == [2.0, 2.0]
    assert entry.update_norm == pytest.approx(2 * math.sqrt(2))
    assert (entry.num_examples, entry.skipped_frames, entry.aggregated) == (40, 2, True)
    assert entry.policy_loss == {"mean": 1.0, "std": 0.0}
    assert entry.bytes == {"down": 16, "up": 16}


def _damaged() -> RecordDict:
    reply = _reply()
    reply[UPDATE]["000000"] = Array(np.array([1.0, np.nan], np.float32).view(np.uint8))
    return reply


def _replayed() -> RecordDict:
    reply = _reply()
    reply[UPDATE], reply[HEADER] = _update(1.0, run="another")
    return reply


def _without_arrays() -> RecordDict:
    reply = _reply()
    reply[UPDATE] = ArrayRecord({})
    return reply


def _with_an_impossible_shape() -> RecordDict:
    reply = _reply()
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (-2, -16)}
    np.lib.format.write_array_header_1_0(file, header)
    reply[UPDATE]["000000"] = Array("uint8", (8,), "numpy.ndarray", file.getvalue() + bytes(32))
    return reply


BAD_REPLIES = [
    (_damaged(), "NaN or infinity"),
    (_with_an_impossible_shape(), "does not hold the uint8 values expected"),
    (_replayed(), "run is 'another', expected 'run'"),
    (_reply(num_examples=0), "nothing was trained on"),
    (_reply(num_examples=-5), "not negative"),
    (_reply(skipped_frames=2**62), "whole number from 0 to 1000000000000000"),
    (_reply(download_bytes=-1), "not negative"),
    (_reply(train_seconds=-1.0), "train_seconds = -1.0 must not be negative"),
    (_reply(setup_seconds=1e9), "setup_seconds = 1000000000.0 must be a finite number, not beyond 1e+07"),
    (_reply(device_memory_bytes=-1), "must not be negative"),
    (_reply(answered_at=-1e9), "must not be negative"),
    (_reply(learning_rate=-1e-3), "must not be negative"),
    (_reply(policy_loss=[1.0, 2.0]), "policy_loss = [1.0, 2.0]"),
    (_reply(num_examples=2.5), "whole number"),
    (_reply(num_examples=10**9), "the round's steps are of 3200 at most"),
    (_reply(3e38), "no training"),
    (_reply(policy_loss=1e300), "policy_loss = 1e+300"),
    (Error(1, "one\nWARNING another line" + 10**6 * "x"), "one WARNING another linexxx"),
    (_reply(policy_loss=float("inf")), "policy_loss = inf"),
    (_reply(policy_loss=None), "policy_loss = None"),
    (_reply(policy_loss=-0.5), "policy_loss = -0.5 must not be negative"),
    (_reply(proximal_loss=-1e-3), "proximal_loss = -0.001 must not be negative"),
    (_reply(grad_norm=-1), "grad_norm = -1 must not be negative"),
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
    entry, weights = _run(FakeGrid({10: bad, 11: _reply(5.0)}), record, statistics, "a", "b")
    assert weights.tolist() == [5.0, 5.0]
    assert list(entry.clients) == ["b"]
    assert reason in entry.rejected["a"].reason
    assert len(entry.rejected["a"].reason) < 1000
    assert entry.rejected["a"].code == _code_of(reason)
    record.round_finished(entry)  # JSON takes it


def test_figures_at_their_limit_can_be_averaged_and_recorded(record, statistics) -> None:
    grid = FakeGrid({10: _reply(policy_loss=1e18, learning_rate=1e18), 11: _reply()})
    entry, _ = _run(grid, record, statistics, "a", "b")
    assert entry.rejected == {}
    record.round_finished(entry)


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

    bad = _reply(num_examples=0)
    entry, _ = _run(Slow({10: bad, 11: bad, 12: bad, 13: _reply()}), record, statistics, "a", "b", "c", "d")
    assert (list(entry.clients), entry.missing) == (["d"], [])


def test_a_silent_node_is_missing(record, statistics) -> None:
    entry, weights = _run(FakeGrid({10: None, 11: _reply(5.0)}), record, statistics, "a", "b")
    assert entry.missing == ["a"]
    assert weights.tolist() == [5.0, 5.0]


def test_without_a_good_update_the_weights_stay_and_the_round_says_so(record, statistics) -> None:
    entry, weights = _run(FakeGrid({10: None, 11: Error(1, "no")}), record, statistics, "a", "b")
    assert weights.tolist() == [0.0, 0.0]
    assert (entry.aggregated, entry.policy_loss, entry.update_norm) == (False, None, 0.0)


NORM_OF_1 = math.sqrt(2)


@pytest.mark.parametrize("norms", [(), (NORM_OF_1,) * 4], ids=["first round", "later round"])
def test_an_update_a_thousand_times_as_large_is_refused(record, statistics, norms) -> None:
    answers = {10: _reply(1000.0), 11: _reply(1.0), 12: _reply(2.0), 13: _reply(1.5)}
    entry, weights = _run(FakeGrid(answers), record, statistics, "a", "b", "c", "d", norms=norms)
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
    grid = FakeGrid({node.node_id: _reply(sites[node.name][1], num_examples=node.frames) for node in joined})
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    return run_round(grid, model, joined, 1, settings, record), model  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "is_refused"), [(39.0, False), (200.0, True)])
def test_with_local_epochs_norms_are_judged_by_the_root_of_the_steps(
    record, statistics, value: float, is_refused: bool
) -> None:
    entry, model = _epoch(record, statistics, {"a": (20, 1.0), "b": (20, 1.0), "c": (1000, value)})
    assert list(entry.rejected) == (["c"] if is_refused else [])
    if is_refused:
        assert "its norm is 282.8, by the root of its steps 50 times the median" in entry.rejected["c"].reason
        assert list(model.norms) == []
    else:  # as of the 200 steps of training.local_steps
        assert list(model.norms) == pytest.approx([NORM_OF_1 * math.sqrt(200)])


def test_an_honest_small_site_beside_large_ones_is_not_refused(record, statistics) -> None:
    small, large = 2.41, 10.9  # tests/benchmarks/update_norms.json: 10 and 1000 steps
    for sites in (
        {"a": (200, small), "b": (20000, large), "c": (20000, large)},
        {"a": (200, small), "b": (200, small), "c": (20000, large)},
    ):
        entry, _ = _epoch(record, statistics, sites)
        assert entry.rejected == {}


@pytest.mark.parametrize("others", [1, 2, 4])
def test_a_site_that_claims_any_number_of_frames_weighs_as_much_as_the_others(
    record, statistics, others: int
) -> None:
    honest = {f"site-{i}": (100, 0.0) for i in range(others)}
    entry, model = _epoch(record, statistics, {**honest, "liar": (10**9, 1.0)})
    assert entry.capped == {"liar": 100.0}
    assert model.weights["w"].tolist() == pytest.approx([1 / (1 + others)] * 2)
    record.round_finished(entry)
    slow = dataclasses.replace(LOCAL_EPOCHS, learning_rate=1e-4)
    entry, _ = _epoch(record, statistics, {**honest, "liar": (10**9, 1.0)}, slow)
    assert "steps of this learning rate make" in entry.rejected["liar"].reason


def test_without_local_epochs_nobody_is_capped(record, statistics) -> None:
    entry, _ = _run(
        FakeGrid({10: _reply(num_examples=3200), 11: _reply(num_examples=1)}), record, statistics, "a", "b"
    )
    assert entry.capped == {}


@pytest.mark.parametrize("value", [1e-6, 0.0, 1000.0])
@pytest.mark.parametrize("norms", [(), (NORM_OF_1,) * 4], ids=["first round", "later round"])
def test_of_two_nobody_is_judged_by_the_other(record, statistics, value: float, norms) -> None:
    entry, weights = _run(
        FakeGrid({10: _reply(1.0), 11: _reply(value)}), record, statistics, "a", "b", norms=norms
    )
    assert entry.rejected == {}
    assert weights.tolist() == pytest.approx([(1 + value) / 2] * 2)


def test_of_two_updates_that_came_of_three_nobody_is_judged_by_the_other(record, statistics) -> None:
    grid = FakeGrid({10: _reply(1.0), 11: _reply(1000.0), 12: None})
    entry, _ = _run(grid, record, statistics, "a", "b", "c")
    assert (list(entry.clients), entry.rejected) == (["a", "b"], {})


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_an_update_that_no_training_makes_is_refused_however_few_sites_there_are(
    record, statistics, names: str
) -> None:
    grid = FakeGrid({10: _reply(1e6)} | {10 + i: _reply(1.0) for i in range(1, len(names))})
    entry, weights = _run(grid, record, statistics, *names)
    assert "its norm is 1.414e+06; steps of this learning rate make 5.6" in entry.rejected["a"].reason
    assert weights.tolist() == ([1.0, 1.0] if len(names) > 1 else [0.0, 0.0])


def test_the_history_of_norms_is_one_figure_a_round_that_no_site_alone_can_move(record, statistics) -> None:
    settings = RunConfig(wire=WireConfig(download="fp32", upload="fp32"), training=FAST)
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")

    def norms_after(*values: float) -> list[float]:
        names = "abcd"[: len(values)]
        grid = FakeGrid({10 + i: _reply(value) for i, value in enumerate(values)})
        run_round(grid, model, _nodes(*names), 1, settings, record)  # type: ignore[arg-type]
        model.weights["w"].zero_()  # the made-up replies are to the weights of the start
        return [norm / NORM_OF_1 for norm in model.norms]

    assert norms_after(1e-6, 1.0) == []
    assert norms_after(1e-6, 1.0, 2.0) == pytest.approx([1.0])
    assert norms_after(9.0, 1.0, 2.0) == pytest.approx([1.0, 2.0])
    assert norms_after(1e-6, 3.0, 4.0, 5.0) == pytest.approx([1.0, 2.0, 3.0])


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=60), st.integers(0, 40))
def test_no_training_moves_weights_beyond_what_the_learning_rate_allows(
    values: list[float], rest: int
) -> None:
    gradients = torch.tensor(values).double().pow(5)  # from next to nothing to hundreds
    config = RunConfig(training=TrainingConfig(local_steps=len(values) + rest, warmup_steps=0))
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=config.training.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    for gradient in [*([0.0] * rest), *gradients.tolist()]:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    most = largest_norm(config, 1, 1, config.training.local_steps)
    assert abs(weight.item()) <= 0.6 * most  # the rest is for what encoding left over from the round before


def test_under_local_privacy_the_noise_is_no_reason_to_refuse_an_update() -> None:
    config = RunConfig(privacy=PrivacyConfig(mode="local", clip_norm=2.0, noise_multiplier=3.0))
    noise = 2.0 * 3.0 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert 2.0 + noise.norm() < largest_norm(config, 1, 1000, 200) < 3 * noise.norm()


METRICS_OF_STRANGERS = st.dictionaries(
    st.sampled_from(list(METRIC_VALUES)),
    st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.lists(st.floats(), max_size=3)
    | st.lists(st.integers(0, 9)),
)


@given(METRICS_OF_STRANGERS)
def test_whatever_a_node_reports_of_its_training_it_is_usable_or_refused_with_one_line(changes: dict) -> None:
    content = _reply(**changes)
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
    grid = FakeGrid({10: _reply(40.0), 11: _reply(42.0), 12: _reply(44.0)})
    entry, weights = _run(grid, record, statistics, "a", "b", "c", norms=(NORM_OF_1,) * 30)
    assert entry.rejected == {}
    assert weights.tolist() == [42.0, 42.0]


def test_the_noise_on_the_server_is_not_undone_by_whose_norms_are_compared(record, statistics) -> None:
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        privacy=PrivacyConfig(mode="central", clip_norm=NORM_OF_1, noise_multiplier=1e-9),
    )
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    grid = FakeGrid({10: _reply(1.0), 11: _reply(1.0), 12: _reply(1000.0)})
    entry = run_round(grid, model, _nodes("a", "b", "c"), 1, settings, record)  # type: ignore[arg-type]
    assert list(entry.clients) == ["a", "b", "c"]
    torch.testing.assert_close(model.weights["w"], torch.ones(2))


def test_nodes_that_learnt_nothing_do_not_make_the_others_guilty(record, statistics) -> None:
    grid = FakeGrid({10: _reply(0.0), 11: _reply(0.0), 12: _reply(3.0)})
    entry, _ = _run(grid, record, statistics, "a", "b", "c")
    assert entry.rejected == {}


def test_with_too_few_good_updates_the_weights_stay_and_the_round_is_marked(record, statistics) -> None:
    grid = FakeGrid({10: _reply(1.0), 11: Error(1, "no"), 12: _reply(num_examples=0)})
    entry, weights = _run(grid, record, statistics, "a", "b", "c", min_updates=2)
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

    grid = Restarting({10: [None, _reply(1.0)]})
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=20.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        privacy=PrivacyConfig(mode=mode),
        training=FAST,
    )
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    entry = run_round(grid, model, _nodes("a"), 1, settings, record)  # type: ignore[arg-type]
    assert list(entry.clients) == ["a"]
    assert read_ledger(record.folder / LEDGER_FILE).count(1.0).total() == releases
    first, second = (message.content[HEADER]["sha256"] for message in grid.sent.values())
    assert first == second


def test_nothing_is_sent_that_is_not_counted_first(record, statistics) -> None:
    (record.folder / LEDGER_FILE).mkdir()
    grid = FakeGrid({10: _reply(1.0)})
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f")
    settings = RunConfig(privacy=PrivacyConfig(mode="local"))
    with pytest.raises(FederationError, match=f"{LEDGER_FILE} cannot be written"):
        run_round(grid, model, _nodes("a"), 1, settings, record)  # type: ignore[arg-type]
    assert not grid.sent


def test_sampling_takes_the_fraction_and_repeats_itself() -> None:
    joined = {node.node_id: node for node in _nodes("d", "a", "c", "b")}
    half = FederationConfig(fraction_fit=0.5)
    first = [node.name for node in sample_nodes(joined, half, seed=1, round_=1)]
    assert len(first) == 2
    assert first == sorted(first)
    assert first == [node.name for node in sample_nodes(joined, half, seed=1, round_=1)]
    assert len(sample_nodes(joined, FederationConfig(fraction_fit=0.1), seed=1, round_=1)) == 1


@pytest.mark.parametrize(("count", "fraction"), [(4, 0.5), (5, 0.5), (7, 0.3), (3, 0.6)])
def test_sampling_is_fair_and_does_not_pair_the_same_nodes(count: int, fraction: float) -> None:
    joined = {node.node_id: node for node in _nodes(*(f"site-{i}" for i in range(count)))}
    config = FederationConfig(fraction_fit=fraction)
    rounds = [[node.name for node in sample_nodes(joined, config, seed=3, round_=r)] for r in range(1, 31)]
    times = [sum(name in sampled for sampled in rounds) for name in (f"site-{i}" for i in range(count))]
    assert max(times) - min(times) <= 1
    assert len({tuple(sampled) for sampled in rounds}) >= 3


def test_the_order_names_mu_and_what_is_evaluated_is_the_average(record, statistics) -> None:
    settings = RunConfig(
        federation=FederationConfig(round_deadline_seconds=1.0),
        wire=WireConfig(download="fp32", upload="fp32"),
        training=dataclasses.replace(FAST, proximal_mu=0.01, adapt_proximal_mu=True),
        evaluation=EvaluationConfig(ema_decay=0.5),
    )
    previous = RoundRecord(1, proximal_mu=0.01, policy_loss={"mean": 1.0, "std": 0.6})
    grid = FakeGrid({10: _reply(0.0), 11: _reply(4.0)})
    model = GlobalModel({"w": torch.zeros(2)}, statistics, "f", average={"w": torch.zeros(2)})
    nodes_ = _nodes("a", "b")
    entry = run_round(grid, model, nodes_, 1, settings, record, previous)  # type: ignore[arg-type]
    assert model.weights["w"].tolist() == [2.0, 2.0]
    torch.testing.assert_close(model.evaluated["w"], torch.full((2,), 2.0 * 9 / 11))
    assert entry.proximal_mu == 0.02
    assert all(m.content[CONFIG]["proximal_mu"] == 0.02 for m in grid.sent.values())


def test_the_train_request_names_the_reverted_rounds(record, statistics) -> None:
    grid = FakeGrid({10: _reply(1.0)})
    _run(grid, record, statistics, "a")
    for entry in (RoundRecord(3, reverted_to=1), RoundRecord(4), RoundRecord(6, reverted_to=4)):
        record.round_finished(entry)
    again = FakeGrid({10: _reply(1.0)})
    _run(again, record, statistics, "a")
    named = [message.content[CONFIG]["undone"] for g in (grid, again) for message in g.sent.values()]
    assert named == [[], [2, 3, 5, 6]]


@pytest.fixture(scope="session")
def reported(data: Path) -> Statistics:
    """What a node with the data of site-a reports."""
    return describe_dataset(data / "site-a").statistics


def _answer(name: str, reported, **changes: object) -> RecordDict:
    facts = {"name": name, "fps": 30, "episodes": 3, "frames": 120, "cameras": ["top"], "left_out": 0}
    facts |= {
        "device": "x86_64",
        "versions": _installed(),
        "simulated": False,
    }
    answer = ConfigRecord({k: v for k, v in (facts | changes).items() if v is not None})  # type: ignore
    return RecordDict({ANSWER: answer, STATISTICS: statistics_to_record(reported)})


def _answer_with_more_frames(name: str, reported) -> RecordDict:
    more = {feature: {**named, "count": np.array([400.0])} for feature, named in reported.items()}
    return _answer(name, more, frames=400)


def _installed(**changes: str) -> list[str]:
    return [f"{package} {version}" for package, version in (versions() | changes).items()]


def _table(grid: FakeGrid, record: RunRecord, min_nodes: int, timeout: float = 0.2) -> NodeTable:
    settings = FederationConfig(min_nodes=min_nodes, join_timeout_seconds=timeout)
    held_out = {"holdout": False}
    return NodeTable(grid, RunConfig(federation=settings), record, held_out)  # type: ignore[arg-type]


def test_nodes_are_asked_once_and_then_known(record, reported) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=2)
    assert {node.name for node in table.wait_for_nodes().values()} == {"a", "b"}
    table.wait_for_nodes()
    assert len(grid.sent) == 2


def test_a_late_node_joins_and_an_offline_one_is_left_out(record, reported) -> None:
    grid = FakeGrid({10: _answer("a", reported)})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    grid.answers = {11: _answer("b", reported)}
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]


def test_a_node_that_still_works_on_an_earlier_round_is_asked_nothing_more(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_MIN_WAIT_SECONDS", 0.05)
    grid = FakeGrid({10: [_answer("a", reported), None], 11: [_answer("b", reported), _reply()]})
    table = _table(grid, record, min_nodes=2)
    table.wait_for_nodes()
    policy = WaitPolicy(60.0, quorum=0.5, straggler_factor=1.0)
    sent = Exchange(grid, RecordDict, "train", "1", policy).send([10, 11])  # type: ignore[arg-type]
    list(sent.replies())
    table.late.watch(sent)
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    grid.answers[10] = _reply()
    assert [node.name for node in table.wait_for_nodes().values()] == ["a", "b"]


def test_a_node_that_does_not_answer_holds_the_others_up_for_a_moment_only(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_JOIN_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(nodes, "_POLL_INTERVAL_SECONDS", 0.02)
    grid = FakeGrid({10: None, 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=1, timeout=60.0)
    started = time.monotonic()
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    assert 0.3 <= time.monotonic() - started < 10
    assert len(grid.sent) == 2
    grid.answers[10] = _answer("a", reported)
    assert [node.name for node in table.wait_for_nodes().values()] == ["b", "a"]
    assert len(grid.sent) == 2


@pytest.mark.parametrize(
    "answer",
    [
        lambda reported: Error(1, "dataset x: no meta/info.json"),
        lambda reported: RecordDict(),
        lambda reported: _answer("x", reported, fps=None),
        lambda reported: _answer("x", reported, frames="many"),
        lambda reported: _answer("x", reported, frames=float("inf")),
        lambda reported: _answer("x", reported, frames=1000),
        lambda reported: _answer("x", reported, simulated=1),
        lambda reported: _answer("x", reported, simulated=True),
        lambda reported: _answer("x\nnode y joined", reported),
        lambda reported: _answer("x", reported, versions=_installed(lerobot="0.4.4")),
        lambda reported: _answer("x", reported, versions=_installed(app="0123456789abcdef")),
        lambda reported: _answer("x", reported, versions=["lerobot"]),
        lambda reported: _answer("x", reported, versions=_installed() * 9),
        lambda reported: _answer("x", reported, cameras=["top"] * 99),
        lambda reported: _answer("x", reported, cameras="top"),
        lambda reported: _answer("x", reported, fps=30.5),
        lambda reported: _answer("x", reported, fps=0),
        lambda reported: _answer("x", reported, episodes=121),
        lambda reported: _answer("x", reported, left_out=-1),
        lambda reported: _answer("x", reported | {f"f{i}": reported["action"] for i in range(20)}),
        lambda reported: _answer("x", {f: n | {"mean": np.zeros(10**5)} for f, n in reported.items()}),
        lambda reported: _answer("x", {10**5 * "x": reported["action"]}),
        lambda reported: _answer("x", {"action": reported["action"]}),
        lambda reported: _answer("x", reported | {"action": reported["action"] | {"std": np.full(6, 1e9)}}),
    ],
    ids=[
        "error",
        "empty",
        "no fps",
        "frames are no number",
        "endless frames",
        "other frames than those of its statistics",
        "neither simulated nor not",
        "simulated where the held-out data is not",
        "a name of two lines",
        "other versions",
        "other code",
        "a version without a number",
        "endless versions",
        "endless cameras",
        "cameras are no list",
        "half a frame a second",
        "no frame a second",
        "more episodes than frames",
        "fewer than no episodes left out",
        "endless statistics",
        "statistics of endless joints",
        "statistics with an endless name",
        "no state",
        "impossible deviation",
    ],
)
def test_a_node_that_cannot_take_part_is_refused_and_the_others_go_on(record, reported, answer) -> None:
    grid = FakeGrid({10: answer(reported), 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    assert "join_denied" in (record.folder / "events.jsonl").read_text()
    assert len((record.folder / "events.jsonl").read_text()) < 5000
    told = [m for m in grid.sent.values() if m.metadata.message_type == QUERY_SHUT_OUT]
    # A node that could not take part knows; one that the server does not want is told, for its own log.
    assert [m.metadata.dst_node_id for m in told] == ([] if isinstance(grid.answers[10], Error) else [10])
    assert all("\n" not in m.content[REASON]["text"] for m in told)


KEYS = ["name", "fps", "episodes", "frames", "left_out", "cameras", "versions", "device"]
SCALARS = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
SCALARS |= st.booleans() | st.lists(st.text(max_size=8), max_size=3) | st.lists(st.integers(0, 9))
ARRAYS = hnp.arrays(
    st.sampled_from([np.float64, np.float32]), hnp.array_shapes(max_side=7), elements=st.just(1)
)
RECORDS = (
    st.dictionaries(st.sampled_from(KEYS), SCALARS).map(ConfigRecord)
    | st.dictionaries(st.text(max_size=8), st.integers(0, 9)).map(MetricRecord)
    | st.dictionaries(
        st.sampled_from(["action/mean", "action/std", "observation.state/sketch", "x"]), ARRAYS.map(Array)
    ).map(ArrayRecord)
)


@given(st.dictionaries(st.sampled_from([ANSWER, STATISTICS, "other"]), RECORDS))
def test_whatever_a_stranger_answers_it_is_refused_with_one_line(reported, content: dict) -> None:
    with pytest.raises(FederationError) as refusal:
        join_answer.read_answer(1, RecordDict(content))
    assert "\n" not in str(refusal.value)


@given(st.dictionaries(st.sampled_from(KEYS), SCALARS))
def test_whatever_a_node_says_of_itself_makes_a_node_or_one_line(reported, changes: dict) -> None:
    try:
        node = join_answer.read_answer(1, _answer(**{"name": "x", "reported": reported, **changes}))
    except FederationError as error:
        assert "\n" not in str(error)
    else:
        assert node.name.isprintable()
        assert 1 <= node.fps <= 1000
        assert 1 <= node.episodes <= node.frames <= 10**9
        assert len(node.cameras) <= 16


def test_a_refused_node_that_restarts_is_asked_again(record, reported) -> None:
    grid = FakeGrid({10: [Error(2, "no dataset"), _answer("a", reported)], 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    grid.online_since = {10: "later", 11: "t0"}
    assert [node.name for node in table.wait_for_nodes().values()] == ["b", "a"]


def test_a_node_that_restarts_is_asked_again_once_and_its_new_answer_counts(record, reported) -> None:
    answers = [_answer("a", reported)] * 2 + [_answer_with_more_frames("a", reported)]
    answers.append(_answer("a", reported, versions=_installed(lerobot="0.4.4")))
    grid = FakeGrid({10: answers, 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=1)

    def asked_and_frames(since: str) -> tuple[int, dict[str, int]]:
        grid.online_since = {10: since, 11: "t0"}
        joined = table.wait_for_nodes()
        return len(grid.sent), {node.name: node.frames for node in joined.values()}

    assert asked_and_frames("t0") == (2, {"a": 120, "b": 120})
    assert asked_and_frames("t0") == (2, {"a": 120, "b": 120})
    assert asked_and_frames("t1") == (3, {"a": 120, "b": 120})
    assert asked_and_frames("t2") == (4, {"a": 400, "b": 120})
    grid.answers[10].append(None)  # told why it takes no part
    assert asked_and_frames("t3") == (6, {"b": 120})
    assert asked_and_frames("t3") == (6, {"b": 120})


def test_a_node_that_was_cut_off_and_has_no_time_to_answer_still_takes_part(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_JOIN_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(nodes, "_POLL_INTERVAL_SECONDS", 0.02)
    grid = FakeGrid({10: [_answer("a", reported), None]})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    grid.online_since = {10: "later"}
    for _ in range(2):
        assert [node.name for node in table.wait_for_nodes().values()] == ["a"]
    assert len(grid.sent) == 2
    grid.answers[10][1] = _answer_with_more_frames("a", reported)
    assert [node.frames for node in table.wait_for_nodes().values()] == [400]


def _suspended(record: RunRecord) -> list[dict]:
    lines = (record.folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == "node_suspended"]


def test_three_refusals_in_a_row_suspend_a_node_and_a_restart_lifts_it(record, reported) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    for round_, refused in enumerate(({"a": NAN}, {"a": NAN}, {}, {"a": NAN}, {"a": NAN}), 1):
        table.count_rejections(round_, refused, {"a", "b"} - refused.keys())
    assert len(table.wait_for_nodes()) == 2
    table.count_rejections(6, {"a": NAN}, {"b"})
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    (event,) = _suspended(record)
    assert (event["node"], event["until_round"]) == ("a", 10)
    assert event["reason"] == "3 updates in a row rejected, the last because NaN"
    told = [m for m in grid.sent.values() if m.metadata.message_type == QUERY_SHUT_OUT]
    assert "until round 10, or until its SuperNode restarts" in told[0].content[REASON]["text"]
    grid.online_since = {11: "t0"}  # away
    assert len(table.wait_for_nodes()) == 1
    grid.online_since = {10: "later", 11: "t0"}
    assert len(table.wait_for_nodes()) == 2
    table.count_rejections(7, {"a": NAN}, {"b"})
    assert len(table.wait_for_nodes()) == 2  # it begins anew


def test_a_suspended_node_is_tried_again_by_itself_after_ever_longer(record, reported) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    asked = []
    for round_ in range(1, 140):
        is_there = "a" in {node.name for node in table.wait_for_nodes().values()}
        asked += [round_] * is_there
        table.count_rejections(round_, {"a": OUT_OF_MEMORY} if is_there else {}, {"b"})
    assert asked == [1, 2, 3, 7, 14, 27, 52, 101]  # 3, 6, 12, 24, 48, 48 rounds between
    assert [event["until_round"] for event in _suspended(record)] == [7, 14, 27, 52, 101, 150]


def test_a_node_that_is_tried_again_and_succeeds_begins_anew(record, reported) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    for round_ in range(1, 20):
        names = {node.name for node in table.wait_for_nodes().values()}
        refused = {"a": OUT_OF_MEMORY} if "a" in names and round_ not in (7, 8) else {}
        table.count_rejections(round_, refused, names - refused.keys())
    assert [event["until_round"] for event in _suspended(record)] == [7, 15, 22]


def test_a_node_that_the_others_are_too_few_without_is_not_suspended(record, reported) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=2)
    for round_ in range(1, 10):
        assert len(table.wait_for_nodes()) == 2
        table.count_rejections(round_, {"a": OUT_OF_MEMORY}, {"b"})
    assert _suspended(record) == []


def test_a_suspended_node_is_called_back_when_the_others_become_too_few(record, reported) -> None:
    grid = FakeGrid({i: _answer(name, reported) for i, name in enumerate("abc", start=10)})
    table = _table(grid, record, min_nodes=2)
    for round_ in range(1, 4):
        assert len(table.wait_for_nodes()) == 3
        table.count_rejections(round_, {"a": OUT_OF_MEMORY}, {"b", "c"})
    assert len(table.wait_for_nodes()) == 2
    grid.online_since = {10: "t0", 11: "t0"}
    assert len(table.wait_for_nodes()) == 2


def test_a_refusal_for_the_norm_is_no_strike_and_an_error_of_the_exchange_is_no_refusal(
    record, statistics, reported
) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: _answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    updates = FakeGrid({10: _reply(1e6), 11: _reply(1.0), 12: _reply(1.0)}, not_sent=(12,))
    for round_ in range(1, 9):
        entry, _ = _run(updates, record, statistics, "a", "b", "c")
        assert (list(entry.rejected), entry.missing) == (["a"], ["c"])
        table.count_rejections(round_, entry.rejected, entry.clients)
    assert len(table.wait_for_nodes()) == 2


def test_a_node_that_could_not_be_asked_to_join_is_asked_again(record, reported) -> None:
    class Unlucky(FakeGrid):
        def push_messages(self, messages):
            pushed = super().push_messages(messages)
            self.not_sent = ()
            return pushed

    table = _table(Unlucky({10: _answer("a", reported)}, not_sent=(10,)), record, min_nodes=1)
    assert [node.name for node in table.wait_for_nodes().values()] == ["a"]


def test_two_nodes_of_the_same_name_are_not_both_taken(record, reported) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: _answer("a", reported)})
    assert len(_table(grid, record, min_nodes=1).wait_for_nodes()) == 1
    assert "the name a is taken" in (record.folder / "events.jsonl").read_text()


def _wait_in_vain(table: NodeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(20))
    with monkeypatch.context() as patched:
        patched.setattr(nodes.time, "sleep", lambda _: next(looks))
        with pytest.raises(StopIteration):
            table.wait_for_nodes()


def test_a_node_cannot_take_the_name_of_another_that_is_away(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: _answer("a", reported)})
    grid.registered = {10: "a", 11: "b"}
    table = _table(grid, record, min_nodes=1)
    assert list(table.wait_for_nodes()) == [10]
    grid.online_since = {11: "later"}
    _wait_in_vain(table, monkeypatch)
    grid.online_since = {10: "later", 11: "later"}
    assert list(table.wait_for_nodes()) == [10]
    assert "its key was registered as b" in (record.folder / "events.jsonl").read_text()


def test_too_few_nodes_are_waited_for_and_reported_ever_more_seldom(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = FakeGrid({10: _answer("a", reported), 11: Error(2, "no dataset"), 12: _answer("c", reported)})
    grid.registered = {10: "a", 11: "b", 12: "c"}
    grid.online_since = {10: "t0", 11: "t0"}
    table = _table(grid, record, min_nodes=2, timeout=60.0)
    hours = 10
    clock = iter(range(0, 3600 * hours, 10))
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(nodes.time, "sleep", lambda _: None)

    def events(kind: str) -> list[dict]:
        lines = map(json.loads, (record.folder / "events.jsonl").read_text().splitlines())
        return [event for event in lines if event["event"] == kind]

    with pytest.raises(StopIteration):  # the time is over; the wait is not
        table.wait_for_nodes()
    reports = events("waiting_for_nodes")
    assert (reports[0]["joined"], reports[0]["min_nodes"]) == (1, 2)
    assert reports[0]["denied"].keys() == {"b"}
    assert "no dataset" in reports[0]["denied"]["b"]
    assert 10 < len(reports) < 20  # after 1, 2, 4, ... minutes, then every hour
    assert events("waiting_ended") == []

    grid.online_since = {10: "t0", 11: "t0", 12: "t0"}
    clock = iter(range(0, 3600, 10))
    assert len(table.wait_for_nodes()) == 2
    assert len(events("waiting_for_nodes")) == len(reports)  # nobody had to wait long
