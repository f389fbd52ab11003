"""The policies that are compared: of a federation, of one owner alone, and tuned by that owner."""

import dataclasses
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.personal.split import split_episodes
from client.personal.tune import steps_of, tune
from client.recordings.held import Holding, Holdings
from client.recordings.opened import Recording
from client.recordings.samples import open_recorded_samples
from client.recordings.sources import Source
from federation.config import RunConfig, load_run_config
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.data.statistics import statistics_of_frames
from federation.data.tables import read_frames
from federation.policy.build import build_policy, build_processors
from federation.policy.folder import load_policy_folder, save_policy_folder
from tests.benchmarks.closed_loop.drive import Controller, blind, drive_once, policy_controller
from tests.benchmarks.closed_loop.train import FULL_RATE, train

__all__ = ["BLIND", "FEDERATION", "Arm", "drive_arm", "first_demonstrations", "recorded", "train_arm"]

FEDERATION, BLIND = "federation", "expert that does not look"
_CPU = torch.device("cpu")
_ROOM_BYTES = 2 * 10**9
_ACTIONS = 50  # taken of each chunk
_FIRST_SEED = 2_100_000_000  # beyond those of all other episodes


@dataclass(frozen=True)
class Arm:
    """One policy: `kind` is `federation`, `alone`, `personal` or, of no training at all, `BLIND`."""

    kind: str
    seed: int
    scene: str = ""  # of the owner's recordings
    demonstrations: int = 0

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return (
            "-".join(map(str, filter(None, (self.kind, self.scene, self.demonstrations)))) + f"-{self.seed}"
        )


def train_arm(arm: Arm, data: Path, work: Path) -> Path:
    """Return the folder of the policy of `arm`, trained first if it is not in `work` yet."""
    torch.set_num_threads(1)
    folder = work / arm.name
    if (folder / "config.json").exists():
        return folder
    settings = {"run.seed": arm.seed, "aggregation.server_momentum": 0.3, **FULL_RATE}
    config = load_run_config(Path("configs/arm.toml"), settings)
    started, scratch = time.monotonic(), work / f".scratch-{arm.name}"
    if arm.kind == FEDERATION:
        train(config, (("site-a",), ("site-b",)), data, scratch, folder)
    else:
        _train_on_own(arm, config, data, work, scratch, folder)
    shutil.rmtree(scratch)
    about = {"seconds": time.monotonic() - started}
    (folder / "training.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    return folder


def _train_on_own(arm: Arm, config: RunConfig, data: Path, work: Path, scratch: Path, folder: Path) -> None:
    held = first_demonstrations(recorded(arm.scene, data), arm)
    if arm.kind == "personal":
        policy, processors = load_policy_folder(work / Arm(FEDERATION, arm.seed).name, _CPU)
        held, _ = split_episodes(held, arm.seed)  # as so100-site personalise does
        steps = steps_of(config.training, held)
    else:
        policy = build_policy(config.policy, seed=arm.seed, device=_CPU, cache=scratch)
        processors = build_processors(policy, merge_statistics([held.statistics]))
        steps = config.run.num_rounds * config.training.local_steps
    training = dataclasses.replace(config.training, local_steps=steps)
    open_recorded_samples(held, policy.config, scratch, _ROOM_BYTES).fill(lambda: True)  # in order: a third
    tune(policy, processors, held, training, scratch, _ROOM_BYTES, arm.seed)
    save_policy_folder(folder, policy, processors, "Benchmark of personal policies.\n")


def recorded(scene: str, data: Path) -> Path:
    """Return the folder of the recordings of a scene; the new owner's lie beside those of the federation."""
    sites = {"left": data / "site-a", "right": data / "site-b"}
    return sites.get(scene, data.with_name(f"{data.name}-new") / "new")


def first_demonstrations(root: Path, arm: Arm) -> Holdings:
    """Return `arm.demonstrations` of the recorded ones, drawn by the seed; fewer are among more."""
    description = describe_dataset(root)
    order = random.Random(arm.seed).sample(range(description.episodes), description.episodes)
    out = {**dict.fromkeys(order[arm.demonstrations :], "not among these"), **description.left_out}
    few = dataclasses.replace(description, left_out=out)
    few = dataclasses.replace(few, statistics=statistics_of_frames(read_frames(root), few.usable_episodes))
    return Holdings((Holding(Recording(Source(str(root)), root, root), few),))


def drive_arm(arm: Arm, scene: str, episodes: int, work: Path) -> dict[str, Any]:
    """Return what the policy of `arm` reaches in `scene`; driven once, and kept."""

    def controller() -> Controller:
        return blind if arm.kind == BLIND else policy_controller(work / arm.name, _ACTIONS)

    file = work / arm.name / f"driven-{scene}-{episodes}.json"
    return drive_once(file, controller, [scene], episodes, _FIRST_SEED)
