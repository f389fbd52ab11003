"""A scripted pick for the simulated SO-101: approach, descend, close, lift, hold.

The whole episode is planned from the true cube pose before the first step, as joint targets like those a
leader arm would send, and then played without looking. That is simpler than a controller with phases, and it
cannot claim a success: only `SO101Scene.success` knows what became of the cube.
"""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from server.simulation.so101 import CUBE_HALF_SIZE_M, FPS, JOINT_LIMITS, SO101Scene

__all__ = ["plan_pick", "play"]

HOVER_HEIGHT_M = 0.05
PLANNED_LIFT_M = 0.075
PINCH_HEIGHT_M = 0.013  # the pads reach 7 mm further down, so the finger tips clear the table
FIXED_PAD_FACE_M = (-0.0015, -0.0002, -0.0972)  # inner face of the still finger, in body "gripper"
FIXED_PAD_CLEARANCE_M = 0.005
OPEN_PERCENT = 55.0
PINCH_PERCENT = 12.0  # the cube stops the fingers at 15 to 19; the rest is squeeze
HOME_TO_HOVER_SECONDS = 1.0
DESCEND_SECONDS = 0.7
CLOSE_SECONDS = 0.4
LIFT_SECONDS = 0.8
PLANNED_HOLD_SECONDS = 0.5

IK_STEPS = 60
IK_DAMPING = 1e-3
IK_METRES_PER_RADIAN = 0.1  # how much a radian of tilt counts against a metre of distance
IK_TOLERANCE = 1e-5


def plan_pick(scene: SO101Scene, seed: int) -> NDArray[Any]:
    """Return joint targets (T, 6) float32, one for each 1/30 s, that pick up the cube where it lies now.

    T is 92 to 122. Call after `scene.reset`; the scene is not changed. `seed` varies pace, approach and grip.
    """
    rng = np.random.default_rng((seed, 1))  # (seed,) alone is the stream that placed the cube
    pace = rng.uniform(0.9, 1.2)
    hover = np.array([*rng.uniform(-0.006, 0.006, 2), HOVER_HEIGHT_M + rng.uniform(-0.01, 0.01)])
    grip_offset = np.array([*rng.uniform(-0.0015, 0.0015, 2), 0.0])
    open_percent, pinch_percent = OPEN_PERCENT + rng.uniform(-4, 4), PINCH_PERCENT + rng.uniform(-3, 3)

    cube = scene.data.body("cube")
    over_cube = np.array([*cube.xpos[:2], PINCH_HEIGHT_M]) + grip_offset
    lifted = np.array([0.0, 0.0, PLANNED_LIFT_M])
    arm = _Arm(scene, _finger_direction(cube))
    start = scene.from_radians(scene.data.ctrl)
    above = np.append(arm.targets_at(over_cube + hover), open_percent)

    def frames(seconds: float) -> int:
        return round(seconds * FPS * pace)

    approach = start + _ease(frames(HOME_TO_HOVER_SECONDS))[:, None] * (above - start)
    descend = [
        np.append(arm.targets_at(over_cube + (1 - part) * hover), open_percent)
        for part in _ease(frames(DESCEND_SECONDS))
    ]
    closing = open_percent + _ease(frames(CLOSE_SECONDS)) * (pinch_percent - open_percent)
    close = [np.append(descend[-1][:5], percent) for percent in closing]
    lift = [
        np.append(arm.targets_at(over_cube + part * lifted), pinch_percent)
        for part in _ease(frames(LIFT_SECONDS))
    ]
    hold = [lift[-1]] * frames(PLANNED_HOLD_SECONDS)
    plan = np.concatenate([approach, descend, close, lift, hold])
    # At the top of the lift the wrist is out of travel a few degrees short of vertical; the grip bears it.
    clipped: NDArray[Any] = np.clip(plan, *JOINT_LIMITS.T).astype(np.float32)
    return clipped


def play(scene: SO101Scene, plan: NDArray[Any]) -> bool:
    """Step `scene` through `plan` (T, 6) without drawing; True if the simulator calls the pick a success."""
    for targets in plan:
        scene.step(targets)
    return scene.success()


def _ease(frames: int) -> NDArray[Any]:
    """Minimum-jerk progress (frames,) that leaves 0 gently and arrives at 1."""
    t = np.arange(1, frames + 1) / frames
    return t**3 * (10 - 15 * t + 6 * t**2)


def _finger_direction(cube: Any) -> float:
    """Return the world angle (radians) from the still to the moving finger.

    Of the cube's four sides it is the one that lies most across the arm's reach. The wrist roll ends within
    45 degrees of -90, well inside its travel.
    """
    natural = np.arctan2(cube.xpos[1], cube.xpos[0]) - np.pi / 2
    x_axis = cube.xmat.reshape(3, 3)[:, 0]
    off_square = (np.arctan2(x_axis[1], x_axis[0]) - natural + np.pi / 4) % (np.pi / 2) - np.pi / 4
    return float(natural + off_square)


class _Arm:
    """Inverse kinematics of a vertical grasp, each solution starting from the one before."""

    def __init__(self, scene: SO101Scene, finger_angle: float) -> None:
        self._scene = scene
        self._data = mujoco.MjData(scene.model)
        self._data.qpos[:] = scene.data.qpos
        along = np.array([np.cos(finger_angle), np.sin(finger_angle), 0.0])
        up = np.array([0.0, 0.0, 1.0])
        self._wanted = np.stack([along, np.cross(up, along), up], axis=1)
        self._pinch = np.array(FIXED_PAD_FACE_M)
        self._pinch[0] += CUBE_HALF_SIZE_M + FIXED_PAD_CLEARANCE_M

    def targets_at(self, position_m: NDArray[Any]) -> NDArray[Any]:
        """Return targets (5,) in degrees: the point between the fingers at `position_m` (3,), pointing down.

        Damped least squares. A target is the joint angle plus what the servo, a spring, gives way under the
        arm's own weight, as a person leading a real arm would compensate.
        """
        model, data = self._scene.model, self._data
        gripper = data.body("gripper")
        jacobian = np.zeros((6, model.nv))
        for _ in range(IK_STEPS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            rotation = gripper.xmat.reshape(3, 3)
            point = gripper.xpos + rotation @ self._pinch
            tilt = 0.5 * np.cross(rotation.T, self._wanted.T).sum(axis=0)
            error = np.concatenate([position_m - point, IK_METRES_PER_RADIAN * tilt])
            if np.linalg.norm(error) < IK_TOLERANCE:
                break
            mujoco.mj_jac(model, data, jacobian[:3], jacobian[3:], point, gripper.id)
            arm = jacobian[:, :5] * np.repeat([1.0, IK_METRES_PER_RADIAN], 3)[:, None]
            change = arm.T @ np.linalg.solve(arm @ arm.T + IK_DAMPING**2 * np.eye(6), error)
            data.qpos[:5] += np.clip(change, -0.3, 0.3)
        mujoco.mj_forward(model, data)
        sag = data.qfrc_bias[:5] / model.actuator_gainprm[:5, 0]
        targets: NDArray[Any] = np.degrees(data.qpos[:5] + sag)
        return targets
