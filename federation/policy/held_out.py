"""How well a policy does on recorded frames that it was not trained on, always by the same draw.

The primary figure is SmolVLA's own flow-matching policy loss; beside it the mean squared error of the
predicted action chunk, in the dataset's own units (degrees, and percent of the gripper). Noise and time
samples are drawn from each frame's identity, so the same weights always give the same figures and a
difference between two policies is a difference between two policies.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from federation.data.loading import DECODE_ERRORS, with_empty_cameras
from federation.errors import DatasetError, one_line
from federation.logs import get_logger
from federation.policy.build import Processors, autocast

__all__ = ["Recorded", "held_out_batches", "measure_policy", "predict_episode"]

_log = get_logger("federation.policy.held_out")


class Recorded(Protocol):
    """Policy inputs by the number of their frame."""

    def __getitem__(self, frame: int) -> dict[str, Any]:
        """Return the inputs of one frame; a camera may lack."""


@torch.no_grad()
def measure_policy(
    policy: SmolVLAPolicy,
    processors: Processors,
    recorded: Recorded,
    name: str,
    frames: Sequence[int],
    batch_size: int,
) -> dict[str, Any]:
    """Return `policy_loss` and `action_mse` over `frames`, and how many were measured and skipped.

    Args:
        policy: in evaluation mode.
        name: of the dataset; the draws depend on it.

    Raises:
        DatasetError: not one frame can be decoded.
    """
    preprocessor, postprocessor = processors
    device = next(policy.parameters()).device
    losses: list[Tensor] = []
    errors: list[Tensor] = []
    for batch, noise, time_ in held_out_batches(policy, recorded, name, frames, batch_size):
        with autocast(device):
            predicted = policy.predict_action_chunk(preprocessor(_observation(batch)), noise.to(device))
            loss, _ = policy.forward(
                preprocessor(dict(batch)), noise.to(device), time_.to(device), reduction="none"
            )
        losses.append(loss.float().cpu())
        errors.append(_squared_error(postprocessor(predicted.float()), batch))
    if not losses:
        raise DatasetError(f"evaluation dataset {name}: no frame can be decoded; check its videos")
    all_losses, all_errors = torch.cat(losses).double(), torch.cat(errors).double()
    return {
        "policy_loss": all_losses.mean().item(),
        "action_mse": all_errors.mean().item(),
        "frames": len(all_losses),
        "skipped_frames": len(frames) - len(all_losses),
    }


def held_out_batches(
    policy: SmolVLAPolicy, recorded: Recorded, name: str, frames: Sequence[int], batch_size: int
) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """Yield raw batches with the fixed noise (B, chunk, max_action_dim) and time (B,) of their frames."""
    settings = policy.config
    samples = []
    for frame in tqdm(frames, desc=f"evaluate {name}", unit="frame", leave=False, disable=None):
        try:
            item = recorded[frame]
        except DECODE_ERRORS as error:
            _log.warning("frame %d of %s skipped: %s", frame, name, one_line(error))
        else:
            draw = _fixed_draw(name, frame, settings.chunk_size, settings.max_action_dim)
            samples.append((with_empty_cameras(item, settings), *draw))
        if samples and (len(samples) == batch_size or frame == frames[-1]):
            items, noise, time_ = zip(*samples, strict=True)
            samples = []
            yield default_collate(list(items)), torch.stack(noise), torch.stack(time_)


def _observation(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if not key.startswith(ACTION)}


def _squared_error(predicted: Tensor, batch: dict[str, Any]) -> Tensor:
    """Mean squared error of each sample (B,) over the actions inside its episode."""
    inside = ~batch["action_is_pad"].unsqueeze(-1)  # (B, chunk_size, 1)
    squared = (predicted - batch[ACTION]).square() * inside
    errors: Tensor = squared.sum(dim=(1, 2)) / (inside.sum(dim=(1, 2)) * squared.shape[-1])
    return errors


def _fixed_draw(name: str, frame: int, chunk_size: int, action_dim: int) -> tuple[Tensor, Tensor]:
    """Noise (chunk_size, action_dim) and time () of a frame, distributed as SmolVLA draws them in training.

    Time is `0.999 * Beta(1.5, 1) + 0.001`; the inverse of that Beta's distribution function is `u^(2/3)`.
    """
    digest = hashlib.sha256(f"{name}/{frame}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    noise = torch.randn(chunk_size, action_dim, generator=generator)
    uniform = torch.rand((), generator=generator)
    return noise, uniform.pow(2 / 3) * 0.999 + 0.001


@torch.no_grad()
def predict_episode(
    policy: SmolVLAPolicy, processors: Processors, recorded: Recorded, name: str, frames: Sequence[int]
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the recorded and the predicted actions, (T, 6) each, of one episode.

    As on an arm the policy looks once for several actions, here for half a chunk; but what it looks at is
    recorded, so one error does not lead to the next.

    Args:
        name: of the dataset; the draws depend on it.
        frames: of the episode, T numbers for `recorded` in the order of time.

    Raises:
        DECODE_ERRORS: a frame that it looks at cannot be decoded.
    """
    preprocessor, postprocessor = processors
    settings, device = policy.config, next(policy.parameters()).device
    half = max(1, settings.chunk_size // 2)
    truth: list[list[float]] = []
    guesses: list[list[float]] = []
    for start in range(0, len(frames), half):
        frame, taken = frames[start], min(half, len(frames) - start)
        item = with_empty_cameras(recorded[frame], settings)
        noise, _ = _fixed_draw(name, frame, settings.chunk_size, settings.max_action_dim)
        batch = default_collate([item])
        with autocast(device):
            chunk = policy.predict_action_chunk(preprocessor(_observation(batch)), noise[None].to(device))
        truth += item[ACTION][:taken].tolist()
        guesses += postprocessor(chunk.float())[0, :taken].tolist()
    return truth, guesses
