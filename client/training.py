"""One round of local training: FedProx on this site's data, from the weights the server sent.

Read it downwards: `setup_training_components` builds everything from the run configuration,
`run_training_loop` takes the round's steps, each a `run_training_step`. A step is LeRobot's own training step
with the proximal gradient added; with `proximal_mu = 0` the two give the same weights bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from client.fedprox import add_proximal_gradient
from client.frames import SKIPPED_FRAMES, FrameStream, load_batches
from client.recordings.samples import JoinedSamples
from federation.config import RunConfig
from federation.data.sample_cache import SampleCache
from federation.data.statistics import Statistics
from federation.errors import FederationError, RejectionCode
from federation.policy.build import (
    autocast,
    build_processors,
    load_trainable,
    round_frozen,
    trainable_parameters,
)
from federation.schedule import global_step, learning_rate
from federation.settings import TrainingConfig

__all__ = [
    "StepMetrics",
    "TrainingComponents",
    "TrainingError",
    "TrainingResult",
    "halve_if_exact",
    "run_training_loop",
    "run_training_step",
    "setup_training_components",
    "setup_with_processor",
]


class TrainingError(FederationError):
    """Local training went wrong in a way that must not reach the global weights."""

    code = RejectionCode.NON_FINITE


@dataclass
class TrainingComponents:
    """Everything a round of local training works on."""

    policy: SmolVLAPolicy
    preprocessor: Any
    optimizer: torch.optim.AdamW
    samples: SampleCache | JoinedSamples
    batches: Iterator[dict[str, Any]]
    parameters: dict[str, torch.nn.Parameter]  # the trainable ones
    received: list[Tensor]  # w_t: their values at the start of the round, in the same order; fp32 or bf16
    config: TrainingConfig
    steps: int  # of this site in the round
    device: torch.device


@dataclass(frozen=True)
class StepMetrics:
    """Losses of one step; `grad_norm` is the norm of the whole gradient before clipping."""

    policy_loss: float
    proximal_loss: float
    grad_norm: float


@dataclass(frozen=True)
class TrainingResult:
    """What a round of local training leaves behind. Losses and norms are means over its steps."""

    update: dict[str, Tensor]  # trained minus received weights, fp32
    num_examples: int  # frames trained on
    policy_loss: float
    proximal_loss: float
    grad_norm: float
    update_norm: float
    learning_rate: float  # of the last step
    skipped_frames: int
    train_seconds: float
    data_seconds: float  # of train_seconds, waiting for batches


def setup_training_components(
    config: RunConfig,
    policy: SmolVLAPolicy,
    weights: Mapping[str, Tensor],
    statistics: Statistics,
    samples: SampleCache | JoinedSamples,
    seed: int,
) -> TrainingComponents:
    """Load `weights` into `policy` and build data loader, processor and optimizer around it.

    On CUDA the frozen weights are rounded where that changes nothing (`round_frozen`): a fingerprint of
    `policy` is taken before.

    Args:
        weights: the global trainable weights `w_t`, fp32 on the CPU. Not copied: leave them as they are.
        statistics: the federation's normalisation.
        samples: of this site's recordings.
        seed: draws the order of the frames and, through torch's global generator, noise and time samples.

    Raises:
        PolicyError: `weights` do not fit.
    """
    preprocessor, _ = build_processors(policy, statistics)
    return setup_with_processor(config.training, policy, weights, preprocessor, samples, seed)


def setup_with_processor(
    settings: TrainingConfig,
    policy: SmolVLAPolicy,
    weights: Mapping[str, Tensor],
    preprocessor: Any,
    samples: SampleCache | JoinedSamples,
    seed: int,
) -> TrainingComponents:
    """Do what `setup_training_components` does, with a processor that is there already."""
    torch.manual_seed(seed)
    device = next(policy.parameters()).device
    load_trainable(policy, weights)
    if device.type == "cuda":
        round_frozen(policy)
    parameters = trainable_parameters(policy)
    return TrainingComponents(
        policy=policy,
        preprocessor=preprocessor,
        optimizer=_build_optimizer(policy, parameters, settings, device),
        samples=samples,
        batches=load_batches(
            FrameStream(samples, seed=seed, name=samples.name, shares=samples.shares),
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            pin_memory=device.type == "cuda",
        ),
        parameters=parameters,
        received=[_received(weights[name], device) for name in parameters],
        config=settings,
        steps=settings.steps_in_round(len(samples)),
        device=device,
    )


def _build_optimizer(
    policy: SmolVLAPolicy,
    parameters: Mapping[str, torch.nn.Parameter],
    settings: TrainingConfig,
    device: torch.device,
) -> torch.optim.AdamW:
    """Return AdamW as LeRobot sets it up; on CUDA fused: one pass over the weights, and no copies of them."""
    return torch.optim.AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=policy.config.optimizer_betas,
        eps=policy.config.optimizer_eps,
        weight_decay=settings.weight_decay,
        fused=True if device.type == "cuda" else None,  # None: as torch chooses
    )


def _received(weight: Tensor, device: torch.device) -> Tensor:
    """Return `weight` on `device`, so that no step copies it; on a CPU it is the message's own tensor."""
    return halve_if_exact(weight.to(device)) if device.type == "cuda" else weight.to(device)


