"""The cost of FedProx: our training step against LeRobot's own, on the same batches in the same process.

    python -m tests.benchmarks.step_time [--size tiny] [--pairs 100] [--out tests/benchmarks/step_time.json]

Steps alternate, each kind with a policy and an AdamW of its own, and what is compared is the medians, since a
shared machine only ever adds time. LeRobot's step is `lerobot.scripts.lerobot_train.update_policy`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from client.training import run_training_step, setup_training_components
from federation.config import parse_run_config
from federation.dataset_description import describe_dataset
from federation.normalisation import merge_statistics
from federation.policy import build_policy, trainable_parameters
from federation.sample_cache import open_samples

_WARM_UP = 3


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="FedProx's step against LeRobot's.")
    parser.add_argument("--data", type=Path, default=Path("data/sample/site-a"))
    parser.add_argument("--size", choices=("tiny", "smolvla"), default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/step_time.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = _measure(options, Path(folder))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = medians["fedprox"] / medians["lerobot"]
    print(
        f"{options.size}: FedProx {medians['fedprox']:.4f} s, LeRobot {medians['lerobot']:.4f} s: {ratio:.3f}"
    )
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results[options.size] = {
        "batch_size": options.batch_size,
        "pairs": options.pairs,
        "median_seconds": medians,
        "fedprox_over_lerobot": ratio,
    }
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    config = parse_run_config(
        {
            "policy.size": options.size,
            "training.proximal_mu": 0.001,
            "training.batch_size": options.batch_size,
            "training.num_workers": 0,
        },
        "benchmark",
    )
    device = torch.device("cpu")
    ours, theirs = (build_policy(config.policy, seed=0, device=device, cache=folder) for _ in range(2))
    components = setup_training_components(
        config,
        ours,
        {name: p.detach().clone() for name, p in trainable_parameters(ours).items()},
        merge_statistics([describe_dataset(options.data).statistics]),
        open_samples(options.data, ours.config, folder / "samples", 2 * 10**9),
        seed=0,
    )
    optimizer = torch.optim.AdamW(
        trainable_parameters(theirs).values(),
        lr=config.training.learning_rate,
        betas=theirs.config.optimizer_betas,
        eps=theirs.config.optimizer_eps,
        weight_decay=config.training.weight_decay,
    )
    meters = {key: AverageMeter(key) for key in ("loss", "grad_norm", "lr", "update_s")}
    tracker = MetricsTracker(options.batch_size, 1000, 1, meters, initial_step=0)
    accelerator = Accelerator(cpu=True)
    seconds: dict[str, list[float]] = {"fedprox": [], "lerobot": []}
    for pair in range(options.pairs + _WARM_UP):
        batch = components.preprocessor(next(components.batches))
        steps: dict[str, Callable[[], object]] = {
            "fedprox": lambda batch=batch: run_training_step(components, dict(batch)),
            "lerobot": lambda batch=batch: update_policy(
                tracker, theirs, dict(batch), optimizer, config.training.grad_clip_norm, accelerator
            ),
        }
        for name in sorted(steps, reverse=bool(pair % 2)):
            torch.manual_seed(pair)  # the same noise and time for both
            started = time.perf_counter()
            steps[name]()
            if pair >= _WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
