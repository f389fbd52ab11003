"""Differential privacy of a site: clipping, Gaussian noise, and what the noise is worth.

What is protected is a whole site: two runs of which one has a site's updates and the other has them zeroed
out end alike up to (epsilon, delta). Adding or removing a site moves the sum by C at most; other data at a
site that stays can move it by 2 * C, which the same epsilon does not cover. Who was asked is no secret.
Every round in which a site is asked is one release of a Gaussian mechanism: an update of norm at most C,
with noise of deviation z * C. `mode = "local"` adds the noise at the site, so that nobody needs to be
trusted; `"central"` adds it to the sum of all updates, which needs less of it and a server that is trusted
(McMahan et al., ICLR 2018).
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

__all__ = ["add_noise", "clip", "epsilon"]

_MOST_EPSILON = 1e6


def clip(update: Iterable[Tensor], norm: float) -> None:
    """Scale `update` down in place, so that the L2 norm over all its tensors is at most `norm`."""
    tensors = list(update)
    actual = math.hypot(*(torch.linalg.vector_norm(tensor).item() for tensor in tensors))
    if actual > norm:
        torch._foreach_mul_(tensors, norm / actual)


def add_noise(tensor: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise to `tensor` in place and return it.

    It is seeded by the operating system, never by the run: whoever knows the seed can take the noise away.
    NumPy takes 128 bits for it; torch's generator on a CPU uses 32 of its seed, and those can be tried out.
    """
    noise = np.random.default_rng().standard_normal(tensor.shape, dtype=np.float32)
    return tensor.add_(torch.from_numpy(noise).mul_(deviation))


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """The smallest epsilon of that many releases at `delta`; infinite beyond a million.

    Releases of Gaussian mechanisms compose exactly to one with the noise z / sqrt(releases) (Dong, Roth and
    Su, JRSSB 2022), whose delta for a given epsilon is known in closed form (Balle and Wang, ICML 2018,
    theorem 8). That a site is not asked in every round is not counted in its favour.

    Args:
        noise_multiplier: deviation of the noise over the clipping norm.
    """
    if releases == 0:
        return 0.0
    low, high = 0.0, 1.0
    while _delta(noise_multiplier, releases, high) > delta:
        low, high = high, 2 * high
        if high > _MOST_EPSILON:
            return math.inf
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(noise_multiplier, releases, middle) > delta else (low, middle)
    return high


def _delta(noise_multiplier: float, releases: int, epsilon_: float) -> float:
    """Balle and Wang's delta; sensitivity 1, deviation `noise_multiplier / sqrt(releases)`."""
    ratio = math.sqrt(releases) / noise_multiplier
    tail = _normal_tail(ratio / 2 + epsilon_ / ratio)
    # Where the tail is zero to double precision the term is left out: delta is then too large.
    subtracted = math.exp(epsilon_ + math.log(tail)) if tail > 0 else 0.0
    return _normal_tail(epsilon_ / ratio - ratio / 2) - subtracted


def _normal_tail(x: float) -> float:
    """Probability that a standard normal exceeds `x`, exact far out too."""
    return math.erfc(x / math.sqrt(2)) / 2
