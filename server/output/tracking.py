"""A run's figures for the tools people already use: TensorBoard always, Weights & Biases if configured.

Whatever goes wrong with a tracker is said once and the tracker dropped: a full disk or an unreachable service
costs its curves, never the run.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from federation.config import RunConfig, flatten
from federation.errors import ConfigError
from federation.logs import get_logger
from server.output.tensorboard import ScalarWriter
from server.run.phases import round_phases
from server.run.round_record import RoundRecord

__all__ = ["Tracking", "evaluation_scalars", "round_scalars"]

_NODE_FIGURES = ("policy_loss", "proximal_loss", "grad_norm", "update_norm", "learning_rate", "train_seconds")
_log = get_logger("server.output.tracking")


class _Tracker(Protocol):
    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Tracking:
    """Hands the figures of each round to every tracker of the run in `folder`.

    Raises:
        ConfigError: `tracking.wandb` is "online" and the environment has no WANDB_API_KEY.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._trackers: dict[str, _Tracker] = {}
        mode = config.tracking.wandb
        if mode == "online" and not os.environ.get("WANDB_API_KEY"):
            raise ConfigError(
                'tracking.wandb = "online": the server has no WANDB_API_KEY; set it, or choose "offline"'
            )
        self._start("TensorBoard", lambda: ScalarWriter(folder / "tensorboard"))
        if mode != "off":
            self._start("Weights & Biases", lambda: _WandbRun(folder, config))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log `scalars` (tag -> value) for round `step`."""
        for name in list(self._trackers):
            try:
                self._trackers[name].log(step, scalars)
            except Exception as error:  # a tracker's fault must not reach the run
                _log.warning("%s is given up: %s", name, error)
                del self._trackers[name]

    def close(self) -> None:
        """Let every tracker finish what it holds."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:  # as above
                _log.warning("%s did not close: %s", name, error)
        self._trackers.clear()

    def _start(self, name: str, start: Any) -> None:
        try:
            self._trackers[name] = start()
        except Exception as error:  # as above
            _log.warning("%s cannot be written: %s", name, error)


class _WandbRun:
    """A run of Weights & Biases. It gets figures and settings: no code, no machine names, no console."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        import wandb

        self._run = wandb.init(
            project=config.tracking.wandb_project,
            name=folder.name,
            id=folder.name,
            resume="allow",  # a resumed run goes on in the same curves
            dir=folder,
            mode="online" if config.tracking.wandb == "online" else "offline",
            config=flatten(config),
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                host="server",
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        # W&B's own steps may only grow, and it drops what goes back: so a round, which may be done again
        # after a rollback or a resume, is an axis of ours. The step is the time: it grows over restarts too.
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"round": step, **scalars}, step=time.time_ns() // 1_000_000)

    def close(self) -> None:
        self._run.finish()


def evaluation_scalars(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the tags and values of an evaluation, the one before training included."""
    scalars = {}
    for figure in ("policy_loss", "action_mse"):
        scalars[f"evaluation/{figure}"] = evaluation[figure]
        if len(evaluation["datasets"]) > 1:
            for name, result in evaluation["datasets"].items():
                scalars[f"evaluation_{figure}/{name}"] = result[figure]
    return scalars


def round_scalars(entry: RoundRecord) -> dict[str, float]:
    """Return the tags and values of a complete round."""
    scalars: dict[str, float] = {
        "round/updates": len(entry.clients),
        "round/missing": len(entry.missing),
        "round/rejected": len(entry.rejected),
        "round/update_norm": entry.update_norm,
        "round/examples": entry.num_examples,
        "round/seconds": sum(entry.seconds.values()),
    }
    for direction, size in entry.bytes.items():
        scalars[f"bytes/{direction}"] = size
    for phase, seconds in round_phases(entry).items():
        scalars[f"seconds/{phase}"] = seconds
    for figure in ("policy_loss", "proximal_loss", "grad_norm"):
        if spread := getattr(entry, figure):
            scalars[f"clients/{figure}_mean"] = spread["mean"]
            scalars[f"clients/{figure}_std"] = spread["std"]
    for name, metrics in entry.clients.items():
        for figure in _NODE_FIGURES:
            if figure in metrics:
                scalars[f"client_{figure}/{name}"] = metrics[figure]
    for name, epsilon in (entry.privacy or {}).get("epsilon", {}).items():
        if epsilon is not None:  # beyond a million
            scalars[f"privacy_epsilon_of_updates_alone/{name}"] = epsilon
    if entry.evaluation:
        scalars |= evaluation_scalars(entry.evaluation)
    return scalars
