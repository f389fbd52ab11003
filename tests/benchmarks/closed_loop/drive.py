"""Drive the simulated arm and draw only what is looked at.

`server.evaluation.closed_loop` draws every step, as `lerobot-eval` must; a policy looks once for each chunk
of actions, so here an episode costs a tenth. Success, seeds and time limit are those of
`server.simulation.gym_so101`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch

from federation.files import write_json
from federation.policy.folder import load_policy_folder
from server.evaluation.intervals import wilson_interval
from server.simulation.expert import plan_pick
from server.simulation.gym_so101 import MAX_STEPS
from server.simulation.scenes import VARIANTS
from server.simulation.so101 import CUBE_HALF_SIZE_M, SO101Scene

__all__ = ["Controller", "blind", "drive", "drive_once", "expert", "open_scenes", "policy_controller"]

Controller = Callable[[SO101Scene, int], np.ndarray]
"""The next joint targets (N, 6), given a scene and the seed of its episode."""


def policy_controller(folder: Path, actions: int) -> Controller:
    """The policy in `folder`, looking again after each `actions` actions."""
    policy, (preprocessor, postprocessor) = load_policy_folder(folder, torch.device("cpu"))

    @torch.no_grad()
    def next_targets(scene: SO101Scene, seed: int) -> np.ndarray:
        seen = scene.observe()
        batch: dict[str, Any] = {"observation.state": torch.from_numpy(seen.pop("observation.state"))}
        for key, image in seen.items():
            batch[key] = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        chunk = policy.predict_action_chunk(preprocessor({**batch, "task": scene.variant.task}))
        targets: np.ndarray = postprocessor(chunk)[0, :actions].numpy()
        return targets

    return next_targets


def expert(scene: SO101Scene, seed: int) -> np.ndarray:
    """The scripted pick, planned from where the cube lies, in one go."""
    return _to_the_end(plan_pick(scene, seed))


def blind(scene: SO101Scene, seed: int) -> np.ndarray:
    """The scripted pick for the middle of the patch that the scene's cubes lie in, wherever this one does.

    What a policy reaches that has learnt where a site's cubes lie, and does not look.
    """
    radius = np.mean(scene.variant.cube_radius_range_m)
    bearing = np.radians(np.mean(scene.variant.cube_bearing_range_deg))
    cube, state = scene.data.joint("cube"), scene.data.qpos.copy()
    cube.qpos = [radius * np.cos(bearing), radius * np.sin(bearing), CUBE_HALF_SIZE_M, 1, 0, 0, 0]
    mujoco.mj_forward(scene.model, scene.data)
    plan = plan_pick(scene, seed)
    scene.data.qpos[:] = state
    mujoco.mj_forward(scene.model, scene.data)
    return _to_the_end(plan)


def _to_the_end(plan: np.ndarray) -> np.ndarray:
    return np.concatenate([plan, np.repeat(plan[-1:], MAX_STEPS, axis=0)])[:MAX_STEPS]


def drive(
    controller: Controller, scenes: Sequence[SO101Scene], episodes: int, first_seed: int
) -> dict[str, Any]:
    """Success of `controller` in `episodes` episodes (a multiple of the scenes), of `scenes` in turn."""
    torch.manual_seed(first_seed)  # the noise that actions are denoised from
    successes = []
    for seed in range(first_seed, first_seed + episodes):
        scene = scenes[seed % len(scenes)]
        scene.reset(seed)
        steps = 0
        while steps < MAX_STEPS and not scene.success():
            for targets in controller(scene, seed):
                scene.step(targets)
                steps += 1
                if scene.success() or steps == MAX_STEPS:
                    break
        successes.append(int(scene.success()))
    order = [(first_seed + number) % len(scenes) for number in range(len(scenes))]
    return {
        "success_rate": sum(successes) / episodes,
        "interval": wilson_interval(sum(successes), episodes),
        "by_site": {
            scenes[order[number]].variant.name: float(np.mean(successes[number :: len(scenes)]))
            for number in range(len(scenes))
        },
        "successes": successes,
    }


def drive_once(
    file: Path, controller: Callable[[], Controller], scenes: Sequence[str], episodes: int, first_seed: int
) -> dict[str, Any]:
    """Return what `drive` found in the scenes of these names; driven once, and kept in `file`."""
    torch.set_num_threads(1)
    if not file.exists():
        found = drive(controller(), open_scenes(scenes), episodes, first_seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return kept


def open_scenes(names: Sequence[str]) -> list[SO101Scene]:
    """The scenes of `names`, with images as large as the recorded ones."""
    return [SO101Scene(VARIANTS[name], image_size_px=128) for name in names]
