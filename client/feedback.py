"""Error feedback: what a lossy codec lost of this round's update is added to the next one.

Without it the rounding errors of the rounds add up; with it they cancel (Seide et al., Interspeech 2014;
Karimireddy et al., ICML 2019). The residual is kept on the site's own disk, for one run at a time. Losing
it costs accuracy of one round and nothing else.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from federation.logs import get_logger

__all__ = ["add_residual", "keep_residual"]

_log = get_logger("client.feedback")


def add_residual(scratch: Path, run: str, update: Mapping[str, Tensor]) -> None:
    """Add the residual of the last round of `run` to `update`, in place; nothing if there is none."""
    file = _file(scratch, run)
    if not file.exists():
        return
    try:
        residual = load_file(file)
    except (SafetensorError, OSError) as error:
        _log.warning("residual %s cannot be read and is dropped: %s", file.name, error)
        return
    if {name: t.shape for name, t in residual.items()} != {name: t.shape for name, t in update.items()}:
        _log.warning("residual %s does not fit the policy and is dropped", file.name)
        return
    torch._foreach_add_(list(update.values()), [residual[name] for name in update])


def keep_residual(scratch: Path, run: str, residual: Mapping[str, Tensor]) -> None:
    """Keep `residual` for the next round of `run`; those of other runs are removed."""
    file = _file(scratch, run)
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in file.parent.iterdir():
        if old != file:
            old.unlink()
    staging = file.with_suffix(".part")
    save_file(dict(residual), staging)
    staging.replace(file)


def _file(scratch: Path, run: str) -> Path:
    # The server chose the run's name: it must not choose a path on this site.
    return scratch / "feedback" / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.safetensors"
