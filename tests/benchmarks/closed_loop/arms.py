"""The policies that are compared, and how each is trained and driven once; processes of a pool import it."""

import json
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
    drive,
    expert,
    open_scenes,
    policy_controller,
)
from tests.benchmarks.closed_loop.train import train

__all__ = [
    "ARMS",
    "CANDIDATES",
    "CENTRALISED",
    "EXPERTS",
    "SITES",
    "Arm",
    "drive_once",
    "record",
    "train_once",
]

SITES = {"site-a": "left", "site-b": "right", "site-c": "middle", "site-d": "outer"}
"""Site -> the scene that its demonstrations come from."""
EXPERTS: dict[str, Controller] = {"expert": expert, "expert that does not look": blind}
CENTRALISED = "centralised"
_FIRST_SEED = 2_000_000_000  # beyond the seeds of `server.evaluation.closed_loop`
_ACTIONS = 50  # taken of each chunk


@dataclass(frozen=True)
class Arm:
    """One way of training; `settings` are of the configuration."""

    name: str
    learners: tuple[tuple[str, ...], ...] = tuple((site,) for site in SITES)
    settings: Mapping[str, Any] = field(default_factory=dict)
    codec: str = "fp32"  # of the updates
    untrained: bool = False


def _with_momentum(momentum: float, rate: float, **settings: Any) -> dict[str, Any]:
    return {
        "aggregation.strategy": "fedavgm",
        "aggregation.server_momentum": momentum,
        "training.learning_rate": rate,
        "training.min_learning_rate": rate / 20,
        **settings,
    }


ARMS = (
    Arm("untrained", (tuple(SITES),), untrained=True),
    *(Arm(f"{site} alone", ((site,),)) for site in SITES),
    Arm("FedProx", settings={"aggregation.strategy": "fedprox"}),
    Arm(CENTRALISED, (tuple(SITES),)),
)
CANDIDATES = tuple(
    Arm(f"momentum {momentum}, rate {rate:g}", settings=_with_momentum(momentum, rate))
    for momentum, rate in ((0.3, 1e-3), (0.6, 1e-3), (0.6, 5e-4), (0.8, 5e-4), (0.9, 2.5e-4))
)
"""Of which one is chosen, on other seeds than those reported."""


def record(data: Path) -> None:
    """Record the sites' demonstrations, a hundred each and fifty of site-d, unless they are there.

    `data` becomes a folder of links, for two of the sites have the recordings of `make arm`.
    """
    arm, new, half = (data.with_name(name) for name in ("arm", "arm-new", "arm-half"))
    few = SampleParameters(episodes=50, eval_episodes=16)
    many = SampleParameters(episodes=100, eval_episodes=8)
    ensure_sample_data(
        arm, many, 2, {"site-a": ("left",), "site-b": ("right",), "holdout": ("left", "right")}
    )
    ensure_sample_data(new, many, 2, {"new": ("middle",)})
    ensure_sample_data(half, few, 2, {"half": ("outer",), "holdout": tuple(SITES.values())})
    data.mkdir(exist_ok=True)
    sources = {"site-a": arm / "site-a", "site-b": arm / "site-b", "site-c": new / "new"}
    sources |= {"site-d": half / "half", "holdout": half / "holdout"}
    for name, source in sources.items():
        if not (data / name).exists():
            (data / name).symlink_to(Path("..") / source.relative_to(data.parent))


def train_once(arm: Arm, seed: int, rounds: int, data: Path, work: Path) -> Path:
    """Return the folder of the policy of `arm`, trained first if it is not in `work` yet."""
    torch.set_num_threads(1)
    folder = work / f"{rounds}-rounds" / f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}"
    if (folder / "config.json").exists():
        return folder
    settings = {"run.seed": seed, "run.num_rounds": rounds, **arm.settings}
    config = load_run_config(Path("configs/arm.toml"), settings)
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = work / f".scratch-{multiprocessing.current_process().name}"  # its frames are decoded once
    losses = train(config, arm.learners, data, scratch, folder, codec=arm.codec, untrained=arm.untrained)
    write_json(folder / "training.json", {"training_loss": losses, "seconds": time.monotonic() - started})
    return folder


def drive_once(name: str, folder: Path, episodes: int) -> dict[str, Any]:
    """Return what an expert of that name, or else the policy in `folder`, reaches; driven once, and kept."""
    torch.set_num_threads(1)
    file = folder / f"driven-{episodes}.json"
    if not file.exists():
        controller = EXPERTS.get(name) or policy_controller(folder, _ACTIONS)
        found = drive(controller, open_scenes(tuple(SITES.values())), episodes, _FIRST_SEED)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return kept
