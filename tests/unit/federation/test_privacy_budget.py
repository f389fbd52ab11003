import math

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from federation.privacy_budget import epsilon


# By dp-accounting 0.6.0: its PLDAccountant (one site added or removed, losses in steps of 1e-4). It is no
# development dependency: it wants attrs below 24, which the one lock file would bring into the images too.
@pytest.mark.parametrize(
    ("releases", "delta", "expected"),
    [
        ({1.0: 1}, 1e-5, 4.3771781000),
        ({1.0: 50}, 1e-5, 54.3766390160),
        ({4.0: 20}, 1e-6, 5.5508598744),
        ({0.5: 3}, 1e-5, 20.1250235478),
        ({1.0: 10, 2.0: 30}, 1e-5, 25.9045517429),
        ({0.8: 5, 3.0: 100}, 1e-6, 29.4662139498),
        ({20.0: 200}, 1e-5, 2.9432252461),
    ],
)
def test_epsilon_is_that_of_another_accountant(
    releases: dict[float, int], delta: float, expected: float
) -> None:
    assert epsilon(releases, delta) == pytest.approx(expected, rel=1e-7)


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(st.floats(0.5, 50), st.integers(1, 200), min_size=1, max_size=3),
    st.sampled_from([1e-3, 1e-5, 1e-8]),
)
def test_epsilon_is_where_the_hockey_stick_divergence_is_delta(
    releases: dict[float, int], delta: float
) -> None:
    """The definition, integrated with 25 digits, of the noise that is left if all releases are averaged."""
    spent = epsilon(releases, delta)
    assume(0 < spent < 1000)
    with mpmath.workdps(25):
        precision = mpmath.fsum(count / mpmath.mpf(noise) ** 2 for noise, count in releases.items())
        noise = 1 / mpmath.sqrt(precision)
        # Seen of a site whose update moves the output by 1: likelier, from here on, by more than e^epsilon.
        first = mpmath.mpf("0.5") + spent * noise**2

        def excess(x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.npdf(x, 1, noise) - mpmath.exp(spent) * mpmath.npdf(x, 0, noise)

        points = [first, *(first + step * noise for step in (1, 2, 4, 8, 16, 32))]
        assert float(mpmath.quad(excess, points)) == pytest.approx(delta, rel=1e-5)


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
