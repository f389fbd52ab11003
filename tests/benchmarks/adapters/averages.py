"""The mean of the sites' products B A, which averaging A and B each by itself misses: its size, and a way to
take it all the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from client.training import TrainingResult
from tests.benchmarks.in_process import Aggregate

__all__ = ["measure_error", "refactor"]

_A, _B = ".lora_A.", ".lora_B."


def measure_error(aggregate: Aggregate, note: Callable[[float], None]) -> Aggregate:
    """Return `aggregate` that also notes the error of its products, over the exact mean's step."""

    def measured(weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> None:
        names = [name for name in weights if _B in name and name.replace(_B, _A) in weights]
        exact = {name: _mean_product(name, weights, results) for name in names}
        before = {name: weights[name] @ weights[name.replace(_B, _A)] for name in names}
        aggregate(weights, results)
        errors = [weights[n] @ weights[n.replace(_B, _A)] - exact[n] for n in names]
        steps = [exact[name] - before[name] for name in names]
        if names:
            note(_norm(errors) / max(_norm(steps), 1e-30))

    return measured


def refactor(weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> None:
    """Take the mean of the products, and the two factors of this rank that come nearest to it.

    The factors have another basis in each round; the sites' moments of the round before have the old one.
    """
    for name in [name for name in weights if _B in name]:
        other = name.replace(_B, _A)
        rank = len(weights[other])
        left, values, right = torch.linalg.svd(_mean_product(name, weights, results), full_matrices=False)
        root = torch.zeros(rank)
        root[: len(values)] = values[:rank].sqrt()
        weights[name].zero_()[:, : len(values)] = left[:, :rank] * root[: len(values)]
        weights[other].zero_()[: len(values)] = root[: len(values), None] * right[:rank]


def _mean_product(name: str, weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> Tensor:
    """Return the mean of B A over the sites, weighted by their frames; `name` is that of B."""
    other = name.replace(_B, _A)
    frames = sum(result.num_examples for result in results.values())
    total = torch.zeros(len(weights[name]), weights[other].shape[1])
    for result in results.values():
        product = (weights[name] + result.update[name]) @ (weights[other] + result.update[other])
        total.add_(product, alpha=result.num_examples / frames)
    return total


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(tensor).item() for tensor in tensors))
