import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.data.joint_units import DEGREES, RANGE, JointUnits, check_joint_units, find_joint_units
from federation.data.statistics import FEATURES
from federation.errors import DatasetError

ROOT = Path("site-a")
BOTH = (DEGREES, RANGE)
Ends = list[tuple[int, int]]

# The lowest and highest tick of each of five joints, as a calibration finds them.
CALIBRATIONS = st.lists(
    st.tuples(st.integers(0, 1500), st.integers(800, 2595)).map(lambda own: (own[0], sum(own))),
    min_size=5,
    max_size=5,
)


def _ticks(ends: Ends, seed: int, frames: int = 400, reach: float = 0.9) -> np.ndarray:
    """(frames, 5): each joint swings over `reach` of its range, the way a hand moves it."""
    random = np.random.default_rng(seed)
    times = np.linspace(0, 2 * np.pi, frames)[:, None]
    swing = np.sin(times * random.uniform(0.7, 2.3, 5) + random.uniform(0, 6, 5))
    low, high = np.array(ends).T
    middle = (low + high) / 2 + random.uniform(-0.04, 0.04, 5) * (high - low)
    return np.rint(np.clip(middle + swing * reach / 2 * (high - low), low, high))


def _degrees(ticks: np.ndarray, ends: Ends) -> np.ndarray:
    return (ticks - np.array(ends).sum(axis=1) / 2) * 360 / 4095


def _old_degrees(ticks: np.ndarray, ends: Ends) -> np.ndarray:
    return (ticks - 2048) * np.float32(360 / 4096)


def _range(ticks: np.ndarray, ends: Ends) -> np.ndarray:
    low, high = np.array(ends).T
    return (ticks - low) / (high - low) * 200 - 100


def _frames(state: np.ndarray, action: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
    """One episode, with a gripper, through the float32 of a recording."""
    grip = np.linspace(0, 99, len(state))[:, None]
    parts = (np.concatenate([own, grip], axis=1) for own in (state, action))
    return {0: {f: part.astype(np.float32).astype(float) for f, part in zip(FEATURES, parts, strict=True)}}


def _units(state: np.ndarray, action: np.ndarray | None = None) -> tuple[str, ...]:
    return find_joint_units(_frames(state, state if action is None else action), ROOT).possible


@settings(max_examples=15)
@given(CALIBRATIONS, CALIBRATIONS, st.integers(0, 99), st.floats(0.05, 1.0))
def test_a_servo_tells_its_units(arm: Ends, leader: Ends, seed: int, reach: float) -> None:
    ticks = _ticks(arm, seed, reach=reach)
    led = _ticks(leader, seed + 1, reach=reach)
    for to_units, other in ((_degrees, RANGE), (_old_degrees, RANGE), (_range, DEGREES)):
        assert _units(to_units(ticks, arm), to_units(led, leader)) != (other,)


@settings(max_examples=10)
@given(st.integers(0, 999))
def test_the_usual_calibration_tells_them_for_sure(seed: int) -> None:
    random = np.random.default_rng(seed)
    low = random.integers(600, 1000, 5)
    arm = list(zip(low, low + random.integers(1700, 2200, 5), strict=True))
    ticks = _ticks(arm, seed, reach=0.5)
    assert _units(_range(ticks, arm)) == (RANGE,)
    assert DEGREES in _units(_degrees(ticks, arm))


@pytest.mark.parametrize(
    ("to_units", "expected"), [(_degrees, DEGREES), (_old_degrees, DEGREES), (_range, RANGE)]
)
@pytest.mark.parametrize("frames", [60, 50_000])
def test_units_are_told_within_100_and_from_any_number_of_frames(
    to_units: Callable[[np.ndarray, Ends], np.ndarray], expected: str, frames: int
) -> None:
    arm = [(1000, 3001), (900, 3090), (880, 2900), (1100, 3011), (950, 3100)]
    state = to_units(_ticks(arm, 1, frames, reach=0.5), arm)
    assert np.abs(state).max() < 100
    found = find_joint_units(_frames(state, np.zeros_like(state)), ROOT)
    assert found == JointUnits((expected,), f"joints step by the servo's ticks in {expected}")


def test_two_calibrations_in_one_dataset_are_still_degrees() -> None:
    first, second = [(1000, 3001)] * 5, [(1010, 3040)] * 5
    parts = [_degrees(_ticks(arm, seed, reach=0.5), arm) for seed, arm in enumerate((first, second))]
    assert _units(np.concatenate(parts)) == (DEGREES,)


def test_an_arm_that_was_calibrated_anew_tells_its_range_by_its_episodes() -> None:
    first, second = [(1000, 3001)] * 5, [(1010, 3040)] * 5
    parts = [_range(_ticks(arm, seed), arm) for seed, arm in enumerate((first, second, second))]
    episodes = {index: _frames(part, part)[0] for index, part in enumerate(parts)}
    assert find_joint_units(episodes, ROOT).possible == (RANGE,)


@pytest.mark.parametrize("reach", [0.5, 1.0])
def test_episodes_in_different_units_are_refused(reach: float) -> None:
    parts = [to_units(_ticks(ARM, 1, reach=reach), ARM) for to_units in (_range, _degrees, _degrees)]
    episodes = {index: _frames(part, part)[0] for index, part in enumerate(parts)}
    with pytest.raises(
        DatasetError, match="state is in degrees in episode 1 and in range in episode 0; multiply"
    ):
        find_joint_units(episodes, ROOT)


ARM = [(1000, 3001), (900, 3090), (880, 2900), (1100, 3011), (950, 3100)]
SWING = _degrees(_ticks(ARM, 3, reach=0.5), ARM)


@pytest.mark.parametrize(
    "values",
    [
        SWING + np.random.default_rng(0).uniform(-0.02, 0.02, SWING.shape),
        (SWING[1:] + SWING[:-1] * 2) / 3,
        *(np.round(SWING / step) * step for step in (1, 0.5, 0.25, 0.125, 0.1, 0.05, 0.04, 0.01)),
        np.linspace(-80, 80, 200)[:, None].repeat(5, axis=1),
        SWING[:15],
        np.zeros((50, 5)),
        np.deg2rad(SWING),
    ],
)
def test_filtered_rounded_even_and_few_values_tell_nothing(values: np.ndarray) -> None:
    assert _units(values) == BOTH


@settings(max_examples=30)
@given(st.floats(-90, 90), st.floats(0.001, 1.5), st.integers(20, 60), st.floats(0.01, 0.99))
def test_the_even_steps_of_a_program_tell_nothing(
    start: float, step: float, frames: int, factor: float
) -> None:
    ramp = np.clip(start + step * np.arange(frames), -99, 99)
    assert _units(np.stack([ramp * factor**joint for joint in range(5)], axis=1)) == BOTH


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(20, 300), st.floats(0.5, 99))
def test_random_values_tell_nothing(seed: int, frames: int, reach: float) -> None:
    assert _units(np.random.default_rng(seed).uniform(-reach, reach, (frames, 5))) == BOTH


