"""Who is asked for how many steps, by the speed that each site's updates had."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.config import RunConfig
from federation.settings import FederationConfig, TrainingConfig
from server.pace import Pace, asked_steps, pace_of_round
from server.run.round_record import Rejection, RoundRecord

TRAINING = TrainingConfig(local_steps=40, batch_size=4)


def _update(step_seconds: float, other_seconds: float = 2.0, steps: int = 40) -> dict[str, Any]:
    trained = steps * step_seconds
    return {"num_examples": 4 * steps, "train_seconds": trained, "reply_seconds": trained + other_seconds}


def _asked(**updates: dict[str, Any]) -> dict[str, int]:
    return asked_steps([*updates, "new"], [RoundRecord(1, clients=updates)], TRAINING)


def test_nobody_is_known_in_the_first_round_and_all_take_a_quarter() -> None:
    assert asked_steps(["a", "b"], [], TRAINING) == {"a": 10, "b": 10}
    assert asked_steps(["a"], [], TrainingConfig(local_steps=1)) == {"a": 1}


def test_a_site_four_times_slower_takes_what_fits_into_the_time_of_the_fast_one() -> None:
    assert _asked(fast=_update(0.25), slow=_update(1.0)) == {"fast": 40, "slow": 10, "new": 10}


def test_time_that_is_not_training_counts() -> None:
    # 12 seconds for all; of these 7 go by before and after the slow one's steps.
    assert _asked(fast=_update(0.25), slow=_update(0.5, 7.0))["slow"] == 10
    assert _asked(fast=_update(0.25), slow=_update(0.5, 50.0))["slow"] == 1  # one at least


def test_the_middle_one_sets_the_time() -> None:
    asked = _asked(a=_update(0.1), b=_update(0.2), c=_update(0.4))
    assert asked == {"a": 40, "b": 40, "c": 20, "new": 10}


def test_a_site_that_took_fewer_steps_is_known_by_its_own_speed() -> None:
    asked = _asked(fast=_update(0.25), slow=_update(1.0, steps=10))
    assert asked["slow"] == 10


def test_the_newest_update_of_each_site_counts() -> None:
    rounds = [
        RoundRecord(1, clients={"a": _update(0.25), "b": _update(1.0)}),
        RoundRecord(2, clients={"b": _update(0.25)}),
        RoundRecord(3, clients={}),
    ]
    assert asked_steps(["a", "b"], rounds, TRAINING) == {"a": 40, "b": 40}


@pytest.mark.parametrize("claimed", [0.0, 1e9])
def test_a_site_cannot_claim_more_time_than_the_server_saw(claimed: float) -> None:
    lie = _update(0.25) | {"train_seconds": claimed}
    assert 1 <= _asked(fast=_update(0.25), liar=lie)["liar"] <= 40


def test_an_update_that_was_only_sent_again_tells_nothing_of_the_sites_speed() -> None:
    kept = _update(0.25) | {"reply_seconds": 3.0}  # ten seconds of training in three
    before = RoundRecord(1, clients={"a": _update(0.25), "b": _update(1.0, steps=10)})
    rounds = [before, RoundRecord(2, clients={"a": kept, "b": _update(1.0, steps=10)})]
    assert asked_steps(["a", "b"], rounds, TRAINING) == {"a": 40, "b": 10}
    assert asked_steps(["a", "b"], rounds[1:], TRAINING) == {"a": 10, "b": 40}  # `a` is not known yet


_SECONDS = st.floats(0.0, 1e4)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(_SECONDS, _SECONDS, st.integers(1, 40)), min_size=1)
)
def test_each_is_asked_for_one_step_at_least_and_all_at_most(
    sites: dict[str, tuple[float, float, int]],
) -> None:
    asked = _asked(**{name: _update(*told) for name, told in sites.items()})
    assert asked.keys() == {*sites, "new"}
    assert all(1 <= steps <= 40 for steps in asked.values())
    assert max(asked.values()) == 40  # whoever sets the time takes all of them


PARTIAL = RunConfig(federation=FederationConfig(partial_work=True), training=TRAINING)


def test_a_round_waits_once_for_a_site_that_nobody_knows() -> None:
    first = pace_of_round(["a", "b"], [], PARTIAL)
    assert first == Pace(frozenset(), {"a": 10, "b": 10}, frozenset("ab"))
    rejected = {"c": Rejection("norm", "too large")}
    rounds = [RoundRecord(1, clients={"a": _update(0.25)}, rejected=rejected, missing=["b"])]
    assert pace_of_round(["a", "b"], rounds, PARTIAL) == Pace(frozenset("b"), {"a": 40, "b": 10})
    assert pace_of_round(["a", "c", "new"], rounds, PARTIAL).waited_for == {"new"}


def test_without_partial_work_a_round_asks_for_all_and_waits_for_nobody() -> None:
    assert pace_of_round(["a"], [], RunConfig()) == Pace()


def test_a_site_that_did_not_answer_the_last_time_is_doubted_until_it_does() -> None:
    rounds = [RoundRecord(1, clients={"a": {}}, missing=["b"]), RoundRecord(2, clients={"a": {}})]
    assert pace_of_round(["a", "b", "new"], rounds, RunConfig()).doubted == {"b"}
    rounds.append(RoundRecord(3, clients={"b": {}}, missing=["a"]))
    assert pace_of_round(["a", "b", "new"], rounds, RunConfig()).doubted == {"a"}
