"""Server-side evaluation: how good the global weights are on data that no node has seen.

The primary figure is SmolVLA's own flow-matching policy loss; beside it the mean squared error of the
predicted action chunk, in the dataset's own units (degrees, and percent of the gripper). Noise and time
samples are drawn from each frame's identity, so the same weights always give the same figures and a
difference between two rounds is a difference between two models.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import ACTION, OBS_IMAGES
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from federation.data.cameras import CameraChoice
from federation.data.description import DatasetDescription, describe_dataset
from federation.data.loading import DECODE_ERRORS, open_dataset, with_empty_cameras
from federation.data.statistics import Statistics
from federation.errors import DatasetError, FederationError, one_line
from federation.logs import get_logger
from federation.policy.build import autocast, build_processors, load_trainable
from federation.settings import EvaluationConfig
from server.evaluation.decoded_frames import DecodedFrames

__all__ = ["DivergedError", "Evaluator", "measure"]

_VIDEO_END_BYTES = 1 << 20
_MAX_KEPT_BYTES = 10**9  # of decoded frames, of all datasets together
_log = get_logger("server.evaluation.held_out")


class DivergedError(FederationError):
    """The policy loss or the action error of the weights is NaN or infinite, which no record could hold."""


def measure(
    datasets: Mapping[str, Path], descriptions: Mapping[str, DatasetDescription], config: EvaluationConfig
) -> str:
    """Return a digest of what policy losses are measured on: under another digest they are not comparable.

    That is the held-out datasets under their names and the settings that choose frames. A video counts by
    its size and its ends: reading all of it would hold up the start of every run.
    """
    quick = config.quick_episodes if config.eval_mode == "quick" else None
    digest = hashlib.sha256(repr((quick, config.frame_stride, version("lerobot"))).encode())
    for name, root in sorted(datasets.items()):
        digest.update(repr((name, descriptions[name].usable_episodes)).encode())
        files = [path for part in ("meta", "data", "videos") for path in (root / part).rglob("*")]
        for path in sorted(path for path in files if path.is_file()):
            digest.update(f"\0{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                if path.suffix != ".mp4":
                    digest.update(hashlib.file_digest(file, "sha256").digest())
                    continue
                digest.update(file.read(_VIDEO_END_BYTES))
                file.seek(max(file.tell(), path.stat().st_size - _VIDEO_END_BYTES))
                digest.update(file.read())
    return digest.hexdigest()


class Evaluator:
    """Holds the policy and the held-out datasets open for the whole run.

    Args:
        policy: built once, its trainable weights are overwritten at each evaluation.
        datasets: name -> folder.
        descriptions: what `describe_dataset` says of each, with the policy's cameras; None reads them here.
        measured_on: the digest that goes into every evaluation (see `measure`).

    Raises:
        DatasetError: a dataset cannot be opened.
    """

    def __init__(
        self,
        policy: SmolVLAPolicy,
        statistics: Statistics,
        datasets: Mapping[str, Path],
        config: EvaluationConfig,
        descriptions: Mapping[str, DatasetDescription] | None = None,
        measured_on: str = "",
    ) -> None:
        self._policy, self._config, self._measured_on = policy, config, measured_on
        self._device = next(policy.parameters()).device
        self._preprocessor, self._postprocessor = build_processors(policy, statistics)
        self._datasets = {}
        wanted = [feature.removeprefix(f"{OBS_IMAGES}.") for feature in policy.config.image_features]
        choice = CameraChoice(wanted, may_lack=len(wanted))
        for name, root in datasets.items():
            description = (descriptions or {}).get(name) or describe_dataset(root, choice)
            episodes = description.usable_episodes
            if config.eval_mode == "quick":
                episodes = episodes[: config.quick_episodes]
            cameras, room = description.used_cameras, _MAX_KEPT_BYTES // len(datasets)
            frames = open_dataset(root, policy.config, episodes, cameras)
            self._datasets[name] = DecodedFrames(frames, policy.config, cameras, room)

    def evaluate(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Evaluate `weights` (the trainable parameters) on every dataset.

        Returns:
            `policy_loss` and `action_mse` over all frames, the same for each of `datasets`, `frames`,
            `skipped_frames`, `mode`, `measured_on` and `seconds`.

        Raises:
            DatasetError: not one frame of a dataset can be decoded.
            DivergedError: a figure is NaN or infinite.
        """
        started = time.monotonic()
        load_trainable(self._policy, weights)
        self._policy.eval()
        by_dataset = {name: self._evaluate_dataset(name) for name in self._datasets}
        for name, result in by_dataset.items():
            if not math.isfinite(result["policy_loss"] + result["action_mse"]):
                raise DivergedError(
                    f"evaluation dataset {name}: policy loss is {result['policy_loss']}, action MSE "
                    f"{result['action_mse']}: the weights have diverged; "
                    "lower training.learning_rate"
                )
        frames = sum(result["frames"] for result in by_dataset.values())
        return {
            **{
                figure: sum(result[figure] * result["frames"] for result in by_dataset.values()) / frames
                for figure in ("policy_loss", "action_mse")
            },
            "frames": frames,
            "skipped_frames": sum(result["skipped_frames"] for result in by_dataset.values()),
            "mode": self._config.eval_mode,
            "measured_on": self._measured_on,
            "datasets": by_dataset,
            "seconds": time.monotonic() - started,
        }

    @torch.no_grad()
    def _evaluate_dataset(self, name: str) -> dict[str, Any]:
        losses: list[Tensor] = []
        errors: list[Tensor] = []
        frames = range(0, len(self._datasets[name]), self._config.frame_stride)
        for batch, noise, time_ in self._batches(name, frames):
            with autocast(self._device):
                predicted = self._policy.predict_action_chunk(self._preprocessor(_observation(batch)), noise)
                loss, _ = self._policy.forward(
                    self._preprocessor(dict(batch)), noise, time_, reduction="none"
                )
            losses.append(loss.float().cpu())
            errors.append(_squared_error(self._postprocessor(predicted.float()), batch))
        if not losses:
            raise DatasetError(f"evaluation dataset {name}: no frame can be decoded; check its videos")
        all_losses, all_errors = torch.cat(losses).double(), torch.cat(errors).double()
        return {
            "policy_loss": all_losses.mean().item(),
            "action_mse": all_errors.mean().item(),
            "frames": len(all_losses),
            "skipped_frames": len(frames) - len(all_losses),
        }

    def _batches(self, name: str, frames: range) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Raw batches with the fixed noise (B, chunk_size, max_action_dim) and time (B,) of their frames."""
        policy, size = self._policy.config, self._config.batch_size
        samples = []
        for frame in tqdm(frames, desc=f"evaluate {name}", unit="frame", leave=False, disable=None):
            try:
                item = self._datasets[name][frame]
            except DECODE_ERRORS as error:
                _log.warning("frame %d of %s skipped: %s", frame, name, one_line(error))
            else:
                draw = _fixed_draw(name, frame, policy.chunk_size, policy.max_action_dim)
                samples.append((with_empty_cameras(item, policy), *draw))
            if samples and (len(samples) == size or frame == frames[-1]):
                items, noise, time_ = zip(*samples, strict=True)
                samples = []
                yield (
                    default_collate(list(items)),
                    torch.stack(noise).to(self._device),
                    torch.stack(time_).to(self._device),
                )


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
