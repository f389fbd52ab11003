"""Success in closed loop, with intervals: expert, untrained, each site alone, centralised and federated.

    python -m tests.benchmarks.closed_loop [--run outputs/NAME]

Records the two sites of `make arm` (once, in `data/arm`), trains what is not in `outputs/closed_loop` yet
with `configs/arm.toml`, and lets every policy drive the same episodes, half of them at either site. Every
learner takes the same number of optimizer steps in a row: a site alone, or the pooled data, as many as each
site does in the federation; the pooled data with twice the batch, so with as many frames as both sites.
With `--run` the policy of a real federated run (`make arm`) is driven as well.
Writes `results.json` beside this file.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from federation.config import RunConfig, load_run_config
from server.evaluation.intervals import sign_test
from server.simulation.recording import SampleParameters, ensure_sample_data
from tests.benchmarks.closed_loop.drive import (
    Controller,
    blind,
    drive,
    expert,
    open_scenes,
    policy_controller,
)
from tests.benchmarks.closed_loop.train import train

HERE = Path(__file__).parent
SITES = ("site-a", "site-b")
SCENES = ("left", "right")
UNTRAINED = "untrained"
LEARNERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "federated, in process": (("site-a",), ("site-b",)),
    "site-a alone": (("site-a",),),
    "site-b alone": (("site-b",),),
    "centralised": (SITES,),
    UNTRAINED: (SITES,),
}
FIRST_SEED = 2_000_000_000  # beyond the seeds of `server.evaluation.closed_loop`


def trained(name: str, config: RunConfig, data: Path, work: Path) -> Path:
    """The policy folder of an arm, trained first if it is not under `work` yet."""
    folder, learners = work / name, LEARNERS[name]
    if not (folder / "config.json").exists():
        started = time.monotonic()
        losses = train(config, learners, data, work / ".scratch", folder, untrained=name == UNTRAINED)
        about = {"training_loss": losses, "seconds": time.monotonic() - started}
        (folder / "training.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    """Record, then train and drive one arm after another; print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="Success in closed loop.")
    parser.add_argument("--episodes", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--actions", type=int, default=50, help="taken of each chunk (%(default)s)")
    parser.add_argument("--config", type=Path, default=Path("configs/arm.toml"), help="(%(default)s)")
    parser.add_argument("--run", type=Path, help="folder of a federated run")
    parser.add_argument("--work", type=Path, default=Path("outputs/closed_loop"), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="(%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = Path("data/arm")
    datasets = {**{s: (scene,) for s, scene in zip(SITES, SCENES, strict=True)}, "holdout": SCENES}
    ensure_sample_data(data, SampleParameters(episodes=100, eval_episodes=8), 1, datasets)
    config = load_run_config(arguments.config)
    scenes = open_scenes(SCENES)
    results: dict[str, Any] = {}

    def add(name: str, controller: Controller) -> None:
        results[name] = drive(controller, scenes, arguments.episodes, FIRST_SEED)
        print(_line(name, results[name]), flush=True)
        found = {
            "config": str(arguments.config),
            "episodes": arguments.episodes,
            "first_seed": FIRST_SEED,
            "actions_of_each_chunk": arguments.actions,
            "results": results,
            "p_paired": _paired(results),
        }
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    add("expert", expert)
    add("expert that does not look", blind)
    for name in LEARNERS:
        folder = trained(name, config, data, arguments.work)
        add(name, policy_controller(folder, arguments.actions))
    if arguments.run:
        add("federated, make arm", policy_controller(arguments.run / "pretrained_model", arguments.actions))


def _paired(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """McNemar's exact test of the federated policies against all others, on the same episodes."""
    return {
        f"{name} against {other}": sign_test(
            [a - b for a, b in zip(results[name]["successes"], results[other]["successes"], strict=True)]
        )
        for name in results
        if name.startswith("federated")
        for other in results
        if other != name
    }


def _line(name: str, result: dict[str, Any]) -> str:
    low, high = result["interval"]
    by_site = " | ".join(f"{rate:.0%}" for rate in result["by_site"].values())
    return f"| {name} | {result['success_rate']:.0%} ({low:.0%} to {high:.0%}) | {by_site} |"


if __name__ == "__main__":
    main()
