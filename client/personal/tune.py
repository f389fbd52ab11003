"""Plain fine-tuning of a policy on this site's recordings; nothing of it leaves the site."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tqdm import tqdm

from client.recordings.held import Holdings
from client.recordings.samples import open_recorded_samples
from client.training import StepMetrics, run_training_loop, setup_with_processor
from federation.policy.build import Processors, trainable_parameters
from federation.policy.held_out import measure_policy
from federation.settings import TrainingConfig

__all__ = ["measure_on", "steps_of", "tune"]

_PASSES = 4  # over the frames
_MIN_STEPS = 100
_WARM_UP_SHARE = 0.1
_MEASURED_FRAMES = 200


def steps_of(training: TrainingConfig, held: Holdings) -> int:
    """Return how many steps a policy is tuned for on `held`, if its owner does not say."""
    frames = sum(
        part.description.frames * len(part.description.usable_episodes) // part.description.episodes
        for part in held.parts
    )
    return max(_MIN_STEPS, math.ceil(_PASSES * frames / training.frames_in_step))


def tune(
    policy: SmolVLAPolicy,
    processors: Processors,
    held: Holdings,
    training: TrainingConfig,
    scratch: Path,
    max_bytes: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Train `policy` in place for `training.local_steps`; return its trained weights, fp32 on the CPU.

    The normalisation stays that of the policy.

    Args:
        training: batch size, learning rate and so on; the schedule is a cosine over these steps.
        scratch: for decoded frames, of which `max_bytes` are kept.

    Raises:
        DatasetError: too many frames in a row cannot be decoded.
        TrainingError: the loss is NaN or infinite.
    """
    samples = open_recorded_samples(held, policy.config, scratch, max_bytes)
    before = {name: p.detach().float().cpu().clone() for name, p in trainable_parameters(policy).items()}
    steps = training.local_steps
    settings = dataclasses.replace(
        training,
        local_epochs=0.0,
        proximal_mu=0.0,
        schedule="cosine",
        warmup_steps=int(_WARM_UP_SHARE * steps),
    )
    components = setup_with_processor(settings, policy, before, processors[0], samples, seed)
    with tqdm(total=steps, desc="personalise", unit="step", disable=None) as bar:

        def on_step(step: int, metrics: StepMetrics) -> None:
            bar.set_postfix(loss=f"{metrics.policy_loss:.4f}", refresh=False)
            bar.update()

        result = run_training_loop(components, 1, 1, on_step)
    policy.eval()
    return {name: before[name] + change for name, change in result.update.items()}


def measure_on(
    policy: SmolVLAPolicy, processors: Processors, held: Holdings, batch_size: int, scratch: Path
) -> dict[str, Any]:
    """Return policy loss, action error and number of frames of `policy` on the episodes of `held`."""
    samples = open_recorded_samples(held, policy.config, scratch, 0)
    frames = range(0, len(samples), max(1, len(samples) // _MEASURED_FRAMES))
    return measure_policy(policy, processors, samples, "personal", frames, batch_size)
