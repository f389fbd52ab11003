"""Does a site's projected gain tell who harms a federation? One site of five has its actions ten frames late.

    python -m tests.benchmarks.contributions [--seeds 0,1,2] [--rounds 24] [--out FILE]

The projected gain of an update u is -<g, u>, with g the gradient of the held-out policy loss at the weights
that the round began with: by how much the loss would fall, to first order, if this update alone were taken.
Five sites of different scenes train the demo's policy in process, 20 steps a round; with each seed another
site is late. Reported is the mean projected gain of each site over either half of the rounds.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from client.training import TrainingResult
from federation.config import load_run_config
from federation.data.description import describe_dataset
from federation.data.loading import open_dataset
from federation.data.normalisation import merge_statistics
from federation.policy.build import (
    Processors,
    build_policy,
    build_processors,
    load_trainable,
    trainable_parameters,
)
from federation.policy.held_out import Recorded, held_out_batches
from server.simulation.recording import SampleParameters, ensure_sample_data
from tests.benchmarks.closed_loop.train import train
from tests.benchmarks.in_process import as_in_a_run

SCENES = {"site-a": "site-a", "site-b": "site-b", "site-c": "site-c", "site-d": "site-d", "site-e": "left"}
_LATE = ("site-b", "site-d", "site-a")  # by seed
_DELAY_FRAMES, _FRAME_STRIDE, _BATCH_SIZE = 10, 20, 16
_DATA = Path("data/five")


def delay_actions(recorded: Path, copy: Path) -> None:
    """Copy a dataset with each action `_DELAY_FRAMES` late; an episode begins with its first, repeated."""
    shutil.copytree(recorded, copy)
    for file in (copy / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        episodes = np.array(table["episode_index"])
        late = np.maximum(np.arange(len(episodes)) - _DELAY_FRAMES, np.searchsorted(episodes, episodes))
        column = table.schema.get_field_index("action")
        actions = table["action"].combine_chunks().take(pa.array(late))
        pq.write_table(table.set_column(column, table.schema.field(column), actions), file)


def run_seed(seed: int, late: str, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Federate the five sites, `late` with delayed actions; return the projected gains of each."""
    torch.set_num_threads(1)
    for name in (*SCENES, "holdout"):
        if name == late:
            delay_actions(_DATA / name, folder / name)
        else:
            (folder / name).symlink_to((_DATA / name).absolute())
    changes = {"run.seed": seed, "run.num_rounds": rounds, "training.local_steps": 20}
    config = load_run_config(Path("configs/demo.toml"), changes)
    policy = build_policy(config.policy, seed=seed, device=torch.device("cpu"), cache=folder / "scratch")
    statistics = merge_statistics([describe_dataset(folder / site).statistics for site in SCENES])
    processors, held_out = (
        build_processors(policy, statistics),
        open_dataset(folder / "holdout", policy.config),
    )
    step = as_in_a_run(config)
    gains: list[list[float]] = []

    def aggregate(weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> None:
        load_trainable(policy, weights)
        gradient = _gradient(policy, processors, held_out)
        gains.append([_projected_gain(gradient, result.update) for result in results.values()])
        step(weights, results)

    learners = [(site,) for site in SCENES]
    train(config, learners, folder, folder / "scratch", folder / "policy", aggregate)
    return dict(zip(SCENES, np.transpose(gains).tolist(), strict=True))


def _gradient(policy: SmolVLAPolicy, processors: Processors, held_out: Recorded) -> dict[str, Tensor]:
    """Return the gradient of the mean held-out policy loss."""
    policy.eval()
    policy.zero_grad()
    frames = range(0, len(held_out), _FRAME_STRIDE)  # type: ignore[arg-type]
    for batch, noise, time_ in held_out_batches(policy, held_out, "holdout", frames, _BATCH_SIZE):
        loss, _ = policy.forward(processors[0](dict(batch)), noise, time_, reduction="none")
        (loss.sum() / len(frames)).backward()
    return {name: p.grad for name, p in trainable_parameters(policy).items() if p.grad is not None}


def _projected_gain(gradient: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> float:
    return -sum(float((slope * update[name]).sum()) for name, slope in gradient.items())


def main() -> None:
    """Record the five sites, run each seed, print the means, write the JSON."""
    parser = argparse.ArgumentParser(description="Projected gain of each site.")
    parser.add_argument("--seeds", default="0,1,2", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=24, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/contributions.json"))
    arguments = parser.parse_args()
    scenes = {site: (scene,) for site, scene in SCENES.items()} | {"holdout": tuple(SCENES.values())}
    ensure_sample_data(_DATA, SampleParameters(episodes=20, eval_episodes=10), 2, scenes)
    half, seeds = arguments.rounds // 2, {}
    for seed in map(int, arguments.seeds.split(",")):
        late = _LATE[seed % len(_LATE)]
        with tempfile.TemporaryDirectory() as folder:
            gains = run_seed(seed, late, arguments.rounds, Path(folder))
        means = {
            name: {site: float(np.mean(each[part])) for site, each in gains.items()}
            for name, part in (("first half", slice(half)), ("second half", slice(half, None)))
        }
        seeds[str(seed)] = {"late": late, **means}
        print(f"seed {seed}, {late} is late: {json.dumps(means)}", flush=True)
    result = {"date": time.strftime("%Y-%m-%d"), "rounds": arguments.rounds, "seeds": seeds}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
