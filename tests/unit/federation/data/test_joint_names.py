from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.data.joint_names import JOINTS, check_joint_names
from federation.data.simulated import SIMULATED_ROBOT
from federation.data.statistics import FEATURES
from federation.errors import DatasetError

ROOT = Path("site-a")
WITH_POS = [f"{joint}.pos" for joint in JOINTS]


def _info(names: object = WITH_POS, robot: object = "so101_follower", dim: int = 6) -> dict[str, Any]:
    feature = {"dtype": "float32", "shape": [dim], "names": names}
    return {"robot_type": robot, "features": dict.fromkeys(FEATURES, feature)}


@pytest.mark.parametrize(
    "robot",
    [
        *("so100", "so101", "so_follower", "so100_follower", "so101_follower", SIMULATED_ROBOT),
        *("SO-ARM100", "unknown", "my arm", "", None, ["so100"]),
    ],
)
def test_an_arm_of_ours_and_an_unknown_one_with_the_right_names_are_taken(robot: object) -> None:
    assert check_joint_names(_info(robot=robot), ROOT) == ()


@pytest.mark.parametrize(
    "robot", ["koch", "koch_follower", "aloha", "panda", "Franka-Panda", "ur5e", "omx_follower", "unitree_g1"]
)
def test_another_arm_is_refused_by_its_type(robot: str) -> None:
    with pytest.raises(
        DatasetError, match=rf"^dataset site-a: robot_type .* is '{robot}', must be an SO-100"
    ):
        check_joint_names(_info(robot=robot), ROOT)


@pytest.mark.parametrize(
    "names",
    [
        list(JOINTS),
        {"motors": WITH_POS},
        ["Rotation", "Pitch", "Elbow", "Wrist_Pitch", "Wrist_Roll", "Jaw"],
        [f"observation.state.arm_{joint}_joint" for joint in JOINTS],
        [f"motor_{number}" for number in range(1, 7)],
        {"motors": [f"motor_{number}" for number in range(6)]},
        [f"joint{number}.pos" for number in range(1, 7)],
        ["1", "2", "3", "4", "5", "6"],
        [None] * 6,
        [],
        None,
        "joints",
    ],
)
def test_the_joints_of_an_so100_and_generic_names_are_taken(names: object) -> None:
    assert check_joint_names(_info(names, robot=None), ROOT) == ()


@given(st.permutations(JOINTS).filter(lambda joints: tuple(joints) != JOINTS), st.sampled_from(["", ".pos"]))
def test_another_order_is_refused_and_named(joints: list[str], suffix: str) -> None:
    names = [joint + suffix for joint in joints]
    with pytest.raises(DatasetError, match=rf"observation.state has its joints in the order {joints[0]}, "):
        check_joint_names(_info(names), ROOT)


@pytest.mark.parametrize(
    "names",
    [
        ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"],
        ["x", "y", "z", "roll", "pitch", "yaw"],
        [*WITH_POS[:5], WITH_POS[0]],
    ],
)
def test_other_joints_are_refused_and_named(names: list[str]) -> None:
    with pytest.raises(DatasetError, match=rf"observation.state holds {names[0]}, .* must hold the joints"):
        check_joint_names(_info(names, robot=None), ROOT)


def test_names_of_the_action_alone_are_judged() -> None:
    info = _info()
    info["features"]["action"] = {**info["features"]["action"], "names": WITH_POS[::-1]}
    with pytest.raises(DatasetError, match=r"site-a: action has its joints in the order gripper, wrist_roll"):
        check_joint_names(info, ROOT)


def test_old_names_are_one_warning_that_says_what_to_do() -> None:
    (warning,) = check_joint_names(_info([f"main_{joint}" for joint in JOINTS], robot="so100"), ROOT)
    assert warning.startswith("dataset site-a: joints of observation.state are named main_shoulder_pan")
    assert "shoulder_lift by 90 - value and elbow_flex by value - 90" in warning
    assert "\n" not in warning


def test_six_names_of_twelve_values_are_left_to_the_check_of_dimensions() -> None:
    assert check_joint_names(_info(["x"] * 12, dim=12), ROOT) == ()
    assert check_joint_names(_info(["x"] * 6, dim=12), ROOT) == ()


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda own: st.lists(own) | st.dictionaries(st.text(), own)
    )
)
def test_whatever_stands_there_is_judged_or_refused(names: object) -> None:
    try:
        check_joint_names(_info(names, robot=names), ROOT)
    except DatasetError as error:
        assert "\n" not in str(error)
