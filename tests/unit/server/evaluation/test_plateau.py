import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.settings import EvaluationConfig
from server.evaluation.plateau import describe_plateau

_LOSSES = st.lists(st.floats(0, 10) | st.just(math.inf) | st.just(math.nan), max_size=20)


def _describe(losses: list[float], patience: int, min_gain: float = 0.1) -> str:
    return describe_plateau(losses, EvaluationConfig(patience=patience, min_gain=min_gain))


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([], False),
        ([1.0, 0.95, 0.92], True),
        ([1.0, 0.89, 0.85], False),
        ([1.0, 0.95, 0.89], False),  # slow, yet a gain on the best after two
        ([1.0, math.inf, math.nan], True),
        ([1.0, 1.2, 0.8, 0.75], False),
        ([1.0, 0.5, 0.5, 0.6], True),
    ],
)
def test_a_run_ends_after_two_evaluations_in_a_row_without_gain(losses: list[float], ends: bool) -> None:
    assert bool(_describe(losses, 2)) == ends


def test_the_reason_names_the_best_loss_and_what_would_have_been_a_gain() -> None:
    assert _describe([2.0, 1.0, 1.0, 1.0], 2) == (
        "a plateau: 2 evaluations in a row gained less than 10.0% on a policy loss of 1.0000"
    )
    assert _describe([1.0, 1.0], 1).startswith("a plateau: the last evaluation gained less than 10.0%")


@given(_LOSSES)
def test_without_patience_no_run_ends_early(losses: list[float]) -> None:
    assert _describe(losses, 0) == ""


@given(_LOSSES, st.integers(1, 5))
def test_more_patience_never_ends_a_run_sooner(losses: list[float], patience: int) -> None:
    assert bool(_describe(losses, patience)) >= bool(_describe(losses, patience + 1))


@given(st.floats(1, 10), st.integers(1, 5), st.integers(0, 12))
def test_losses_that_fall_fast_enough_never_end_a_run(first: float, patience: int, rounds: int) -> None:
    assert _describe([first * 0.8**round_ for round_ in range(rounds)], patience) == ""
