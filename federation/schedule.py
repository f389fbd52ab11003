"""The learning rate over the whole federated run.

A schedule that began anew in each round would never leave its warm-up. So the step counted here is the
global one: `(round - 1) * local_steps + step in the round`. With `local_epochs` each site takes steps of its
own number, and they count as their share of `local_steps`: at the same point of a round all sites are at the
same learning rate. A site trains by it, and the server knows from it how far training can go in a round.
"""

import math
from functools import lru_cache

from federation.settings import TrainingConfig

__all__ = ["global_step", "highest_rate", "learning_rate"]


def global_step(round_: int, step: int, own_steps: int, local_steps: int) -> float:
    """Return the step counted over the run, at step `step` (from 0) of a site's `own_steps` in `round_`."""
    return (round_ - 1) * local_steps + step * local_steps / own_steps


def learning_rate(step: float, config: TrainingConfig, num_rounds: int) -> float:
    """Learning rate of global step `step` (from 0).

    `cosine` falls from `learning_rate` to `min_learning_rate` at the last step of the run (Loshchilov and
    Hutter, ICLR 2017, eq. 5); `warm_restarts` does so every `restart_rounds` rounds; `constant` stays. The
    first `warmup_steps` of the run rise linearly.
    """
    peak, low = config.learning_rate, config.min_learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return peak
    if config.schedule == "warm_restarts":
        length = config.restart_rounds * config.local_steps
        position = step % length / length
    else:
        length = num_rounds * config.local_steps - config.warmup_steps
        position = min(1.0, (step - config.warmup_steps) / max(1, length - 1))
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * position))


@lru_cache(maxsize=2)
def highest_rate(round_: int, config: TrainingConfig, num_rounds: int) -> float:
    """Return the highest learning rate in `round_` (from 1) and the one before, whose residuals it sends."""
    steps = range(max(0, round_ - 2) * config.local_steps, round_ * config.local_steps)
    return max(learning_rate(step, config, num_rounds) for step in steps)
