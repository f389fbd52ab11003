"""The file of a checkpoint: a run as it was after a round.

One file holds all that the next round needs, so there is no half of a checkpoint: the trainable weights under
their own names, their average over the rounds (if it is kept) under `average/`, the server optimizer's
state under `server_optimizer/`, and in the metadata the round, the
federation's normalisation, the configuration, the fingerprint of the frozen weights, the norms that updates
are compared with, what the policy loss was measured on, the round's record, and a SHA-256 over
all of it. What is drawn at random depends on the seed and the round alone, so no generator has a state to
keep.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from federation.data.statistics import Statistics
from federation.errors import FederationError, one_line
from server.model import GlobalModel
from server.run.round_record import RoundRecord

__all__ = [
    "ROUND_PREFIX",
    "Checkpoint",
    "CheckpointError",
    "checkpoint_contents",
    "load_checkpoint",
    "restore_model",
    "round_of",
]

ROUND_PREFIX = "round_"
_OPTIMIZER = "server_optimizer/"
_AVERAGE = "average/"


class CheckpointError(FederationError):
    """A checkpoint cannot be written, is damaged, or belongs to another run or policy."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after `round`; round 0 is before training."""

    round: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None  # of the weights over the rounds; None: it is not kept
    optimizer: dict[str, Tensor]  # "<index of the parameter>/<name>" -> state
    statistics: Statistics
    fingerprint: str
    norms: list[float]
    policy_loss: float | None  # of the evaluation after this round
    measured_on: str  # on what; losses of different such digests say nothing of each other
    entry: RoundRecord | None  # of this round in the record; round 0 has none
    config: dict[str, Any]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify what `Checkpoints.save` wrote.

    Raises:
        CheckpointError: it is missing, torn, changed, of another round than its name says, or of another
            version.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)})") from None
    claimed = metadata.pop("sha256", "")
    if claimed != _digest(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one it was written with")
    try:
        state = json.loads(metadata["state"])
        checkpoint = Checkpoint(
            round=int(metadata["round"]),
            weights={n: t for n, t in tensors.items() if not n.startswith((_OPTIMIZER, _AVERAGE))},
            average=_under(_AVERAGE, tensors) or None,
            optimizer=_under(_OPTIMIZER, tensors),
            statistics={
                feature: {name: np.asarray(values, np.float64) for name, values in named.items()}
                for feature, named in state["statistics"].items()
            },
            fingerprint=metadata["frozen_fingerprint"],
            norms=state["norms"],
            policy_loss=float(metadata["policy_loss"]) if "policy_loss" in metadata else None,
            measured_on=state["measured_on"],
            entry=None if state["entry"] is None else RoundRecord.from_json(state["entry"]),
            config=state["config"],
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} was written by another version of this software ({error})") from None
    if path.stem.startswith(ROUND_PREFIX) and round_of(path) != checkpoint.round:
        raise CheckpointError(f"{path} holds round {checkpoint.round}, not the round in its name")
    return checkpoint


def restore_model(model: GlobalModel, checkpoint: Checkpoint) -> None:
    """Put `model`, built from the same configuration, into the state of `checkpoint`.

    Raises:
        CheckpointError: the checkpoint belongs to another policy or to other frozen weights.
    """
    if checkpoint.fingerprint != model.fingerprint:
        raise CheckpointError(
            f"the frozen weights are not those of the checkpoint of round {checkpoint.round}: resume with "
            "the same versions of torch, transformers and lerobot, and the same policy.pretrained"
        )
    if {n: t.shape for n, t in checkpoint.weights.items()} != model.shapes:
        raise CheckpointError(
            f"the weights of the checkpoint of round {checkpoint.round} do not fit the policy"
        )
    for name, tensor in checkpoint.weights.items():
        model.weights[name].copy_(tensor)
    if model.average is not None:
        for name, tensor in (checkpoint.average or checkpoint.weights).items():
            model.average[name].copy_(tensor)
    model.norms.clear()
    model.norms.extend(checkpoint.norms)
    if model.optimizer is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.optimizer.items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor.clone()
        model.optimizer.load_state_dict(model.optimizer.state_dict() | {"state": state})


def checkpoint_contents(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of the file that `checkpoint` is written to."""
    tensors = {
        **checkpoint.weights,
        **{f"{_AVERAGE}{name}": tensor for name, tensor in (checkpoint.average or {}).items()},
        **{f"{_OPTIMIZER}{name}": tensor for name, tensor in checkpoint.optimizer.items()},
    }
    metadata = {"round": str(checkpoint.round), "frozen_fingerprint": checkpoint.fingerprint}
    if checkpoint.policy_loss is not None:
        metadata["policy_loss"] = repr(checkpoint.policy_loss)
    metadata["state"] = json.dumps(
        {
            "statistics": {
                feature: {name: np.asarray(values, np.float64).tolist() for name, values in named.items()}
                for feature, named in checkpoint.statistics.items()
            },
            "norms": checkpoint.norms,
            "measured_on": checkpoint.measured_on,
            "entry": None if checkpoint.entry is None else checkpoint.entry.to_json(),
            "config": checkpoint.config,
        },
        allow_nan=False,
    )
    metadata["sha256"] = _digest(tensors, metadata)
    return tensors, metadata


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def round_of(path: Path) -> int:
    """Return the round in the name of a checkpoint."""
    return int(path.stem.removeprefix(ROUND_PREFIX))
