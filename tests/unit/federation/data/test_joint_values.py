import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.data.description import describe_dataset
from federation.data.joint_names import JOINTS
from federation.data.joint_values import check_joint_values, dead_joints, value_fault, value_warnings
from federation.data.loading import open_dataset
from federation.data.statistics import FEATURES
from federation.errors import DatasetError

pytestmark = pytest.mark.slow

ROOT = Path("site-a")
FPS, FRAMES = 30, 120
STATE, ACTION = FEATURES
Episodes = dict[int, dict[str, np.ndarray]]


def _record(seed: int = 0, count: int = 4, reach: float = 60.0) -> Episodes:
    """Joints swing, the gripper opens and closes, the state lags the action by two frames."""
    random = np.random.default_rng(seed)
    episodes = {}
    for index in range(count):
        times = np.linspace(0, 2 * np.pi, FRAMES + 2)[:, None]
        poses = reach * np.sin(times * random.uniform(0.5, 2, 6) + random.uniform(0, 6, 6))
        poses[:, 5] = 50 + poses[:, 5] / reach * 49
        poses = np.rint(poses * 4095 / 360) * 360 / 4095
        episodes[index] = {STATE: poses[:-2].copy(), ACTION: poses[2:].copy()}
    return episodes


def _change(episodes: Episodes, change: Callable[[np.ndarray], np.ndarray], features=FEATURES) -> Episodes:
    return {
        index: {f: change(values.copy()) if f in features else values for f, values in own.items()}
        for index, own in episodes.items()
    }


def _ticks(values: np.ndarray) -> np.ndarray:
    return values * 4095 / 360 + 2047.5


def _gripper(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[:, 5] *= factor
        return values

    return change


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(15, 99))
def test_an_arm_that_moves_is_no_fault(seed: int, count: int, reach: float) -> None:
    episodes = _record(seed, count, reach)
    check_joint_values(episodes, ROOT)
    assert [value_fault(own) for own in episodes.values()] == [""] * count
    assert value_warnings(episodes, FPS, ROOT) == ()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            _ticks,
            r"observation.state goes from \d+ to \d+: these are motor ticks; .*/so_follower/ID.json: \(ticks",
        ),
        (np.deg2rad, r"the five joints of observation.state stay within -1.05 to 1.05: these are radians"),
        (lambda values: values / 100, r"observation.state stay within -0.60 to 0.60: these are .* -1 to 1"),
        (
            _gripper(0.01),
            r"gripper of observation.state goes from 0.01 to 0.99, .* in data/ by 100$",
        ),
        (_gripper(np.pi / 180), r"gripper of observation.state goes from 0.02 to 1.73, .* by 57.9$"),
        (
            lambda values: values * 40 + 9000,
            r"goes from \d+ to \d+, no joint of an SO-100 goes beyond 360; calibrate",
        ),
    ],
)
def test_other_units_are_refused_with_what_to_do(
    change: Callable[[np.ndarray], np.ndarray], text: str
) -> None:
    with pytest.raises(DatasetError, match=f"^dataset site-a: .*{text}"):
        check_joint_values(_change(_record(), change), ROOT)


@pytest.mark.parametrize(
    ("breaks", "cure"),
    [
        (np.deg2rad, np.rad2deg),
        (lambda values: values / 100, lambda values: values * 100),
        (_gripper(0.01), _gripper(100)),
        (_gripper(np.pi / 180), _gripper(57.9)),
    ],
)
def test_what_a_message_advises_makes_the_numbers_fit(
    breaks: Callable[[np.ndarray], np.ndarray], cure: Callable[[np.ndarray], np.ndarray]
) -> None:
    broken = _change(_record(), breaks)
    with pytest.raises(DatasetError):
        check_joint_values(broken, ROOT)
    check_joint_values(_change(broken, cure), ROOT)


