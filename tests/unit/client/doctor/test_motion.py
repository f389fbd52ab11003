import numpy as np
import pytest

from client.doctor.check import Check
from client.doctor.motion import check_motion

FPS, FRAMES = 30, 90
Episodes = dict[int, dict[str, np.ndarray]]


@pytest.fixture
def episodes() -> Episodes:
    """Three good episodes: every joint swings by 60 degrees, the state lags the action by a frame."""
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (3, 6))
    angles = 2 * np.pi * np.arange(FRAMES + 1)[:, None] / FRAMES
    poses = [60 * np.sin(angles + phase) for phase in phases]
    return {i: {"observation.state": pose[:-1].copy(), "action": pose[1:]} for i, pose in enumerate(poses)}


def _look(episodes: Episodes) -> list[Check]:
    return check_motion(episodes, FPS, lambda chosen: f"see {chosen}")


def _warning(episodes: Episodes, what: str) -> str:
    (check,) = _look(episodes)
    assert (check.level, check.what) == ("warning", what)
    return check.text


def test_good_episodes_give_one_line(episodes: Episodes) -> None:
    (check,) = _look(episodes)
    assert (check.level, check.what) == ("ok", "motion")


def test_a_spike_is_two_jumps_named_by_joint_frame_and_values(episodes: Episodes) -> None:
    state = episodes[1]["observation.state"]
    state[38:45, 4] = 10.0
    state[41, 4] = 150.0
    text = _warning(episodes, "jumps")
    assert "state: 2 jumps in episode 1, the largest: wrist_roll from 10.0 to 150.0 at frame 41" in text
    assert "of episode 1; see [1]" in text


def test_a_turn_past_the_encoders_end_is_a_jump(episodes: Episodes) -> None:
    for index in (0, 2):
        episodes[index]["action"][:, 3] = (np.linspace(0, 178, FRAMES) + 99) % 198 - 99
    assert "the largest: wrist_flex from 98.0 to -98.0 at frame 50 of episode 0" in _warning(
        episodes, "jumps"
    )


def test_a_gripper_that_snaps_shut_in_a_tenth_of_a_second_does_not_jump(episodes: Episodes) -> None:
    for own in episodes.values():
        grip = np.concatenate([np.full(40, 100.0), [66.0, 33.0], np.zeros(FRAMES - 42)])
        own["action"][:, 5] = own["observation.state"][:, 5] = grip
    assert _look(episodes)[0].level == "ok"


def test_a_hand_that_is_always_quick_does_not_jump(episodes: Episodes) -> None:
    for own in episodes.values():
        own["action"][:, 0] = own["observation.state"][:, 0] = 55 * np.tile([-1, 1], FRAMES // 2)
    assert _look(episodes)[0].level == "ok"


def test_a_servo_that_does_not_follow_is_named(episodes: Episodes) -> None:
    episodes[2]["observation.state"][30:, 2] = episodes[2]["observation.state"][30, 2]
    text = _warning(episodes, "frozen")
    assert text.startswith("a joint does not follow its action: elbow_flex stays at ")
    assert "for 60 frames from frame 30 of episode 2; check its servo and cable; see [2]" in text


def test_a_servo_that_follows_in_no_episode_is_left_to_the_shared_judgement(episodes: Episodes) -> None:
    for own in episodes.values():
        own["observation.state"][:, 2] = own["action"][:, 2].max() + 30
    assert _look(episodes)[0].level == "ok"


def test_a_gripper_that_holds_a_thing_is_not_frozen_one_that_never_moved_is(episodes: Episodes) -> None:
    episodes[0]["observation.state"][30:, 5] = episodes[0]["observation.state"][30, 5]
    assert _look(episodes)[0].level == "ok"
    episodes[0]["observation.state"][:, 5] = 12.5
    assert "gripper stays at 12.5 for 90 frames from frame 0 of episode 0" in _warning(episodes, "frozen")


def test_a_joint_that_waits_for_its_action_is_not_frozen(episodes: Episodes) -> None:
    for feature in ("observation.state", "action"):
        episodes[0][feature][30:, 1] = episodes[0][feature][30, 1]
    assert _look(episodes)[0].level == "ok"


def test_a_joint_no_episode_uses_is_told_once(episodes: Episodes) -> None:
    for own in episodes.values():
        own["action"][:, 4] = own["observation.state"][:, 4] = 94.0
    assert "wrist_roll stays at 94.0 in every frame of every episode" in _warning(episodes, "frozen")


def test_an_episode_that_is_there_twice_is_named(episodes: Episodes) -> None:
    episodes[7] = {feature: values.copy() for feature, values in episodes[1].items()}
    text = _warning(episodes, "duplicates")
    assert "1 episode repeated with the same states and actions: 7 repeats 1; " in text


def test_short_episodes_are_named_three_at_most(episodes: Episodes) -> None:
    for index in range(10, 15):
        episodes[index] = {f: v[index : index + 20] for f, v in episodes[0].items()}
    assert "shorter than 1 s: episodes 10, 11, 12, ...; see [10, 11, 12, 13, 14]" in _warning(
        episodes, "short"
    )


def test_episodes_of_one_frame_have_no_jumps(episodes: Episodes) -> None:
    one = {index: {f: v[index : index + 1] for f, v in own.items()} for index, own in episodes.items()}
    assert {check.what for check in _look(one)} == {"short"}