def halve_if_exact(received: Tensor) -> Tensor:
    """Return `received` (fp32) in bf16 if nothing is lost, as after a download in bf16; else as it is."""
    rounded = received.bfloat16()
    return rounded if torch.equal(rounded.float(), received) else received


def run_training_step(components: TrainingComponents, *batches: dict[str, Any]) -> StepMetrics:
    """Take one optimizer step on preprocessed batches, as on one that holds them all.

    LeRobot's loss is a mean over the actions of a batch that lie within their episodes: the batches weigh by
    the number of these.

    Raises:
        TrainingError: the policy loss is NaN or infinite.
    """
    components.policy.train()
    policy_loss = 0.0
    for batch, share in zip(batches, _shares_of_actions(batches), strict=True):
        with autocast(components.device):
            loss, _ = components.policy.forward(batch)
        (loss * share).backward()
        policy_loss += loss.item() * share
    parameters = list(components.parameters.values())
    proximal_loss = add_proximal_gradient(parameters, components.received, components.config.proximal_mu)
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, components.config.grad_clip_norm)
    metrics = StepMetrics(policy_loss, proximal_loss.item(), grad_norm.item())
    if not math.isfinite(metrics.policy_loss) or not math.isfinite(metrics.grad_norm):
        raise TrainingError(
            f"policy loss is {metrics.policy_loss}, gradient norm {metrics.grad_norm}: "
            "lower training.learning_rate or look for extreme values in the dataset"
        )
    components.optimizer.step()
    components.optimizer.zero_grad()
    return metrics


def _shares_of_actions(batches: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the share of each batch in the actions of all; they add up to 1."""
    if len(batches) == 1:
        return [1.0]
    counts = [float((~batch["action_is_pad"]).sum()) for batch in batches]
    return [count / sum(counts) for count in counts]


def run_training_loop(
    components: TrainingComponents,
    round_: int,
    num_rounds: int,
    on_step: Callable[[int, StepMetrics], None],
) -> TrainingResult:
    """Train the steps of round `round_` (from 1) and return the update.

    Args:
        on_step: called after each step with the number of steps done and its metrics.

    Raises:
        DatasetError: too many frames in a row cannot be decoded.
        TrainingError: the loss is NaN or infinite.
    """
    config = components.config
    started = time.monotonic()
    history: list[StepMetrics] = []
    num_examples = skipped_frames = 0
    data_seconds = 0.0
    rate = config.learning_rate
    for step in range(components.steps):
        asked = time.monotonic()
        batches = [next(components.batches) for _ in range(config.gradient_accumulation_steps)]
        data_seconds += time.monotonic() - asked
        skipped_frames += sum(int(batch.pop(SKIPPED_FRAMES).sum()) for batch in batches)
        num_examples += sum(len(batch["action"]) for batch in batches)
        counted = global_step(round_, step, components.steps, config.local_steps)
        rate = learning_rate(counted, config, num_rounds)
        for group in components.optimizer.param_groups:
            group["lr"] = rate
        history.append(run_training_step(components, *map(components.preprocessor, batches)))
        on_step(step + 1, history[-1])
    update = _update(components)
    steps = len(history)
    return TrainingResult(
        update=update,
        num_examples=num_examples,
        policy_loss=sum(m.policy_loss for m in history) / steps,
        proximal_loss=sum(m.proximal_loss for m in history) / steps,
        grad_norm=sum(m.grad_norm for m in history) / steps,
        update_norm=math.sqrt(sum(u.double().square().sum().item() for u in update.values())),
        learning_rate=rate,
        skipped_frames=skipped_frames,
        train_seconds=time.monotonic() - started,
        data_seconds=data_seconds,
    )


def _update(components: TrainingComponents) -> dict[str, Tensor]:
    """Return trained minus received weights, fp32 on the CPU."""
    pairs = zip(components.parameters.items(), components.received, strict=True)
    return {name: (parameter.detach() - received).cpu() for (name, parameter), received in pairs}
