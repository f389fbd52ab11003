"""Adapters beside the whole policy: held-out loss, success in closed loop and bytes of a round.

    python -m tests.benchmarks.adapters [--seeds 3] [--episodes 100]

Pretrains `small` on one scene, once for each seed, then adapts it to two other scenes with every arm of
`arms.py`, federated in one process by two sites; two arms run at a time. Each arm and seed is a file under
`--work`, and the command goes on where it stopped. Writes `results.json` and `table.md` beside this file.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from server.simulation.recording import SampleParameters, ensure_sample_data
from tests.benchmarks.adapters.arms import ARMS
from tests.benchmarks.adapters.table import make_table
from tests.benchmarks.adapters.train import DATASETS, run_arm, train_base

HERE = Path(__file__).parent


def main() -> None:
    """Record, then pretrain, adapt and drive one arm and seed after the other; write the table."""
    parser = argparse.ArgumentParser(description="Adapters beside the whole policy.")
    parser.add_argument("--seeds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="in closed loop (%(default)s)")
    parser.add_argument("--demonstrations", type=int, default=100, help="of each site (%(default)s)")
    parser.add_argument("--pretrain-rounds", type=int, default=160, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=80, help="(%(default)s)")
    parser.add_argument("--local-steps", type=int, default=25, help="of a round (%(default)s)")
    parser.add_argument("--adapter-rate", type=float, default=5e-3, help="learning rate (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data/adapters"), help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("outputs/adapters"), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="(%(default)s)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    parameters = SampleParameters(episodes=options.demonstrations, eval_episodes=8)
    ensure_sample_data(options.data, parameters, 2, DATASETS)
    seeds = range(options.seeds)
    settings = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    settings["date"] = time.strftime("%Y-%m-%d")
    found = []
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        bases, jobs = [pool.submit(train_base, seed, options) for seed in seeds], []
        for seed, base in zip(seeds, bases, strict=True):
            base.result()
            jobs += [pool.submit(run_arm, arm, seed, options) for arm in ARMS]
        for job in jobs:
            found.append(job.result())
            results = json.dumps({"settings": settings, "results": found}, indent=1)
            (options.out / "results.json").write_text(results + "\n", encoding="utf-8")
            (options.out / "table.md").write_text(make_table(found), encoding="utf-8")
    print(make_table(found))


if __name__ == "__main__":
    main()
