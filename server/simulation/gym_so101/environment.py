"""The simulated SO-101 as a gymnasium environment that LeRobot's own tools drive.

    lerobot-eval --policy.path=. --env.type=so101_pick
    --env.discover_packages_path=server.simulation.gym_so101

registers and drives it; `server.evaluation.closed_loop` evaluates the global policy with the same code.
Observations and actions are those of the recorded datasets. An episode ends when the cube has been held 5 cm
up for 0.3 s, which is a success, or after 5 s.

The reward of a step is how much further the episode came than ever before: half for closing in on the cube,
half for lifting it. So the return is between 0 and 1 less what it began with; a success counts as 1
(`server.evaluation.closed_loop`).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from numpy.typing import NDArray

from federation.errors import ConfigError
from server.simulation.scenes import VARIANTS, unknown_variant
from server.simulation.so101 import (
    CUBE_HALF_SIZE_M,
    FPS,
    JOINT_LIMITS,
    LIFT_HEIGHT_M,
    SO101Scene,
)

__all__ = ["MAX_STEPS", "SO101PickConfig", "SO101PickEnv"]

MAX_STEPS = 5 * FPS  # the expert needs 92 to 122
_CAMERAS = ("top", "wrist")
_REACH_M = 0.05  # at this distance closing in has earned 1/e of its half
_BETWEEN_PADS_M = (0.0175, 0.0, -0.0972)  # in body "gripper"


class SO101PickEnv(gym.Env[dict[str, Any], NDArray[Any]]):
    """One arm and one cube; the variant of an episode is its seed modulo their number.

    Args:
        variants: names in `server.simulation.scenes.VARIANTS`.
        image_size_px: height and width of both camera images.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012
    render_mode = "rgb_array"
    _max_episode_steps = MAX_STEPS  # LeRobot asks for it under this name

    def __init__(self, variants: tuple[str, ...], image_size_px: int) -> None:
        self._variants, self._size_px = variants, image_size_px
        image = gym.spaces.Box(0, 255, (image_size_px, image_size_px, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "agent_pos": gym.spaces.Box(-np.inf, np.inf, (6,), np.float32),
                "pixels": gym.spaces.Dict(dict.fromkeys(_CAMERAS, image)),
            }
        )
        self.action_space = gym.spaces.Box(*JOINT_LIMITS.T, dtype=np.float32)
        self._scenes: dict[str, SO101Scene] = {}
        self._scene: SO101Scene | None = None
        self._frame: dict[str, NDArray[Any]] = {}
        self._steps, self._progress = 0, 0.0

    @property
    def scene(self) -> SO101Scene:
        """Return the scene of this episode."""
        assert self._scene is not None, "call reset first"
        return self._scene

    @property
    def task_description(self) -> str:
        """Return what the policy is told to do."""
        return self.scene.variant.task

    @property
    def task(self) -> str:
        """Return the scene variant of this episode."""
        return self.scene.variant.name

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode of `seed`; without one, a random one."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        name = self._variants[seed % len(self._variants)]
        if name not in self._scenes:
            self._scenes[name] = SO101Scene(VARIANTS[name], self._size_px)
        self._scene = self._scenes[name]
        self._scene.reset(seed)
        self._steps, self._progress = 0, 0.0
        self._progress = self._measure()
        return self._observe(), {"is_success": False}

    def step(self, action: NDArray[Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Drive the servos towards `action` (6,), degrees and gripper percent, for 1/30 s."""
        self.scene.step(action)
        self._steps += 1
        success = self.scene.success()
        progress = 1.0 if success else max(self._progress, self._measure())
        reward, self._progress = progress - self._progress, progress
        truncated = self._steps >= MAX_STEPS and not success
        return self._observe(), reward, success, truncated, {"is_success": success}

    def render(self) -> NDArray[Any]:
        """Return both cameras side by side, (H, 2 W, 3) uint8."""
        return np.concatenate([self._frame[name] for name in _CAMERAS], axis=1)

    def close(self) -> None:
        """Free the renderers."""
        for scene in self._scenes.values():
            scene.close()

    def _observe(self) -> dict[str, Any]:
        seen = self.scene.observe()
        self._frame = {name: seen[f"observation.images.{name}"] for name in _CAMERAS}
        return {"agent_pos": seen["observation.state"], "pixels": dict(self._frame)}

    def _measure(self) -> float:
        """How far the episode is, 0 to just below 1."""
        data = self.scene.data
        gripper, cube = data.body("gripper"), data.body("cube").xpos
        between_pads = gripper.xpos + gripper.xmat.reshape(3, 3) @ _BETWEEN_PADS_M
        near = np.exp(-np.linalg.norm(between_pads - cube) / _REACH_M)
        lifted = np.clip((cube[2] - CUBE_HALF_SIZE_M) / LIFT_HEIGHT_M, 0, 1)
        return float(min(0.5 * near + 0.5 * lifted, 0.99))


@EnvConfig.register_subclass("so101_pick")
@dataclass
class SO101PickConfig(EnvConfig):  # type: ignore[misc]
    """`--env.type=so101_pick`: which scenes, separated by commas, and how large the images."""

    task: str | None = "pick"
    fps: int = FPS
    variants: str = "site-a,site-b"
    image_size_px: int = 128
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := unknown_variant(self.variant_names):
            raise ConfigError(f"variants: {wrong}")
        edge = self.image_size_px
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (6,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (6,)),
            **{f"pixels/{name}": PolicyFeature(FeatureType.VISUAL, (edge, edge, 3)) for name in _CAMERAS},
        }
        self.features_map = {
            "action": "action",
            "agent_pos": "observation.state",
            **{f"pixels/{name}": f"observation.images.{name}" for name in _CAMERAS},
        }

    @property
    def variant_names(self) -> tuple[str, ...]:
        """Return the scene variants in order."""
        return tuple(name.strip() for name in self.variants.split(","))

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Return what `SO101PickEnv` is built with."""
        return {"variants": self.variant_names, "image_size_px": self.image_size_px}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Return `{"so101_pick": {0: n_envs environments}}`, each in a process of its own if asked."""
        make = [partial(SO101PickEnv, **self.gym_kwargs)] * n_envs
        mode = AutoresetMode.SAME_STEP
        if use_async_envs and n_envs > 1:  # spawned: neither torch nor OpenGL survives a fork
            env: VectorEnv = AsyncVectorEnv(make, context="spawn", autoreset_mode=mode)
        else:
            env = SyncVectorEnv(make, autoreset_mode=mode)
        return {self.type: {0: env}}
