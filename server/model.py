"""What is federated: the global model of a run."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from federation.data.statistics import Statistics

__all__ = ["GlobalModel"]

_NORMS_KEPT = 32  # rounds whose norms the next update is judged by


@dataclass
class GlobalModel:
    """What is federated: the trainable weights (fp32, CPU), and what every node must share with them."""

    weights: dict[str, Tensor]
    statistics: Statistics
    fingerprint: str  # of the frozen weights
    optimizer: torch.optim.Optimizer | None = None  # over `weights`; None adds each update as it is
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=_NORMS_KEPT))  # one of each round
    average: dict[str, Tensor] | None = None  # of the weights over the rounds, with evaluation.ema_decay

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Return parameter name -> shape."""
        return {name: tensor.shape for name, tensor in self.weights.items()}

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """Return the weights that are evaluated and exported: the average where there is one."""
        return self.average or self.weights
