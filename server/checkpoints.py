"""Checkpoints of the global weights: `checkpoints/round_0007.safetensors`, and `best.safetensors`."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from federation.config import CheckpointConfig
from server.files import write_atomically

__all__ = ["Checkpoints"]


class Checkpoints:
    """Saves the trainable weights; keeps the newest `keep` and the one with the lowest policy loss.

    The file's metadata says which round, which policy loss and which frozen weights it belongs to.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, fingerprint: str) -> None:
        self._folder, self._config, self._fingerprint = folder, config, fingerprint
        self._best_loss = float("inf")
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest evaluated policy loss."""
        return self._folder / "best.safetensors"

    def save(self, round_: int, weights: Mapping[str, Tensor], policy_loss: float | None) -> Path:
        """Save round `round_` atomically; remove what is no longer kept.

        Args:
            policy_loss: of the evaluation after this round, None if there was none.
        """
        path = self._folder / f"round_{round_:04d}.safetensors"
        metadata = {"round": str(round_), "frozen_fingerprint": self._fingerprint}
        if policy_loss is not None:
            metadata["policy_loss"] = repr(policy_loss)
        write_atomically(path, lambda staging: save_file(dict(weights), staging, metadata))
        if policy_loss is not None and policy_loss < self._best_loss:
            self._best_loss = policy_loss
            write_atomically(self.best, lambda staging: _link_or_copy(path, staging))
        for old in sorted(self._folder.glob("round_*.safetensors"))[: -self._config.keep]:
            old.unlink()
        return path


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name costs no second copy of the weights, where the file system has such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
