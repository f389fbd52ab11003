import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.config import AggregationConfig, PrivacyConfig, RunConfig, parse_run_config
from federation.errors import ConfigError
from federation.privacy import add_noise, clip, epsilon
from federation.wire import Header, open_payload, pack_tensors
from server.aggregation import make_aggregator
from server.privacy import most_spent, privacy_spent
from server.records import RunRecord

SIZE = 20_000
SHAPES = {"w": torch.Size([SIZE])}


def _aggregate(config: PrivacyConfig, *values: float) -> torch.Tensor:
    aggregator = make_aggregator(AggregationConfig(), config, SHAPES)
    for weight, value in enumerate(values, start=1):
        record, header, sealed = pack_tensors(
            [("w", torch.full((SIZE,), value))], Header("fp32", "run", 1, "")
        )
        aggregator.add(open_payload(record, header, SHAPES, sealed), 100**weight)
    ((_, mean),) = aggregator.aggregate()
    return mean


def test_the_noise_is_as_large_as_configured_and_the_mean_unweighted() -> None:
    config = PrivacyConfig(mode="central", clip_norm=1e6, noise_multiplier=2e-6)
    mean = _aggregate(config, 1.0, 2.0, 6.0, -1.0)
    assert float(mean.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(mean.std()) == pytest.approx(1e6 * 2e-6 / 4, rel=0.05)


def test_no_site_moves_the_sum_by_more_than_the_norm() -> None:
    config = PrivacyConfig(mode="central", clip_norm=3.0, noise_multiplier=1e-12)
    assert float(_aggregate(config, 1000.0).norm()) == pytest.approx(3.0, rel=1e-4)


def test_noise_is_never_the_same_twice() -> None:
    torch.manual_seed(0)
    first = add_noise(torch.zeros(100), 1.0)
    torch.manual_seed(0)
    assert not torch.equal(first, add_noise(torch.zeros(100), 1.0))


def test_the_seed_of_the_noise_is_too_long_to_be_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[np.random.Generator] = []
    real = np.random.default_rng

    def watched(*seed: int) -> np.random.Generator:
        made.append(real(*seed))
        return made[-1]

    monkeypatch.setattr(np.random, "default_rng", watched)
    noise = add_noise(torch.zeros(SIZE), 2.0)
    (generator,) = made
    assert generator.bit_generator.seed_seq.entropy.bit_length() > 64  # type: ignore[attr-defined]
    assert noise.dtype == torch.float32
    assert float(noise.std()) == pytest.approx(2.0, rel=0.05)
    assert add_noise(torch.zeros(()), 1.0).shape == ()


def test_clipping_is_over_all_tensors_together() -> None:
    update = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    clip(update, 1.0)
    assert [float(tensor) for tensor in update] == pytest.approx([0.6, 0.8])
    clip(update, 2.0)
    assert [float(tensor) for tensor in update] == pytest.approx([0.6, 0.8])


# Balle and Wang's condition, computed with 50 digits by another program (mpmath): noise, releases, delta.
@pytest.mark.parametrize(
    ("noise", "releases", "delta", "expected"),
    [
        (1.0, 1, 1e-5, 4.37717809568),
        (1.0, 50, 1e-5, 54.376639015),
        (4.0, 20, 1e-6, 5.55085986824),
        (0.5, 3, 1e-5, 20.1250235459),
    ],
)
def test_epsilon_is_the_exact_one(noise: float, releases: int, delta: float, expected: float) -> None:
    assert epsilon(noise, releases, delta) == pytest.approx(expected, rel=1e-6)


def test_where_doubles_end_epsilon_is_given_too_large_rather_than_too_small() -> None:
    assert 2800.60237429 <= epsilon(0.1, 50, 1e-5) < 2810


@given(st.floats(0.3, 50), st.integers(1, 500))
def test_more_rounds_cost_more_and_more_noise_less(noise: float, releases: int) -> None:
    spent = epsilon(noise, releases, 1e-5)
    assert 0 < spent < epsilon(noise, releases + 1, 1e-5)
    assert epsilon(1.1 * noise, releases, 1e-5) < spent


def test_nothing_released_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert epsilon(1e-4, 10, 1e-5) == math.inf


def test_every_round_a_node_was_asked_in_counts_also_those_done_again(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run", RunConfig())
    for round_, nodes in ((1, ["a", "b"]), (2, ["a"]), (2, ["a", "b"])):
        record.event("round_started", round=round_, nodes=nodes)
    config = PrivacyConfig(mode="local", noise_multiplier=2.0)
    spent = privacy_spent(config, record.folder)
    assert spent["epsilon"] == {"a": epsilon(2.0, 3, 1e-5), "b": epsilon(2.0, 2, 1e-5)}
    json.dumps(spent, allow_nan=False)
    assert most_spent(spent) == f"epsilon {epsilon(2.0, 3, 1e-5):.2f} at delta 1e-05, local noise"


def test_next_to_no_noise_is_recorded_as_no_privacy(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, "run", RunConfig())
    record.event("round_started", round=1, nodes=["a"])
    spent = privacy_spent(PrivacyConfig(mode="central", noise_multiplier=1e-6), record.folder)
    assert spent["epsilon"] == {"a": None}
    assert "beyond a million" in most_spent(spent)


def test_the_central_noise_does_not_cover_the_robust_rules() -> None:
    with pytest.raises(ConfigError, match=r"privacy.mode = 'central': aggregation.method = 'median'"):
        parse_run_config({"privacy.mode": "central", "aggregation.method": "median"}, "tests")
