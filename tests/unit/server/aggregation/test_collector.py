import logging

import numpy as np
import pytest
import torch

from federation.settings import AggregationConfig, PrivacyConfig
from federation.wire.payload import Header, Payload, open_payload, pack_tensors
from server.aggregation.collector import WeightedMean, apply_update, make_aggregator, make_server_optimizer
from server.aggregation.robust import krum_choice

SHAPES = {"a": torch.Size([4, 3]), "b": torch.Size([])}


def _payload(tensors: dict[str, torch.Tensor]) -> Payload:
    arrays, record, header = pack_tensors(tensors.items(), Header("fp32", "run", 1, ""))
    return open_payload(arrays, record, {name: t.shape for name, t in tensors.items()}, header)


def _updates(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def _aggregate(config: AggregationConfig, updates: list, examples: list[int] | None = None) -> dict:
    aggregator = make_aggregator(config, PrivacyConfig(), SHAPES)
    for update, count in zip(updates, examples or [1] * len(updates), strict=True):
        aggregator.add(_payload(update), count)
    return {name: tensor.clone() for name, tensor in aggregator.aggregate()}


def _stacked(updates: list, name: str) -> np.ndarray:
    return np.stack([update[name].double().numpy() for update in updates])


def test_the_mean_equals_numpys_weighted_average_in_float64() -> None:
    updates, examples = _updates(5), [1, 10, 100, 7, 3]
    result = _aggregate(AggregationConfig(), updates, examples)
    for name in SHAPES:
        expected = np.average(_stacked(updates, name), axis=0, weights=examples)
        np.testing.assert_allclose(result[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_updates_of_different_numbers_of_steps_are_taken_by_the_root_of_these() -> None:
    updates, weights, steps = _updates(3), [4.0, 4.0, 8.0], np.array([40, 10, 20])
    aggregator = WeightedMean(SHAPES)
    for update, weight, taken in zip(updates, weights, steps, strict=True):
        aggregator.add(_payload(update), weight, taken / 40)
    result = dict(aggregator.aggregate())
    roots = np.sqrt(steps)
    for name in SHAPES:
        divided = [update / root for update, root in zip(_stacked(updates, name), roots, strict=True)]
        expected = np.average(roots, weights=weights) * np.average(divided, axis=0, weights=weights)
        np.testing.assert_allclose(result[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_clipped_is_what_all_steps_would_have_made() -> None:
    update = {"a": torch.full((4, 3), 1.0), "b": torch.zeros(())}
    aggregator = WeightedMean(SHAPES, clip_norm=2.0)
    aggregator.add(_payload(update), 1.0, 0.25)
    result = dict(aggregator.aggregate())
    # A norm of 3.5 in a quarter of the steps counts as one of 7: cut to 2, half of which is left.
    assert torch.linalg.vector_norm(result["a"]).item() == pytest.approx(1.0)


def test_two_updates_give_the_same_bits_in_either_order() -> None:
    updates = _updates(2)
    forward = _aggregate(AggregationConfig(), updates, [3, 5])
    backward = _aggregate(AggregationConfig(), updates[::-1], [5, 3])
    assert all(torch.equal(forward[name], backward[name]) for name in SHAPES)


def test_many_updates_differ_between_orders_by_rounding_only() -> None:
    updates = _updates(20)
    forward = _aggregate(AggregationConfig(), updates)
    backward = _aggregate(AggregationConfig(), updates[::-1])
    for name in SHAPES:
        torch.testing.assert_close(forward[name], backward[name])


@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_median_is_numpys(count: int) -> None:
    updates = _updates(count)
    result = _aggregate(AggregationConfig(method="median"), updates, [1] * count)
    for name in SHAPES:
        np.testing.assert_allclose(
            result[name].numpy(), np.median(_stacked(updates, name), axis=0), rtol=1e-6
        )


def test_the_trimmed_mean_leaves_out_the_extremes() -> None:
    updates = _updates(5)
    result = _aggregate(AggregationConfig(method="trimmed_mean", trim_fraction=0.2), updates)
    for name in SHAPES:
        expected = np.sort(_stacked(updates, name), axis=0)[1:-1].mean(axis=0)
        np.testing.assert_allclose(result[name].numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("trim_fraction", [0.0, 0.2])
def test_the_trimmed_mean_leaves_out_one_at_least_of_three_and_four(count: int, trim_fraction: float) -> None:
    updates = _updates(count)
    result = _aggregate(AggregationConfig(method="trimmed_mean", trim_fraction=trim_fraction), updates)
    for name in SHAPES:
        expected = np.sort(_stacked(updates, name), axis=0)[1:-1].mean(axis=0)
        np.testing.assert_allclose(result[name].numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2])
def test_of_fewer_than_three_updates_the_trimmed_mean_takes_the_median_and_logs_it(
    count: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("so100"), "propagate", True)
    updates = _updates(count)
    result = _aggregate(AggregationConfig(method="trimmed_mean"), updates)
    median = _aggregate(AggregationConfig(method="median"), updates)
    assert all(torch.equal(result[name], median[name]) for name in SHAPES)
    assert f"{count} updates, and trimmed_mean needs 3: this round takes the median" in caplog.text


@pytest.mark.parametrize("method", ["median", "trimmed_mean"])
def test_one_bad_node_of_three_moves_a_rule_for_three_little(method: str) -> None:
    bad = {name: torch.full(shape, 1000.0) for name, shape in SHAPES.items()}
    result = _aggregate(AggregationConfig(method=method), [*_nearly_the_same(2), bad])
    assert all((tensor - 1).abs().max() < 0.1 for tensor in result.values())


def _nearly_the_same(count: int) -> list[dict[str, torch.Tensor]]:
    return [{name: 1 + 0.01 * tensor for name, tensor in update.items()} for update in _updates(count)]


@pytest.mark.parametrize("method", ["median", "trimmed_mean", "krum"])
@pytest.mark.parametrize("attack", [-1.0, 1000.0, -1e30])
def test_one_bad_node_of_five_moves_a_robust_rule_little(method: str, attack: float) -> None:
    bad = {name: torch.full(shape, attack) for name, shape in SHAPES.items()}
    result = _aggregate(AggregationConfig(method=method, trim_fraction=0.25), [*_nearly_the_same(4), bad])
    assert all((tensor - 1).abs().max() < 0.1 for tensor in result.values())


def test_krum_ranks_the_outlier_last() -> None:
    bad = {name: torch.full(shape, 5.0) for name, shape in SHAPES.items()}
    payloads = [_payload(update) for update in [bad, *_nearly_the_same(4)]]
    assert 0 not in krum_choice(payloads, byzantine=1)
    assert krum_choice(payloads, byzantine=0)[-1] == 0


@pytest.mark.parametrize(("byzantine", "count"), [(0, 2), (1, 1), (1, 2), (1, 4), (2, 6)])
def test_of_too_few_updates_krum_takes_the_median_and_says_so(
    byzantine: int, count: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("so100"), "propagate", True)
    updates = _updates(count)
    result = _aggregate(AggregationConfig(method="krum", byzantine=byzantine), updates)
    median = _aggregate(AggregationConfig(method="median"), updates)
    assert all(torch.equal(result[name], median[name]) for name in SHAPES)
    needed = 2 * byzantine + 3
    assert f"{count} updates, and krum against {byzantine} bad ones needs {needed}" in caplog.text


def test_of_enough_updates_krum_takes_no_median() -> None:
    updates = _updates(5)
    result = _aggregate(AggregationConfig(method="krum", byzantine=1), updates)
    chosen = krum_choice([_payload(update) for update in updates], byzantine=1)
    for name in SHAPES:
        torch.testing.assert_close(result[name], torch.stack([updates[i][name] for i in chosen]).mean(dim=0))


def test_clipping_bounds_what_one_node_can_do() -> None:
    honest = {"a": torch.zeros(4, 3), "b": torch.zeros(())}
    huge = {"a": torch.full((4, 3), 1000.0), "b": torch.tensor(0.0)}
    result = _aggregate(AggregationConfig(clip_norm=2.0), [honest, huge])
    assert result["a"].norm().item() == pytest.approx(1.0, rel=1e-5)
    small = {"a": torch.full((4, 3), 0.1), "b": torch.tensor(0.0)}
    assert torch.equal(_aggregate(AggregationConfig(clip_norm=2.0), [small])["a"], small["a"])


def test_without_an_optimizer_the_update_is_added() -> None:
    weights = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    aggregator, update = WeightedMean(SHAPES), _updates(1)[0]
    aggregator.add(_payload(update), 7)
    norm = apply_update(aggregator, weights, None)
    for name in SHAPES:
        torch.testing.assert_close(weights[name], 1 + update[name])
    assert norm == pytest.approx(sum(u.square().sum().item() for u in update.values()) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadam"])
def test_the_norm_is_that_of_the_step_taken_not_of_the_mean(strategy: str) -> None:
    config = AggregationConfig(strategy=strategy, server_learning_rate=0.05, server_momentum=0.9)
    weights = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    optimizer = make_server_optimizer(config, weights)
    for update in _updates(3):
        before = {name: tensor.clone() for name, tensor in weights.items()}
        aggregator = WeightedMean(SHAPES)
        aggregator.add(_payload(update), 1)
        norm = apply_update(aggregator, weights, optimizer)
        moved = sum((weights[name] - before[name]).square().sum().item() for name in SHAPES)
        assert norm == pytest.approx(moved**0.5, rel=1e-5)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam"])
def test_stepping_one_parameter_at_a_time_is_stepping_all_of_them(strategy: str) -> None:
    config = AggregationConfig(strategy=strategy, server_learning_rate=0.05)
    weights = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    expected = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    optimizer, at_once = make_server_optimizer(config, weights), make_server_optimizer(config, expected)
    assert optimizer
    assert at_once
    for update in _updates(3):
        aggregator = WeightedMean(SHAPES)
        aggregator.add(_payload(update), 1)
        apply_update(aggregator, weights, optimizer)
        for name in SHAPES:
            expected[name].grad = -update[name]
        at_once.step()
    assert all(torch.equal(weights[name], expected[name]) for name in SHAPES)


@pytest.mark.parametrize("method", ["mean", "median"])
def test_without_updates_the_weights_stay(method: str) -> None:
    config = AggregationConfig(method=method, strategy="fedavgm")
    weights = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    assert (
        apply_update(
            make_aggregator(config, PrivacyConfig(), SHAPES), weights, make_server_optimizer(config, weights)
        )
        == 0.0
    )
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in weights.values())


def test_momentum_is_nesterovs() -> None:
    config = AggregationConfig(strategy="fedavgm", server_learning_rate=0.5, server_momentum=0.9)
    weights = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    optimizer = make_server_optimizer(config, weights)
    velocity = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    expected = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for update in _updates(3):
        aggregator = WeightedMean(SHAPES)
        aggregator.add(_payload(update), 1)
        apply_update(aggregator, weights, optimizer)
        for name in SHAPES:
            velocity[name] = 0.9 * velocity[name] + update[name]
            expected[name] += 0.5 * (update[name] + 0.9 * velocity[name])
            torch.testing.assert_close(weights[name], expected[name])


def test_adam_takes_steps_of_about_its_learning_rate() -> None:
    config = AggregationConfig(strategy="fedadam", server_learning_rate=0.01)
    weights = {"a": torch.zeros(4, 3), "b": torch.zeros(())}
    aggregator = WeightedMean(SHAPES)
    aggregator.add(_payload({"a": torch.full((4, 3), 5.0), "b": torch.tensor(-5.0)}), 1)
    apply_update(aggregator, weights, make_server_optimizer(config, weights))
    assert weights["a"].mean().item() == pytest.approx(0.01, rel=0.01)
    assert weights["b"].item() == pytest.approx(-0.01, rel=0.01)


def test_fedadam_is_the_papers_with_the_configured_momentum() -> None:
    config = AggregationConfig(strategy="fedadam", server_learning_rate=0.01, server_momentum=0.5)
    weights, expected, m, v = ({name: torch.zeros(shape) for name, shape in SHAPES.items()} for _ in range(4))
    optimizer = make_server_optimizer(config, weights)
    for t, update in enumerate(_updates(3), start=1):
        update = {name: 1e-3 * tensor for name, tensor in update.items()}  # of tau's size
        aggregator = WeightedMean(SHAPES)
        aggregator.add(_payload(update), 1)
        apply_update(aggregator, weights, optimizer)
        for name, u in update.items():
            m[name], v[name] = 0.5 * m[name] + 0.5 * u, 0.99 * v[name] + 0.01 * u**2
            step = (m[name] / (1 - 0.5**t)) / ((v[name] / (1 - 0.99**t)).sqrt() + 1e-3)
            expected[name] += 0.01 * step
            torch.testing.assert_close(weights[name], expected[name])
