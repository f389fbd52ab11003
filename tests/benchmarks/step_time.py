"""The cost of FedProx: our training step against LeRobot's own, on the same batches in the same process.

    python -m tests.benchmarks.step_time [--size tiny] [--batch-sizes 8] [--pairs 100] [--out FILE]
    python -m tests.benchmarks.step_time --device cuda --size smolvla --batch-sizes 16 64 --workers 8

Steps alternate, each kind with a policy and an AdamW of its own, and what is compared is the medians, since a
shared machine only ever adds time. LeRobot's step is `lerobot.scripts.lerobot_train.update_policy`, on CUDA
under Accelerate's bf16 as ours is under `federation.policy.build.autocast`. Beside it: the loss and the
gradient under that autocast against fp32's, the peak of CUDA memory with one policy there, and a round of the
whole training loop with its data loading. A part that fails is written as its error, and the others go on.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from client.training import (
    TrainingComponents,
    run_training_loop,
    run_training_step,
    setup_training_components,
)
from federation.config import RunConfig, parse_run_config
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.data.sample_cache import open_samples
from federation.policy.build import autocast, build_policy, trainable_parameters

_WARM_UP = 3


@dataclass(frozen=True)
class Bench:
    """What the parts work on; each builds policy and optimizer anew."""

    config: RunConfig
    data: Path
    device: torch.device
    folder: Path
    pairs: int

    def policy(self) -> SmolVLAPolicy:
        """The policy with its first weights."""
        return build_policy(self.config.policy, seed=0, device=self.device, cache=self.folder)

    def components(self) -> TrainingComponents:
        """Policy, data loader and optimizer as a site sets them up for a round."""
        policy = self.policy()
        return setup_training_components(
            self.config,
            policy,
            {name: p.detach().cpu().clone() for name, p in trainable_parameters(policy).items()},
            merge_statistics([describe_dataset(self.data).statistics]),
            open_samples(self.data, policy.config, self.folder / "samples", 2 * 10**9),
            seed=0,
        )

    def synchronize(self) -> None:
        """Wait for what CUDA still computes: its calls return before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def losses(bench: Bench) -> dict[str, Any]:
    """Loss and gradient of the first batch in fp32 and as the training step computes them."""
    components = bench.components()
    batch = components.preprocessor(next(components.batches))
    found: dict[str, float] = {}
    gradients = []
    for name, policy, precision in (
        ("fp32", bench.policy(), contextlib.nullcontext()),
        ("autocast", components.policy, autocast(bench.device)),
    ):
        torch.manual_seed(0)  # the same noise and time for both
        with precision:
            loss, _ = policy.forward(dict(batch))
        loss.backward()
        found[name] = loss.item()
        grads = [p.grad for p in trainable_parameters(policy).values()]
        gradients.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    if not all(map(math.isfinite, found.values())):
        raise ValueError(f"losses are not finite: {found}")
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0).item()
    return {**found, "autocast_over_fp32": found["autocast"] / found["fp32"], "gradient_cosine": cosine}


def peak_memory(bench: Bench) -> dict[str, Any]:
    """The most CUDA memory that tensors held over a few steps, and that torch reserved for them."""
    if bench.device.type != "cuda":
        return {}
    components = bench.components()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_WARM_UP):
        run_training_step(components, components.preprocessor(next(components.batches)))
    bench.synchronize()
    return {
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def steps(bench: Bench) -> dict[str, Any]:
    """Median seconds of a step of either kind."""
    training = bench.config.training
    components, theirs = bench.components(), bench.policy()
    optimizer = torch.optim.AdamW(
        trainable_parameters(theirs).values(),
        lr=training.learning_rate,
        betas=theirs.config.optimizer_betas,
        eps=theirs.config.optimizer_eps,
        weight_decay=training.weight_decay,
    )
    kept = ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")  # what update_policy sets
    meters = {key: AverageMeter(key) for key in kept}
    tracker = MetricsTracker(training.batch_size, 1000, 1, meters, initial_step=0)
    on_cpu = bench.device.type == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else "bf16")
    seconds: dict[str, list[float]] = {"fedprox": [], "lerobot": []}
    for pair in range(bench.pairs + _WARM_UP):
        batch = components.preprocessor(next(components.batches))
        kinds: dict[str, Callable[[], object]] = {
            "fedprox": lambda batch=batch: run_training_step(components, dict(batch)),
            "lerobot": lambda batch=batch: update_policy(
                tracker, theirs, dict(batch), optimizer, training.grad_clip_norm, accelerator
            ),
        }
        for name in sorted(kinds, reverse=bool(pair % 2)):
            torch.manual_seed(pair)  # the same noise and time for both
            bench.synchronize()
            started = time.perf_counter()
            kinds[name]()
            bench.synchronize()
            if pair >= _WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "pairs": bench.pairs,
        "median_seconds": medians,
        "samples_per_second": {name: training.batch_size / median for name, median in medians.items()},
        "fedprox_over_lerobot": medians["fedprox"] / medians["lerobot"],
    }


def whole_round(bench: Bench) -> dict[str, Any]:
    """The training loop as a site runs it: with its data loader, learning rates and the update at the end."""
    result = run_training_loop(bench.components(), 1, 1, lambda step, metrics: None)
    if not all(values.isfinite().all() for values in result.update.values()):
        raise ValueError("the update is not finite")
    return {
        "steps": bench.config.training.local_steps,
        "seconds": result.train_seconds,
        "of_that_waiting_for_data": result.data_seconds,
        "samples_per_second": result.num_examples / result.train_seconds,
        "policy_loss": result.policy_loss,
        "proximal_loss": result.proximal_loss,
        "update_norm": result.update_norm,
    }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "losses": losses,
    "peak_memory": peak_memory,
    "steps": steps,
    "round": whole_round,
}


def measure(bench: Bench) -> dict[str, Any]:
    """Every part's figures, or its error, printed as it ends."""
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        try:
            found[name] = part(bench)
        except Exception as error:  # the device's time is short: one part's fault costs no other's figures
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, json.dumps(found[name]), flush=True)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def main() -> int:
    """Measure, print, write the JSON after each batch size; returns 1 if a part failed."""
    parser = argparse.ArgumentParser(description="FedProx's step against LeRobot's.")
    parser.add_argument("--data", type=Path, default=Path("data/sample/site-a"))
    parser.add_argument("--size", choices=("tiny", "smolvla"), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--round-steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0, help="data loading processes")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/step_time.json"))
    options = parser.parse_args()
    failed = False
    for batch_size in options.batch_sizes:
        config = parse_run_config(
            {
                "policy.size": options.size,
                "training.proximal_mu": 0.001,
                "training.batch_size": batch_size,
                "training.local_steps": options.round_steps,
                "training.num_workers": options.workers,
                "training.warmup_steps": 0,
            },
            "benchmark",
        )
        print(f"{options.size}, batch size {batch_size}, {options.device}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(
                Bench(config, options.data, torch.device(options.device), Path(folder), options.pairs)
            )
        failed |= any("error" in figures for figures in found.values())
        results = json.loads(options.out.read_text()) if options.out.exists() else {}
        results[f"{options.size}, batch size {batch_size}"] = {**_setting(options), **found}
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(failed)


def _setting(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "command": " ".join(["python -m tests.benchmarks.step_time", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    sys.exit(main())
