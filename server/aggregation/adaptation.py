"""What a round learns from the one before it: FedProx's mu, an average, a way back.

Each is a function of the configuration and of what the record holds, so a resumed run adapts as one that was
never interrupted. All of it but the way back is off by default. Mu follows the sites' losses, which have no
noise: with `privacy.mode` the configuration refuses that.
"""

import math
import statistics
from collections.abc import Mapping

import torch
from torch import Tensor

from federation.config import RunConfig
from server.run.round_record import RoundRecord

__all__ = ["average_weights", "is_spike", "proximal_mu"]

_WIDE_SPREAD = 0.5  # of the sites' policy losses: their usual distance from the median, over that
_NARROW_SPREAD = 0.25
_MAX_TIMES_MU = 64.0
_AVERAGE_BEGINS = 10.0


def proximal_mu(config: RunConfig, previous: RoundRecord | None) -> float:
    """Return FedProx's mu of the next round; `previous` is the one that its weights come from (None: none).

    With `adapt_proximal_mu` it doubles after a round in which the sites' losses lay far apart, so that none
    of them pulls the weights its own way, and halves again, down to the configured value, once they agree
    (in the spirit of Li et al., MLSys 2020, section 5.3.2).
    """
    settings = config.training
    if config.aggregation.strategy == "fedavg":
        return 0.0
    if not settings.adapt_proximal_mu or previous is None or previous.proximal_mu is None:
        return settings.proximal_mu
    mu = previous.proximal_mu
    losses = [float(metrics["policy_loss"]) for metrics in previous.clients.values()]
    if not losses or (middle := statistics.median(losses)) <= 0:
        return mu
    # Not the standard deviation: one site that reports a huge loss would set everybody's mu.
    spread = statistics.median(abs(loss - middle) for loss in losses) / middle
    if spread > _WIDE_SPREAD:
        return min(2 * mu, _MAX_TIMES_MU * settings.proximal_mu)
    return max(mu / 2, settings.proximal_mu) if spread < _NARROW_SPREAD else mu


@torch.no_grad()
def average_weights(
    average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float, round_: int
) -> None:
    """Set `average` to `d * average + (1 - d) * weights`, in place, after `round_` (from 1).

    `d` rises from 2/11 in round 1 to `decay`, so that the weights before training are soon forgotten.
    """
    d = min(decay, (1 + round_) / (_AVERAGE_BEGINS + round_))
    for name, tensor in average.items():
        tensor.lerp_(weights[name], 1 - d)


def is_spike(policy_loss: float, best: float, ratio: float) -> bool:
    """Return whether an evaluation is so bad that the weights go back to the best round.

    That is NaN or infinity, or, unless `ratio` is 0, beyond `ratio` times the loss of the best round.
    """
    return not math.isfinite(policy_loss) or 0 < ratio * best < policy_loss
