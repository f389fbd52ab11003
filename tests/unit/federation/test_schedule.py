import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.schedule import global_step, highest_rate, learning_rate
from federation.settings import TrainingConfig

ROUNDS = 5


def _rates(**settings: object) -> list[float]:
    config = TrainingConfig(local_steps=10, **settings)  # type: ignore[arg-type]
    return [learning_rate(step, config, ROUNDS) for step in range(ROUNDS * 10)]


def test_cosine_warms_up_once_and_ends_at_the_minimum_at_the_last_step_of_the_run() -> None:
    rates = _rates(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4, schedule="cosine")
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))


def test_it_does_not_restart_at_a_round() -> None:
    rates = _rates(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=0, schedule="cosine")
    assert rates[10] < rates[9]


def test_warm_restarts_begin_anew_after_restart_rounds() -> None:
    rates = _rates(
        learning_rate=1.0, min_learning_rate=0.1, warmup_steps=0, schedule="warm_restarts", restart_rounds=2
    )
    assert rates[0] == rates[20] == rates[40] == pytest.approx(1.0)
    assert rates[19] < 0.11


def test_constant_stays_after_the_warm_up() -> None:
    rates = _rates(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=3, schedule="constant")
    assert set(rates[3:]) == {1.0}


def test_a_run_that_is_all_warm_up_has_no_division_by_zero() -> None:
    assert learning_rate(50, TrainingConfig(local_steps=10, warmup_steps=50), ROUNDS) > 0


def test_the_highest_rate_is_that_of_the_round_and_the_one_before() -> None:
    config = TrainingConfig(local_steps=10, learning_rate=1.0, min_learning_rate=0.1, warmup_steps=15)
    highest = [highest_rate(round_, config, ROUNDS) for round_ in range(1, ROUNDS + 1)]
    assert highest[:2] == pytest.approx([10 / 16, 1.0])
    assert highest[2:4] == [1.0, learning_rate(20, config, ROUNDS)]
    assert highest[4] == learning_rate(30, config, ROUNDS)


@pytest.mark.parametrize("schedule", ["cosine", "warm_restarts", "constant"])
def test_sites_of_different_numbers_of_steps_are_at_the_same_rate_at_the_same_point_of_a_round(
    schedule: str,
) -> None:
    config = TrainingConfig(local_steps=10, warmup_steps=25, schedule=schedule, restart_rounds=2)
    for round_ in range(1, ROUNDS + 1):
        begin, middle = (
            {
                learning_rate(global_step(round_, own * part // 2, own, 10), config, ROUNDS)
                for own in (2, 10, 400)
            }
            for part in (0, 1)
        )
        assert (len(begin), len(middle)) == (1, 1)


@given(round_=st.integers(1, 10**6), local_steps=st.integers(1, 10**5), data=st.data())
def test_with_local_steps_the_steps_are_counted_one_by_one(round_: int, local_steps: int, data) -> None:
    step = data.draw(st.integers(0, local_steps - 1))
    assert global_step(round_, step, local_steps, local_steps) == (round_ - 1) * local_steps + step
