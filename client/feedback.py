"""Error feedback: what a lossy codec lost of this round's update is added to the next one.

Without it the rounding errors of the rounds add up; with it they cancel (Seide et al., Interspeech 2014;
Karimireddy et al., ICML 2019). The residual is kept on the site's own disk, for one run at a time. Losing
it costs accuracy of one round and nothing else.

A round may be done again: the server died in it, or its operator went back. So a residual belongs to the
round that left it, a round takes that of an earlier one only, and the last two are kept.
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

_FOLDER = "feedback"
_log = get_logger("client.feedback")


def add_residual(scratch: Path, run: str, round_: int, update: Mapping[str, Tensor]) -> None:
    """Add what the newest round of `run` before `round_` left to `update`, in place; nothing if none did."""
    earlier = [file for left_by, file in _residuals(scratch, run) if left_by < round_]
    if not earlier:
        return
    file = earlier[-1]
    try:
        residual = load_file(file)
    except (SafetensorError, OSError) as error:
        _log.warning("residual %s cannot be read and is dropped: %s", file.name, error)
        return
    if {name: t.shape for name, t in residual.items()} != {name: t.shape for name, t in update.items()}:
        _log.warning("residual %s does not fit the policy and is dropped", file.name)
        return
    torch._foreach_add_(list(update.values()), [residual[name] for name in update])


def keep_residual(scratch: Path, run: str, round_: int, residual: Mapping[str, Tensor]) -> None:
    """Keep what `round_` leaves, beside what it took itself; everything else is removed.

    Where it cannot be kept, as on a full disk, all are removed: the one taken must not count twice.
    """
    folder = scratch / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    taken = [file for left_by, file in _residuals(scratch, run) if left_by < round_][-1:]
    file = folder / f"{_prefix(run)}{round_:06d}.safetensors"
    staging = file.with_suffix(".part")
    keep = [file, *taken]
    try:
        save_file(dict(residual), staging)
        staging.replace(file)
    except (OSError, SafetensorError) as error:
        _log.warning(
            "the residual of round %d cannot be kept, its rounding errors are lost: %s", round_, error
        )
        keep = []
    for old in folder.iterdir():
        if old not in keep:
            old.unlink()


def _residuals(scratch: Path, run: str) -> list[tuple[int, Path]]:
    """Round and file of each residual of `run`, in order."""
    files = (scratch / _FOLDER).glob(f"{_prefix(run)}*.safetensors")
    return sorted((int(file.stem.rpartition("-")[2]), file) for file in files)


def _prefix(run: str) -> str:
    # The server chose the run's name: it must not choose a path on this site.
    return hashlib.sha256(run.encode()).hexdigest()[:16] + "-"
