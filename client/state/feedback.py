"""Error feedback: what a lossy codec lost of this round's update is added to the next one.

Without it the rounding errors of the rounds add up; with it they cancel (Seide et al., Interspeech 2014;
Karimireddy et al., ICML 2019). The residual is kept on the site's own disk.

Where the server divides each update by the root of its steps (`federation.partial_work`), so it does what was
lost of it: the residual is kept divided, and multiplied by the root of the steps of the next round.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from client.state.round_state import load_round_state, save_round_state

__all__ = ["add_residual", "keep_residual"]

_FOLDER, _FOLDER_BY_STEP = "feedback", "feedback_by_step"


def add_residual(
    scratch: Path, run: str, round_: int, update: Mapping[str, Tensor], steps: int | None = None
) -> None:
    """Add what the newest round of `run` before `round_` left to `update`, in place; nothing if none did.

    Args:
        steps: of the round, where the server divides by their root.
    """
    shapes = {name: tensor.shape for name, tensor in update.items()}
    residual = load_round_state(_folder(scratch, steps), run, round_, shapes)
    if residual is not None:
        torch._foreach_add_(
            list(update.values()), [residual[name] for name in update], alpha=math.sqrt(steps or 1)
        )


def keep_residual(
    scratch: Path, run: str, round_: int, residual: Mapping[str, Tensor], steps: int | None = None
) -> None:
    """Keep what `round_` leaves; with `steps` it is divided by their root in place."""
    if steps:
        torch._foreach_div_(list(residual.values()), math.sqrt(steps))
    save_round_state(_folder(scratch, steps), run, round_, residual)


def _folder(scratch: Path, steps: int | None) -> Path:
    return scratch / (_FOLDER_BY_STEP if steps else _FOLDER)
