"""A base to fine-tune: a policy that has seen the simulated arm pick up cubes, and none of the sites."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.config import load_run_config
from server.simulation.recording import SampleParameters, ensure_sample_data
from server.simulation.scenes import FOREIGN
from tests.benchmarks.closed_loop.train import FULL_RATE, train

__all__ = ["pretrain", "start_from"]

_RECORDING = SampleParameters(episodes=80 * len(FOREIGN), eval_episodes=8)
_SEED = 100


def pretrain(data: Path, work: Path, settings: Mapping[str, Any], *, beginning: int = 0) -> Path:
    """Return the folder of a base in `work`, trained first if it is not there yet.

    Args:
        data: folder where the demonstrations of the foreign scenes are, or are recorded now.
        settings: what is different from `configs/arm.toml` with the rate of one learner.
        beginning: as for `train`.
    """
    ensure_sample_data(data, _RECORDING, datasets={"foreign": FOREIGN})
    folder = work / "base"
    if not (folder / "config.json").exists():
        config = load_run_config(Path("configs/arm.toml"), {**FULL_RATE, "run.seed": _SEED, **settings})
        train(config, (("foreign",),), data, work / ".scratch-base", folder, beginning=beginning)
    return folder


def start_from(base: Path) -> dict[str, Any]:
    """Return the settings that a run starts from `base` with."""
    return {"policy.size": "pretrained", "policy.pretrained": str(base.resolve())}
