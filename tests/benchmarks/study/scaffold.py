"""SCAFFOLD (Karimireddy et al., ICML 2020) on top of the project's training, to see whether it wins.

A site's control variate `c_i` is the mean of its gradients in its last round (option I of the paper, with the
gradients it took anyway), the server's `c` the mean of them all; each step's gradient becomes `g - c_i + c`.
Both would travel beside the weights: twice the bytes up and down.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from client.training import TrainingComponents, TrainingResult
from tests.benchmarks.in_process import Aggregate

__all__ = ["Scaffold"]


class Scaffold:
    """The control variates of all sites; `aggregate` takes the step of a round."""

    def __init__(self, aggregate: Aggregate) -> None:
        self._step = aggregate
        self._of_site: dict[str, list[Tensor]] = {}  # by parameter
        self._next: dict[str, list[Tensor]] = {}
        self._mean: list[Tensor] = []  # of all sites' variates

    def prepare(self, site: str, components: TrainingComponents) -> None:
        """Have the optimizer correct the gradients of the coming round of `site`."""
        parameters, steps = list(components.parameters.values()), components.steps
        taken = self._next[site] = [torch.zeros_like(parameter) for parameter in parameters]
        corrections: list[Tensor] | None = None
        if site in self._of_site:
            corrections = [c - own for c, own in zip(self._mean, self._of_site[site], strict=True)]

        def before_step(*_: Any) -> None:
            for number, parameter in enumerate(parameters):
                if parameter.grad is None:
                    continue
                taken[number].add_(parameter.grad, alpha=1 / steps)
                if corrections is not None:
                    parameter.grad.add_(corrections[number])

        components.optimizer.register_step_pre_hook(before_step)

    def aggregate(self, weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> None:
        """Take the step of a round; its variates are those of the next."""
        self._of_site |= self._next
        self._next = {}
        self._mean = [torch.stack(each).mean(0) for each in zip(*self._of_site.values(), strict=True)]
        self._step(weights, results)
