"""Tensors that one round leaves for a later one at this site: `<scratch>/<kind>/<run>-<round>.safetensors`.

A round may be done again: the server died in it, or its operator went back. So what is kept belongs to the
round that left it, a round takes that of an earlier one only, and the last two are kept. Rounds that the
server has undone leave nothing: what their diverging weights left would make the next ones diverge. Losing
any of it costs a round some accuracy and nothing else.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from federation.files import remove_unfinished, write_atomically
from federation.logs import get_logger

__all__ = ["drop_round_state", "load_round_state", "save_round_state"]

_log = get_logger("client.state.round_state")


def load_round_state(
    folder: Path, run: str, round_: int, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor] | None:
    """Return what the newest round of `run` before `round_` left in `folder`; None if nothing that fits.

    Args:
        shapes: name -> shape of every tensor there must be.
    """
    earlier = [file for left_by, file in _files(folder, run) if left_by < round_]
    if not earlier:
        return None
    file = earlier[-1]
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        _log.warning("%s/%s cannot be read and is dropped: %s", folder.name, file.name, error)
        return None
    if {name: tensor.shape for name, tensor in tensors.items()} != dict(shapes):
        _log.warning("%s/%s does not fit the policy and is dropped", folder.name, file.name)
        return None
    return tensors


def save_round_state(folder: Path, run: str, round_: int, tensors: Mapping[str, Tensor]) -> None:
    """Keep what `round_` leaves, beside what it took itself; everything else in `folder` is removed.

    Where it cannot be kept, as on a full disk, all are removed: what was taken must not count twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = [file for left_by, file in _files(folder, run) if left_by < round_][-1:]
    file = folder / f"{_prefix(run)}{round_:06d}.safetensors"
    keep = [file, *taken]
    try:
        write_atomically(file, lambda staging: save_file(dict(tensors), staging), durable=False)
    except (OSError, SafetensorError) as error:
        _log.warning("%s: what round %d leaves cannot be kept: %s", folder.name, round_, error)
        keep = []
    remove_unfinished(folder)
    for old in folder.glob("*.safetensors"):
        if old not in keep:
            old.unlink()


def drop_round_state(scratch: Path, run: str, rounds: Collection[int]) -> None:
    """Remove what `rounds` of `run` left, of every kind."""
    for folder in (path for path in scratch.iterdir() if path.is_dir()):
        for left_by, file in _files(folder, run):
            if left_by in rounds:
                file.unlink()


def _files(folder: Path, run: str) -> list[tuple[int, Path]]:
    """Round and file of everything that `run` left, in order."""
    files = folder.glob(f"{_prefix(run)}*.safetensors")
    return sorted((int(file.stem.rpartition("-")[2]), file) for file in files)


def _prefix(run: str) -> str:
    # The server chose the run's name: it must not choose a path on this site.
    return hashlib.sha256(run.encode()).hexdigest()[:16] + "-"
