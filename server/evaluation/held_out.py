"""Server-side evaluation: how good the global weights are on data that no node has seen.

What is measured is in `federation/policy/held_out.py`.
"""

import hashlib
import math
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from federation.data.cameras import CameraChoice
from federation.data.description import DatasetDescription, describe_dataset
from federation.data.loading import Frames, open_dataset
from federation.data.statistics import Statistics
from federation.data.tables import read_episodes
from federation.errors import FederationError
from federation.files import files_below
from federation.policy.build import build_processors, load_trainable
from federation.policy.held_out import measure_policy, predict_episode
from federation.settings import EvaluationConfig
from server.evaluation.decoded_frames import DecodedFrames

__all__ = ["DivergedError", "Evaluator", "measure"]

_VIDEO_END_BYTES = 1 << 20
_MAX_KEPT_BYTES = 10**9  # of decoded frames, of all datasets together


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
        files = [path for part in ("meta", "data", "videos") for path in files_below(root / part)]
        for path in sorted(files):
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
        self._processors = build_processors(policy, statistics)
        self._datasets: dict[str, DecodedFrames] = {}
        self._shown: list[int] = []  # of the first dataset the first episode's frames, for `predict`
        self._fps: dict[str, int] = {}
        wanted = [feature.removeprefix(f"{OBS_IMAGES}.") for feature in policy.config.image_features]
        choice = CameraChoice(wanted, may_lack=len(wanted))
        for name, root in datasets.items():
            description = (descriptions or {}).get(name) or describe_dataset(root, choice)
            self._fps[name] = description.fps
            episodes = description.usable_episodes
            if config.eval_mode == "quick":
                episodes = episodes[: config.quick_episodes]
            cameras, room = description.used_cameras, _MAX_KEPT_BYTES // len(datasets)
            frames = open_dataset(root, policy.config, episodes, cameras)
            self._shown = self._shown or _frames_of(root, episodes[0], frames)
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

    def predict(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return `recorded` and `predicted` actions, (T, 6) each, of the first episode of the first dataset.

        Raises:
            DECODE_ERRORS: a frame of it cannot be decoded.
        """
        load_trainable(self._policy, weights)
        self._policy.eval()
        name, recorded = next(iter(self._datasets.items()))
        truth, guesses = predict_episode(self._policy, self._processors, recorded, name, self._shown)
        return {"dataset": name, "fps": self._fps[name], "recorded": truth, "predicted": guesses}

    def _evaluate_dataset(self, name: str) -> dict[str, Any]:
        recorded, settings = self._datasets[name], self._config
        frames = range(0, len(recorded), settings.frame_stride)
        return measure_policy(self._policy, self._processors, recorded, name, frames, settings.batch_size)


def _frames_of(root: Path, episode: int, frames: Frames) -> list[int]:
    """Return where the frames of `episode` are among those that were opened, in the order of time."""
    row = next(row for row in read_episodes(root) if row["episode_index"] == episode)
    numbers = range(int(row["dataset_from_index"]), int(row["dataset_to_index"]))
    return [frames.position(number) for number in numbers]
