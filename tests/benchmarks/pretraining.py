"""A base to fine-tune: a policy that has seen the simulated arm pick up cubes, and none of the sites."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from federation.config import load_run_config
from server.simulation.recording import SampleParameters, ensure_sample_data
from server.simulation.scenes import FOREIGN
from tests.benchmarks.closed_loop.train import FULL_RATE, train

__all__ = ["pretrain", "start_from"]

_RECORDING = SampleParameters(episodes=30 * len(FOREIGN), eval_episodes=8)
_SEED = 100


def pretrain(data: Path, work: Path, cycles: Sequence[int], settings: Mapping[str, Any]) -> Path:
    """Return the folder of a base in `work`, trained first if it is not there yet.

    Args:
        data: folder where the demonstrations of the foreign scenes are, or are recorded now.
        cycles: rounds of each cycle of the learning rate; each goes on from the one before
            (Loshchilov and Hutter, "SGDR", ICLR 2017).
        settings: what is different from `configs/arm.toml` with the rate of one learner.
    """
    ensure_sample_data(data, _RECORDING, datasets={"foreign": FOREIGN})
    start: dict[str, Any] = {}
    for cycle, rounds in enumerate(cycles):
        folder = work / f"base-{cycle}"
        if not (folder / "config.json").exists():
            own = {"run.seed": _SEED + cycle, "run.num_rounds": rounds, "training.batch_size": 32}
            config = load_run_config(Path("configs/arm.toml"), {**FULL_RATE, **own, **settings, **start})
            train(config, (("foreign",),), data, work / ".scratch-base", folder)
        start = start_from(folder)
    return folder


def start_from(base: Path) -> dict[str, Any]:
    """Return the settings that a run starts from `base` with."""
    return {"policy.size": "pretrained", "policy.pretrained": str(base.resolve())}
