"""The weighted mean of the updates, folded in as they arrive.

One fp32 accumulator the size of the trainable parameters, whatever the number of nodes: memory does not
grow with the federation. With two nodes the result does not depend on who answers first; with more it does
in the last bit of fp32.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["WeightedMean"]


class WeightedMean:
    """`sum(n_k * update_k) / sum(n_k)` over the updates added so far (McMahan et al., AISTATS 2017, alg. 1).

    Args:
        shapes: parameter name -> shape.
    """

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self._sums = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self._weight = 0

    def add(self, update: Iterable[tuple[str, Tensor]], num_examples: int) -> None:
        """Fold in one verified update, weighted by the frames trained on.

        Args:
            update: name and fp32 tensor of every parameter; one at a time is in memory.
        """
        for name, tensor in update:
            # Not add_(alpha=...): that fuses the product into the sum, and then even two nodes give
            # other bits in another order of arrival.
            self._sums[name].add_(tensor * num_examples)
        self._weight += num_examples

    def apply_to(self, weights: Mapping[str, Tensor]) -> float:
        """Add the mean to the global `weights` in place and return its L2 norm; 0.0 if nothing was added."""
        if self._weight == 0:
            return 0.0
        squared_norm = 0.0
        for name, total in self._sums.items():
            mean = total.div_(self._weight)
            squared_norm += mean.double().square().sum().item()
            weights[name].add_(mean)
        return squared_norm**0.5