def test_an_action_of_a_program_leaves_the_state_to_tell() -> None:
    noise = np.random.default_rng(0).uniform(-90, 90, SWING.shape)
    assert _units(SWING, noise) == (DEGREES,)


def test_an_arm_and_a_leader_in_different_units_are_refused() -> None:
    ticks = _ticks(ARM, 3, reach=0.5)
    with pytest.raises(
        DatasetError, match=re.escape("observation.state is in degrees and action is in range (")
    ):
        find_joint_units(_frames(_degrees(ticks, ARM), _range(ticks, ARM)), ROOT)


def test_the_factor_that_the_message_names_turns_one_into_the_other() -> None:
    ticks = _ticks(ARM, 3)
    span = np.ptp(ARM, axis=1)
    np.testing.assert_allclose(_range(ticks, ARM) * span / 2275, _degrees(ticks, ARM), atol=1e-9)
    for own, other, times in ((RANGE, DEGREES, "-.* / 2275"), (DEGREES, RANGE, r"2275 / \(range_max -")):
        with pytest.raises(DatasetError, match=times):
            check_joint_units(JointUnits((own,), "why"), other, "arm")


@pytest.mark.parametrize(("state", "action"), [(12, 3), (1, 6), (6, 5)])
def test_another_number_of_joints_is_left_to_the_check_of_dimensions(state: int, action: int) -> None:
    frames = dict(zip(FEATURES, (np.full((9, state), 150.0), np.full((9, action), 150.0)), strict=True))
    assert find_joint_units({0: frames}, ROOT) == JointUnits()


@pytest.mark.parametrize(
    ("low", "high", "possible"),
    [
        (-99.0, 99.0, BOTH),
        (-90.0, 101.0, (DEGREES,)),
        (-101.0, 90.0, (DEGREES,)),
        (-100.0, 100.0, (RANGE,)),
        (-100.0, 90.0, (RANGE,)),
    ],
)
def test_extremes_tell_units_where_steps_do_not(low: float, high: float, possible: tuple[str, ...]) -> None:
    found = find_joint_units(_frames(*[np.array([[low] * 5, [high] * 5])] * 2), ROOT)
    assert found.possible == possible
    for units in BOTH:
        if units in possible:
            check_joint_units(found, units, "arm")
        else:
            with pytest.raises(
                DatasetError, match=f"arm: its joints are in {possible[0]} .* is '{units}'; .* policy.joint"
            ):
                check_joint_units(found, units, "arm")


def test_a_single_joint_that_ends_at_exactly_100_may_be_chance() -> None:
    values = np.full((2, 5), 90.0)
    values[0, 2] = 100.0
    assert _units(values) == BOTH
