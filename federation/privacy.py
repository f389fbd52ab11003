"""Differential privacy of a site: clipping and Gaussian noise. `privacy_budget.py` says what they are worth.

`mode = "local"` adds the noise at the site, so that nobody needs to be trusted; `"central"` adds it to the
sum of all updates, which needs less of it and a server that is trusted (McMahan et al., ICLR 2018). An update
is clipped to norm C, so adding or removing a site moves the sum by C at most.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

__all__ = ["add_noise", "clip"]


def clip(update: Iterable[Tensor], norm: float) -> None:
    """Scale `update` down in place, so that the L2 norm over all its tensors is at most `norm`."""
    tensors = list(update)
    # In double precision: the squares of values below 1e-23 are zeros in fp32, and would pass unclipped.
    norms = (torch.linalg.vector_norm(tensor, dtype=torch.float64).item() for tensor in tensors)
    actual = math.hypot(*norms)
    if actual > norm:
        torch._foreach_mul_(tensors, norm / actual)


def add_noise(tensor: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise to `tensor` in place and return it.

    It is seeded by the operating system, never by the run: whoever knows the seed can take the noise away.
    NumPy takes 128 bits for it; torch's generator on a CPU uses 32 of its seed, and those can be tried out.
    """
    noise = np.random.default_rng().standard_normal(tensor.shape, dtype=np.float32)
    return tensor.add_(torch.from_numpy(noise).mul_(deviation))
