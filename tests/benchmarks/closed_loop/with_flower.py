"""Train one arm of the comparison by a run with Flower, with processes of its own for server and sites."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from server.deploy.demo import run_demo
from tests.benchmarks.closed_loop.arms import Arm, configure

__all__ = ["train_with_flower"]

_PORT = 8543


def train_with_flower(arm: Arm, seed: int, settings: Mapping[str, Any], data: Path, work: Path) -> Path:
    """Return the folder of what `arm` makes of `settings`, trained first if it is not in `work` yet.

    Raises:
        FederationError: a certificate, the data or the port is not as it must be.
    """
    outputs, name = work / ".flower", f"with-Flower-{seed}"
    folder = work / name
    if (folder / "config.json").exists():
        return folder
    shutil.rmtree(outputs / name, ignore_errors=True)
    run = {"run.name": name, "federation.min_nodes": len(arm.learners)}
    config = configure(arm, seed, {**settings, **run})
    if run_demo(config, data, outputs, Path("certs/generated"), _PORT, Console()):
        raise SystemExit(f"the run with Flower failed; its logs are in {outputs / name / 'logs'}")
    shutil.copytree(outputs / name / "pretrained_model", folder)
    return folder
