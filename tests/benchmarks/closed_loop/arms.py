"""The policies that are compared, and how each is trained and driven once; processes of a pool import it."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from federation.config import RunConfig, load_run_config
from federation.files import write_json
from server.simulation.recording import SampleParameters, ensure_sample_data
from tests.benchmarks.closed_loop.drive import (
    Controller,
    blind,
    drive_once,
    expert,
    policy_controller,
)
from tests.benchmarks.closed_loop.train import FULL_RATE, at_rate, train

__all__ = [
    "CENTRALISED",
    "COMPARISONS",
    "EXPERTS",
    "FEDERATED",
    "Arm",
    "Comparison",
    "configure",
    "drive_arm",
    "record_three",
    "train_once",
]

EXPERTS: dict[str, Controller] = {"expert": expert, "expert that does not look": blind}
CENTRALISED = "centralised"
FEDERATED = "federated"
_FIRST_SEED = 2_000_000_000  # beyond the seeds of `server.evaluation.closed_loop`
_ACTIONS = 50  # taken of each chunk


@dataclass(frozen=True)
class Arm:
    """One way of training; `settings` are of the configuration."""

    name: str
    learners: tuple[tuple[str, ...], ...]  # the sites that each pools
    settings: Mapping[str, Any] = field(default_factory=dict)
    codec: str = "fp32"  # of the updates
    seeds: int = 3  # at most so many of those asked for


def _with_momentum(momentum: float, rate: float) -> dict[str, Any]:
    return {"aggregation.server_momentum": momentum, **at_rate(rate)}


@dataclass(frozen=True)
class Comparison:
    """What is compared on the same sites; `settings` are what all arms change of `configs/arm.toml`."""

    sites: Mapping[str, str]  # -> the scene that its demonstrations come from
    data: Path
    record: Callable[[Path], object]
    arms: tuple[Arm, ...]
    candidates: tuple[Arm, ...]  # what was chosen against, on another seed than those reported
    rounds: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    fine_tuned: bool = False  # of a base; else from scratch


def _make_comparisons() -> dict[str, Comparison]:
    four = {"site-a": "left", "site-b": "right", "site-c": "middle", "site-d": "outer"}
    two = {"site-a": "left", "site-b": "right"}
    each, pooled = tuple((site,) for site in four), (tuple(four),)
    return {
        "four-sites": Comparison(
            four,
            Path("data/four"),
            _record_four,
            (
                Arm(CENTRALISED, pooled, FULL_RATE, seeds=5),
                Arm(FEDERATED, each, seeds=5),
                *(Arm(f"{site} alone", ((site,),), FULL_RATE) for site in four),
                Arm(f"{FEDERATED}, int8", each, codec="int8"),
                Arm(f"{FEDERATED}, int4", each, codec="int4"),
                Arm(f"{FEDERATED}, plain FedProx", each, {"aggregation.strategy": "fedprox"} | FULL_RATE),
            ),
            (
                Arm(f"{FEDERATED}, momentum 0.9", each, _with_momentum(0.9, 2.5e-4)),
                Arm("centralised, rate 0.002", pooled, at_rate(2e-3)),
            ),
            rounds=48,
            settings={"training.warmup_steps": 60},
            fine_tuned=True,
        ),
        "two-sites": Comparison(
            two,
            Path("data/arm"),
            record_three,
            (
                Arm(CENTRALISED, (tuple(two),), FULL_RATE),
                Arm(FEDERATED, each[:2]),
                *(Arm(f"{site} alone", ((site,),), FULL_RATE) for site in two),
            ),
            (Arm(f"{FEDERATED}, momentum 0.3", each[:2], _with_momentum(0.3, 1e-3)),),
            rounds=160,
        ),
    }


def record_three(arm: Path) -> Path:
    """Record a hundred demonstrations in `left` and `right`, those of `make arm`, and in `middle`.

    Returns:
        the dataset of `middle`; the others are `site-a` and `site-b` in `arm`.
    """
    parameters, new = SampleParameters(episodes=100, eval_episodes=8), arm.with_name(f"{arm.name}-new")
    scenes = {"site-a": ("left",), "site-b": ("right",), "holdout": ("left", "right")}
    ensure_sample_data(arm, parameters, 2, scenes)
    ensure_sample_data(new, parameters, 2, {"new": ("middle",)})
    return new / "new"


def _record_four(data: Path) -> None:
    """Record the four sites' demonstrations, a hundred each and fifty of site-d, unless they are there.

    `data` becomes a folder of links, for two of the sites have the recordings of `make arm`.
    """
    arm, half = data.with_name("arm"), data.with_name("arm-half")
    few = SampleParameters(episodes=50, eval_episodes=16)
    middle = record_three(arm)
    ensure_sample_data(half, few, 2, {"half": ("outer",), "holdout": ("left", "right", "middle", "outer")})
    data.mkdir(exist_ok=True)
    sources = {"site-a": arm / "site-a", "site-b": arm / "site-b", "site-c": middle}
    sources |= {"site-d": half / "half", "holdout": half / "holdout"}
    for name, source in sources.items():
        if not (data / name).exists():
            (data / name).symlink_to(Path("..") / source.relative_to(data.parent))


COMPARISONS = _make_comparisons()


def configure(arm: Arm, seed: int, settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of `make arm` with `settings`, and with what `arm` changes of them."""
    return load_run_config(Path("configs/arm.toml"), {"run.seed": seed, **settings, **arm.settings})


def train_once(arm: Arm, seed: int, settings: Mapping[str, Any], data: Path, work: Path) -> Path:
    """Return the folder of what `arm` makes of `settings`, trained first if it is not in `work` yet."""
    torch.set_num_threads(1)
    folder = work / f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}"
    if (folder / "config.json").exists():
        return folder
    config = configure(arm, seed, settings)
    started = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    # Of the comparison: each process decodes its frames once.
    scratch = work.parent / f".scratch-{multiprocessing.current_process().name}"
    losses = train(config, arm.learners, data, scratch, folder, codec=arm.codec)
    write_json(folder / "training.json", {"training_loss": losses, "seconds": time.monotonic() - started})
    return folder


def drive_arm(name: str, folder: Path, scenes: Sequence[str], episodes: int) -> dict[str, Any]:
    """Return what an expert of that name, or else the policy in `folder`, reaches; driven once, and kept."""

    def controller() -> Controller:
        return EXPERTS.get(name) or policy_controller(folder, _ACTIONS)

    return drive_once(folder / f"driven-{episodes}.json", controller, scenes, episodes, _FIRST_SEED)
