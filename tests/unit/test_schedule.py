import itertools

import pytest

from client.schedule import learning_rate
from federation.config import TrainingConfig

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
