"""Which arm a dataset is of, told by the robot type and the joint names in its meta/info.json.

Nothing else says which value is which joint: LeRobot hands training six numbers in the order of the file. An
arm of six other joints, or the same joints in another order, would train without an error. `describe_dataset`
asks this, so the doctor, the demo and the join all refuse the same.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from federation.data.statistics import FEATURES
from federation.errors import DatasetError, one_line

__all__ = ["JOINTS", "check_joint_names"]

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")

# Arms in public datasets that are not an SO-100; any other type is judged by its joint names alone.
_OTHER_ROBOTS = re.compile(
    r"koch|omx|moss|openarm|rebot|aloha|widowx|wx\d|viperx|vx\d|trossen|panda|franka|fr3|xarm|lite6|ur\d|"
    r"iiwa|kuka|kinova|jaco|sawyer|baxter|piper|unitree|g1|h1|reachy|hope|stretch|earthrover|google|fanuc|"
    r"arx|dobot|mycobot|airbot|agibot|yumi"
)
_SO_ARM = re.compile(r"so_?-?(10\d|arm|follower)")
_OLD_PREFIX = "main_"
_AFFIXES = re.compile(
    r"^(observation\.state\.|action\.)?(so10\d_|follower_|leader_|left_|right_|arm_|main_)*"
    r"|([._](pos|position|joint))+$"
)
_IN_ARM_MODELS = {  # the names in the arm's URDF
    "rotation": "shoulder_pan",
    "pitch": "shoulder_lift",
    "elbow": "elbow_flex",
    "wrist_pitch": "wrist_flex",
    "jaw": "gripper",
}
_GENERIC = re.compile(
    r"(motors?|joints?|servo|actuator|axis|dim|state|action|value|id|none|null|[jmq])?[ _.-]*\d*"
)


def check_joint_names(info: Mapping[str, Any], root: Path) -> tuple[str, ...]:
    """Warnings, each one line, if `info`, the content of meta/info.json, is of an SO-100 or may be.

    Generic names (motor_1, null) or none cannot be judged and are taken. A feature of other than six values
    is not judged here: `describe_dataset` refuses it with its dimension.

    Raises:
        DatasetError: it is of another arm, or its joints are in another order.
    """
    robot = info.get("robot_type")
    if isinstance(robot, str) and _is_other_robot(robot):
        raise DatasetError(
            f"dataset {root}: robot_type in meta/info.json is {one_line(robot)!r}, must be an SO-100 or "
            'SO-101 arm; use a dataset of that arm, or correct robot_type to "so101_follower" if it is one'
        )
    warnings = []
    for feature in FEATURES:
        names = _recorded_names(info, feature)
        if len(names) != len(JOINTS) or _dim(info, feature) != len(JOINTS):
            continue
        _check_order(names, feature, root)
        if all(name.startswith(_OLD_PREFIX) for name in names) and _joint(names[0]) == JOINTS[0]:
            warnings.append(_old_calibration(names[0], feature, root))
    return tuple(warnings[:1])


def _is_other_robot(robot: str) -> bool:
    return not _SO_ARM.search(robot.lower()) and any(
        _OTHER_ROBOTS.match(word) for word in re.split(r"[^a-z0-9]+", robot.lower())
    )


def _check_order(names: Sequence[str], feature: str, root: Path) -> None:
    joints = tuple(_joint(name) for name in names)
    if joints == JOINTS or all(_GENERIC.fullmatch(joint) for joint in joints):
        return
    if sorted(joints) == sorted(JOINTS):
        raise DatasetError(
            f"dataset {root}: {feature} has its joints in the order {', '.join(joints)}, an SO-100 recording "
            f"has {', '.join(JOINTS)}; put the values in data/ and features.{feature}.names in "
            "meta/info.json into that order"
        )
    raise DatasetError(
        f"dataset {root}: {feature} holds {one_line(', '.join(names))}, must hold the joints of "
        f"an SO-100 ({', '.join(JOINTS)}); use a dataset of that arm's joint positions, or, if these are the "
        f"same joints in that order, put those names into features.{feature}.names of meta/info.json"
    )


def _old_calibration(name: str, feature: str, root: Path) -> str:
    return (
        f"dataset {root}: joints of {feature} are named {name} and so on, as LeRobot did before June 2025, "
        "when zero and direction of two joints were others; in data/ replace shoulder_lift by 90 - value and "
        "elbow_flex by value - 90, in state and action (huggingface.co/docs/lerobot/backwardcomp), unless "
        "that is done; then put shoulder_pan.pos and so on into features.*.names of meta/info.json"
    )


def _joint(name: str) -> str:
    bare = _AFFIXES.sub("", name.strip().lower().replace(" ", "_"))
    return _IN_ARM_MODELS.get(bare, bare)


def _recorded_names(info: Mapping[str, Any], feature: str) -> list[str]:
    """Return the names in a list or, as older recorders wrote it, in `{"motors": [...]}`; [] without any."""
    names = info["features"][feature].get("names")
    if isinstance(names, dict) and len(names) == 1:
        (names,) = names.values()
    return [str(name) for name in names] if isinstance(names, list) else []


def _dim(info: Mapping[str, Any], feature: str) -> int:
    return int(np.prod(info["features"][feature]["shape"]))
