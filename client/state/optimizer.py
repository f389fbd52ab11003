"""AdamW's moments from round to round, on the site's own disk (`training.keep_optimizer`).

They are twice the size of the trained weights in fp32: 0.8 GB for the full-size policy, 1.6 GB on disk since
the last two rounds are kept. They never travel.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from client.state.round_state import load_round_state, save_round_state

__all__ = ["keep_optimizer_state", "restore_optimizer_state"]

_FOLDER = "optimizer"
_STEP, _MOMENTS = "step", ("exp_avg", "exp_avg_sq")


def restore_optimizer_state(
    scratch: Path,
    run: str,
    round_: int,
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, torch.nn.Parameter],
) -> bool:
    """Go on with the moments that the newest round of `run` before `round_` left; False if none did.

    Args:
        parameters: those of `optimizer`, by name.
    """
    shapes = {f"{key}/{name}": p.shape for key in _MOMENTS for name, p in parameters.items()}
    shapes |= {f"{_STEP}/{name}": torch.Size([]) for name in parameters}
    tensors = load_round_state(scratch / _FOLDER, run, round_, shapes)
    if tensors is None:
        return False
    for name, parameter in parameters.items():
        moments = {key: tensors[f"{key}/{name}"].to(parameter.device) for key in _MOMENTS}
        # A fused optimizer counts where it computes, another one on the CPU.
        counted_on = parameter.device if optimizer.defaults["fused"] else "cpu"
        optimizer.state[parameter] = {_STEP: tensors[f"{_STEP}/{name}"].to(counted_on), **moments}
    return True


def keep_optimizer_state(
    scratch: Path,
    run: str,
    round_: int,
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, torch.nn.Parameter],
) -> None:
    """Keep the moments that `round_` leaves. A parameter that never had a gradient has moments of zero."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        tensors[f"{_STEP}/{name}"] = state.get(_STEP, torch.zeros(())).cpu()
        for key in _MOMENTS:
            tensors[f"{key}/{name}"] = state.get(key, torch.zeros_like(parameter)).cpu()
    save_round_state(scratch / _FOLDER, run, round_, tensors)
