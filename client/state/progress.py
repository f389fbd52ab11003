"""How far this node is inside a round, written where its owner can look: `<scratch>/progress.json`.

Flower starts a new process for every message and carries nothing out of it before its reply, so a file on
the site's own disk is what tells a long round from a dead one.
"""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from federation.files import write_json

__all__ = ["PROGRESS_FILE", "ProgressFile"]

PROGRESS_FILE = "progress.json"
_SECONDS_BETWEEN_WRITES = 0.5


class ProgressFile:
    """Writes `{"round", "step", "local_steps", "policy_loss"}`, at most twice a second and at the end.

    Of a GPU also what `client.device.read_gpu` returned of it.
    """

    def __init__(self, scratch: Path, round_: int, local_steps: int) -> None:
        self._path = scratch / PROGRESS_FILE
        self._round, self._local_steps = round_, local_steps
        self._next_write = 0.0

    def update(self, step: int, policy_loss: float, gpu: Mapping[str, float] | None = None) -> None:
        """Record that `step` steps are done; the last had `policy_loss`, the GPU its newest figures."""
        now = time.monotonic()
        if now < self._next_write and step < self._local_steps:
            return
        self._next_write = now + _SECONDS_BETWEEN_WRITES
        content = {
            "round": self._round,
            "step": step,
            "local_steps": self._local_steps,
            "policy_loss": policy_loss,
            **(gpu or {}),
        }
        with contextlib.suppress(
            OSError, ValueError
        ):  # on a full disk training goes on unseen; JSON has no NaN
            write_json(self._path, content, durable=False)
