"""The policies that are compared, and how each is trained and driven once; processes of a pool import it."""

import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from federation.config import load_run_config
from federation.files import write_json
from server.simulation.recording import SampleParameters, ensure_sample_data
from tests.benchmarks.closed_loop.drive import (
    Controller,
    blind,
    drive_once,
    expert,
    policy_controller,
)
from tests.benchmarks.closed_loop.train import train
from tests.benchmarks.pretraining import start_from

__all__ = [
    "ARMS",
    "CANDIDATES",
    "CENTRALISED",
    "EXPERTS",
    "SITES",
    "Arm",
    "drive_arm",
    "record",
    "record_three",
    "train_once",
]

SITES = {"site-a": "left", "site-b": "right", "site-c": "middle", "site-d": "outer"}
"""Site -> the scene that its demonstrations come from."""
EXPERTS: dict[str, Controller] = {"expert": expert, "expert that does not look": blind}
CENTRALISED = "centralised"
_FIRST_SEED = 2_000_000_000  # beyond the seeds of `server.evaluation.closed_loop`
_ACTIONS = 50  # taken of each chunk
_WARMUP_STEPS = 60


@dataclass(frozen=True)
class Arm:
    """One way of training; `settings` are of the configuration."""

    name: str
    learners: tuple[tuple[str, ...], ...] = tuple((site,) for site in SITES)
    settings: Mapping[str, Any] = field(default_factory=dict)
    codec: str = "fp32"  # of the updates


def _at_rate(rate: float) -> dict[str, Any]:
    return {"training.learning_rate": rate, "training.min_learning_rate": rate / 20}


def _with_momentum(momentum: float, rate: float) -> dict[str, Any]:
    return {
        "aggregation.strategy": "fedavgm",
        "aggregation.server_momentum": momentum,
        **_at_rate(rate),
    }


_CHOSEN = _with_momentum(0.8, 5e-4)
ARMS = (
    Arm(CENTRALISED, (tuple(SITES),)),
    Arm("federated", settings=_CHOSEN),
    *(Arm(f"{site} alone", ((site,),)) for site in SITES),
    Arm("federated, int4", settings=_CHOSEN, codec="int4"),
    Arm("federated, plain FedProx", settings={"aggregation.strategy": "fedprox"}),
)
CANDIDATES = (
    Arm("federated, momentum 0.9", settings=_with_momentum(0.9, 2.5e-4)),
    Arm("centralised, rate 0.002", (tuple(SITES),), _at_rate(2e-3)),
)
"""What was chosen against, on another seed than those reported."""


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


def record(data: Path) -> None:
    """Record the sites' demonstrations, a hundred each and fifty of site-d, unless they are there.

    `data` becomes a folder of links, for two of the sites have the recordings of `make arm`.
    """
    arm, half = data.with_name("arm"), data.with_name("arm-half")
    few = SampleParameters(episodes=50, eval_episodes=16)
    middle = record_three(arm)
    ensure_sample_data(half, few, 2, {"half": ("outer",), "holdout": tuple(SITES.values())})
    data.mkdir(exist_ok=True)
    sources = {"site-a": arm / "site-a", "site-b": arm / "site-b", "site-c": middle}
    sources |= {"site-d": half / "half", "holdout": half / "holdout"}
    for name, source in sources.items():
        if not (data / name).exists():
            (data / name).symlink_to(Path("..") / source.relative_to(data.parent))


def train_once(arm: Arm, seed: int, rounds: int, base: Path, data: Path, work: Path) -> Path:
    """Return the folder of what `arm` makes of `base`, trained first if it is not in `work` yet."""
    torch.set_num_threads(1)
    folder = work / f"{rounds}-rounds" / f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}"
    if (folder / "config.json").exists():
        return folder
    settings = {"run.seed": seed, "run.num_rounds": rounds, "training.warmup_steps": _WARMUP_STEPS}
    config = load_run_config(Path("configs/arm.toml"), settings | start_from(base) | dict(arm.settings))
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = work / f".scratch-{multiprocessing.current_process().name}"  # its frames are decoded once
    losses = train(config, arm.learners, data, scratch, folder, codec=arm.codec)
    write_json(folder / "training.json", {"training_loss": losses, "seconds": time.monotonic() - started})
    return folder


def drive_arm(name: str, folder: Path, episodes: int) -> dict[str, Any]:
    """Return what an expert of that name, or else the policy in `folder`, reaches; driven once, and kept."""

    def controller() -> Controller:
        return EXPERTS.get(name) or policy_controller(folder, _ACTIONS)

    scenes = tuple(SITES.values())
    return drive_once(folder / f"driven-{episodes}.json", controller, scenes, episodes, _FIRST_SEED)