def test_each_feature_is_judged_alone() -> None:
    with pytest.raises(
        DatasetError, match=r"action goes from .* motor ticks; .*teleoperators/so_leader/ID.json"
    ):
        check_joint_values(_change(_record(), _ticks, (ACTION,)), ROOT)
    with pytest.raises(DatasetError, match="joints of action stay within"):
        check_joint_values(_change(_record(), np.deg2rad, (ACTION,)), ROOT)


def test_ticks_that_are_converted_as_the_message_says_are_taken() -> None:
    low, high = np.array([[900, 1000, 950, 800, 0, 2030], [3100, 3000, 3150, 3300, 4095, 3500]])

    def as_read(values: np.ndarray) -> np.ndarray:
        ticks = values * 4095 / 360 + (low + high) / 2
        ticks[:, 5] = low[5] + values[:, 5] / 100 * (high[5] - low[5])
        return np.rint(ticks)

    def convert(ticks: np.ndarray) -> np.ndarray:
        degrees = (ticks - (low + high) / 2) * 360 / 4095
        degrees[:, 5] = (ticks[:, 5] - low[5]) / (high[5] - low[5]) * 100
        return degrees

    recorded = _record()
    with pytest.raises(DatasetError, match="motor ticks"):
        check_joint_values(_change(recorded, as_read), ROOT)
    converted = _change(recorded, lambda values: convert(as_read(values)))
    check_joint_values(converted, ROOT)
    np.testing.assert_allclose(converted[0][STATE], recorded[0][STATE], atol=0.1)


@pytest.mark.parametrize("value", [1800.0, -400.0, 3.4e38, -1.7e308])
def test_a_wild_frame_is_the_fault_of_its_episode_alone(value: float) -> None:
    episodes = _record()
    episodes[2][ACTION][57, 3] = value
    check_joint_values(episodes, ROOT)
    assert [index for index, own in episodes.items() if value_fault(own)] == [2]
    assert value_fault(episodes[2]).startswith(f"action of wrist_flex is {value:.5g} in frame 57, beyond 360")


def test_an_action_that_was_not_recorded_is_refused() -> None:
    episodes = _change(_record(), np.zeros_like, (ACTION,))
    with pytest.raises(
        DatasetError, match="the action was not recorded: it stays the same in 4 of 4 episodes"
    ):
        check_joint_values(episodes, ROOT)
    with pytest.raises(DatasetError, match=r"the observation.state was not recorded"):
        check_joint_values(_change(_record(), np.zeros_like, (STATE,)), ROOT)


def test_an_action_that_was_not_recorded_in_one_episode_is_the_fault_of_that_one() -> None:
    episodes = _record()
    episodes[1][ACTION][:] = episodes[1][ACTION][0]
    check_joint_values(episodes, ROOT)
    assert value_fault(episodes[1]) == "action stays the same while the arm moves"


def test_an_arm_that_stands_still_with_its_action_is_no_fault() -> None:
    episodes = _change(_record(), lambda values: np.full_like(values, 40.0))
    check_joint_values(episodes, ROOT)
    assert value_warnings(episodes, FPS, ROOT) == ()


@pytest.mark.parametrize("step", [100 / 1500, 100 / 4095])
def test_a_gripper_that_is_kept_shut_is_in_lerobots_steps(step: float) -> None:
    random = np.random.default_rng(0)

    def shut(values: np.ndarray) -> np.ndarray:
        values[:, 5] = random.integers(0, 20, len(values)) * step
        return values

    check_joint_values(_change(_record(), shut), ROOT)


def test_a_gripper_of_two_values_is_from_0_to_1() -> None:
    def toggle(values: np.ndarray) -> np.ndarray:
        values[:, 5] = values[:, 5] > 50
        return values

    with pytest.raises(DatasetError, match=r"gripper of action goes from 0.00 to 1.00"):
        check_joint_values(_change(_record(), toggle, (ACTION,)), ROOT)


