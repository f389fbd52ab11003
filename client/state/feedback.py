"""Error feedback: what a lossy codec lost of this round's update is added to the next one.

Without it the rounding errors of the rounds add up; with it they cancel (Seide et al., Interspeech 2014;
Karimireddy et al., ICML 2019). The residual is kept on the site's own disk.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from client.state.round_state import load_round_state, save_round_state

__all__ = ["add_residual", "keep_residual"]

_FOLDER = "feedback"


def add_residual(scratch: Path, run: str, round_: int, update: Mapping[str, Tensor]) -> None:
    """Add what the newest round of `run` before `round_` left to `update`, in place; nothing if none did."""
    shapes = {name: tensor.shape for name, tensor in update.items()}
    residual = load_round_state(scratch / _FOLDER, run, round_, shapes)
    if residual is not None:
        torch._foreach_add_(list(update.values()), [residual[name] for name in update])


def keep_residual(scratch: Path, run: str, round_: int, residual: Mapping[str, Tensor]) -> None:
    """Keep what `round_` leaves."""
    save_round_state(scratch / _FOLDER, run, round_, residual)
