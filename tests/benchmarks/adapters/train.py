"""Train and measure one arm with one seed; processes of a pool import it."""

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from federation.config import RunConfig, load_run_config
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.files import write_json
from federation.policy.build import build_policy, trainable_parameters
from federation.policy.folder import load_policy_folder
from federation.wire.codec import encoded_bytes
from server.evaluation.held_out import Evaluator
from tests.benchmarks.adapters.arms import Arm
from tests.benchmarks.adapters.averages import measure_error, refactor
from tests.benchmarks.closed_loop.drive import drive, open_scenes, policy_controller
from tests.benchmarks.closed_loop.train import FULL_RATE, at_rate, train
from tests.benchmarks.in_process import as_in_a_run

__all__ = ["DATASETS", "run_arm", "train_base"]

PRETRAIN = "pretrain"
DATASETS = {PRETRAIN: ("site-c",), "site-a": ("left",), "site-b": ("right",), "holdout": ("left", "right")}
SITES, SCENES = ("site-a", "site-b"), ("left", "right")
FIRST_SEED = 3_000_000_000  # beyond the seeds of the other benchmarks
_ACTIONS = 50  # taken of each chunk


def run_arm(arm: Arm, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what came of an arm with a seed, from its file if it is there."""
    name = f"{arm.name.replace(', ', '-').replace(' ', '-').replace('=', '')}-seed{seed}"
    file = options.work / f"{name}.json"
    if not file.exists():
        started = time.monotonic()
        base = train_base(seed, options)
        config = _config(arm, seed, base, options)
        folder, errors = options.work / name, []
        aggregate = refactor if arm.refactored else as_in_a_run(config)
        learners = tuple((site,) for site in SITES)
        scratch = options.work / f".scratch-{os.getpid()}"
        losses = train(
            config,
            learners,
            options.data,
            scratch,
            folder,
            measure_error(aggregate, errors.append),
        )
        result = {
            "arm": arm.name,
            "seed": seed,
            "training_loss": losses,
            "product_error": errors,
            **_sizes(config, scratch),
            **_held_out(folder, config, options.data),
            **drive(policy_controller(folder, _ACTIONS), open_scenes(SCENES), options.episodes, FIRST_SEED),
            "seconds": time.monotonic() - started,
        }
        write_json(file, result)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    print(f"{name}: loss {found['policy_loss']:.4f}, success {found['success_rate']:.0%}", flush=True)
    return found


def train_base(seed: int, options: argparse.Namespace) -> Path:
    """Return the policy that all arms of a seed adapt, trained first if it is not there yet."""
    folder = options.work / f"base-seed{seed}"
    if not (folder / "config.json").exists():
        config = _as_arm(seed, options.pretrain_rounds, options, FULL_RATE)
        scratch = options.work / f".scratch-{os.getpid()}"
        train(config, ((PRETRAIN,),), options.data, scratch, folder)
    return folder


def _config(arm: Arm, seed: int, base: Path, options: argparse.Namespace) -> RunConfig:
    rate = at_rate(options.adapter_rate) if arm.is_adapter else FULL_RATE
    config = _as_arm(seed, options.rounds, options, rate)
    policy = replace(config.policy, size="pretrained", pretrained=str(base), **arm.policy)
    return replace(config, policy=policy, aggregation=replace(config.aggregation, strategy="fedprox"))


def _as_arm(seed: int, rounds: int, options: argparse.Namespace, rate: Mapping[str, Any]) -> RunConfig:
    config = load_run_config(Path("configs/arm.toml"), rate)
    training = replace(
        config.training,
        local_steps=options.local_steps,
        warmup_steps=min(config.training.warmup_steps, rounds * options.local_steps // 10),
    )
    return replace(config, run=replace(config.run, seed=seed, num_rounds=rounds), training=training)


def _sizes(config: RunConfig, scratch: Path) -> dict[str, int]:
    """Return how many values an arm trains, and the bytes of a round from and to a site."""
    policy = build_policy(config.policy, seed=0, device=torch.device("cpu"), cache=scratch)
    shapes = [parameter.shape for parameter in trainable_parameters(policy).values()]
    return {
        "trained": sum(shape.numel() for shape in shapes),
        "bytes_up": sum(encoded_bytes(shape, config.wire.upload) for shape in shapes),
        "bytes_down": sum(encoded_bytes(shape, config.wire.download) for shape in shapes),
    }


def _held_out(folder: Path, config: RunConfig, data: Path) -> dict[str, float]:
    policy, _ = load_policy_folder(folder, torch.device("cpu"))
    statistics = merge_statistics([describe_dataset(data / site).statistics for site in SITES])
    evaluator = Evaluator(policy, statistics, {"holdout": data / "holdout"}, config.evaluation)
    figures = evaluator.evaluate(
        {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
    )
    return {name: figures[name] for name in ("policy_loss", "action_mse")}