def _kill(episodes: Episodes, joint: int, gap: float, of: slice = slice(None)) -> None:
    """`joint` stands still at `gap` from all that its action reaches."""
    for own in episodes.values():
        own[STATE][of, joint] = own[ACTION][:, joint].max() + gap


def test_a_joint_that_ignores_its_action_in_every_episode_is_one_warning() -> None:
    episodes = _record()
    _kill(episodes, 2, gap=30, of=slice(40, 80))
    (warning,) = value_warnings(episodes, FPS, ROOT)
    assert warning.startswith("dataset site-a: elbow_flex does not follow its action: in each of 4 episodes")
    episodes[3] = _record(1)[3]
    assert dead_joints(episodes, FPS) == {}


@pytest.mark.parametrize(("frames", "gap"), [(28, 30.0), (60, -110.0)])
def test_a_joint_that_is_far_for_less_than_a_second_or_near_its_action_is_not_dead(
    frames: int, gap: float
) -> None:
    episodes = _record(reach=10) if gap < 0 else _record()
    for own in episodes.values():
        own[STATE][20 : 20 + frames, 2] = own[ACTION][20, 2] + (gap if gap > 0 else 0)
    assert dead_joints(episodes, FPS) == {}


def test_a_gripper_that_holds_a_thing_is_not_dead_one_that_never_moves_is() -> None:
    episodes = _record()
    _kill(episodes, 5, gap=30, of=slice(40, 110))
    assert dead_joints(episodes, FPS) == {}
    _kill(episodes, 5, gap=30)
    assert dead_joints(episodes, FPS) == {5: 4}


def test_short_episodes_do_not_tell_whether_a_joint_is_dead() -> None:
    episodes = {index: {f: v[:20] for f, v in own.items()} for index, own in _record().items()}
    _kill(episodes, 1, gap=50)
    assert dead_joints(episodes, FPS) == {}


def test_an_action_that_is_the_state_is_warned_of() -> None:
    episodes = _record()
    same = {index: {STATE: own[STATE], ACTION: own[STATE].copy()} for index, own in episodes.items()}
    (warning,) = value_warnings(same, FPS, ROOT)
    assert warning.startswith("dataset site-a: action equals observation.state in every frame")
    same[0][ACTION][5, 1] += 1
    assert value_warnings(same, FPS, ROOT) == ()


def test_another_number_of_joints_is_left_to_the_check_of_dimensions() -> None:
    wide = _change(_record(), lambda values: np.concatenate([values, values], axis=1) * 1000)
    check_joint_values(wide, ROOT)
    assert value_fault(wide[0]) == ""
    assert value_warnings(wide, FPS, ROOT) == ()


@given(
    st.lists(st.floats(width=32), min_size=2 * 3 * len(JOINTS), max_size=2 * 3 * len(JOINTS)),
    st.integers(1, 3),
)
def test_whatever_numbers_come_are_judged(values: list[float], count: int) -> None:
    parts = np.array(values).reshape(2, 3, len(JOINTS))
    episodes = {index: dict(zip(FEATURES, parts, strict=True)) for index in range(count)}
    try:
        check_joint_values(episodes, ROOT)
    except DatasetError as error:
        assert "\n" not in str(error)


def test_data_that_pandas_rewrote_is_what_training_reads(data: Path, tmp_path: Path, policy) -> None:
    root = Path(shutil.copytree(data / "site-a", tmp_path / "radians"))

    def multiply(factor: float) -> None:
        for file in (root / "data").glob("*/*.parquet"):
            table = pd.read_parquet(file)
            for feature in FEATURES:
                table[feature] = [values * factor for values in table[feature]]
            table.to_parquet(file)

    multiply(np.pi / 180)
    with pytest.raises(DatasetError, match="in data/ multiply radians by 180 / pi"):
        describe_dataset(root)
    multiply(180 / np.pi)
    assert describe_dataset(root).warnings == ()
    expected, item = (open_dataset(own, policy.config)[7] for own in (data / "site-a", root))
    torch.testing.assert_close(item["action"], expected["action"])
