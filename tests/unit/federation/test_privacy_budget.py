import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.privacy_budget import epsilon


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
    assert epsilon({noise: releases}, delta) == pytest.approx(expected, rel=1e-6)


def test_where_doubles_end_epsilon_is_given_too_large_rather_than_too_small() -> None:
    assert 2800.60237429 <= epsilon({0.1: 50}, 1e-5) < 2810


@given(st.floats(0.3, 50), st.integers(1, 500))
def test_more_rounds_cost_more_and_more_noise_less(noise: float, releases: int) -> None:
    spent = epsilon({noise: releases}, 1e-5)
    assert 0 < spent < epsilon({noise: releases + 1}, 1e-5)
    assert epsilon({1.1 * noise: releases}, 1e-5) < spent


def test_nothing_released_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon({}, 1e-5) == epsilon({1.0: 0}, 1e-5) == 0.0
    assert epsilon({1e-4: 10}, 1e-5) == epsilon({5e-324: 1}, 1e-5) == math.inf


@given(st.floats(0.3, 50), st.integers(1, 100))
def test_the_same_noise_twice_is_as_many_releases_with_it(noise: float, releases: int) -> None:
    other = noise * (1 + 1e-9)
    together = epsilon({noise: releases, other: releases}, 1e-5)
    assert together == pytest.approx(epsilon({noise: 2 * releases}, 1e-5), rel=1e-6)


def test_so_much_noise_that_nothing_can_be_told_costs_nothing() -> None:
    assert epsilon({1e9: 1}, 1e-5) == 0.0
    assert epsilon({1e300: 3}, 0.1) == 0.0


@pytest.mark.parametrize("noises", [(1.0, 1.0), (1.0, 2.0), (0.7, 3.0), (5.0, 4.0)])
def test_different_noises_compose_as_two_outputs_seen_together(noises: tuple[float, float]) -> None:
    """The definition, integrated: delta is the mass by which p exceeds e^epsilon * q, of two outputs at once.

    p is what is seen of a site whose updates move both outputs by 1, q of one whose updates are zero.
    """
    delta = 1e-3
    spent = epsilon({noises[0]: 1, noises[1]: 1} if noises[0] != noises[1] else {noises[0]: 2}, delta)
    axes = [np.linspace(-9 * noise, 1 + 9 * noise, 3001) for noise in noises]
    p, q = (
        [
            np.exp(-(((x - shift) / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))
            for x, noise in zip(axes, noises, strict=True)
        ]
        for shift in (1.0, 0.0)
    )
    excess = np.maximum(np.outer(*p) - math.exp(spent) * np.outer(*q), 0.0)
    cell = math.prod(float(x[1] - x[0]) for x in axes)
    assert float(excess.sum()) * cell == pytest.approx(delta, rel=2e-3)
