"""From the updates of a round to the change of the global weights.

    aggregator = make_aggregator(config.aggregation, config.privacy, shapes)
    aggregator.add(update, num_examples)    # as each arrives
    aggregator.aggregate()                  # (name, aggregated update) for every parameter

and a server optimizer (`make_server_optimizer`) takes the step. The default, `WeightedMean` and no optimizer,
is FedAvg's and FedProx's: it folds updates in as they arrive, in one fp32 accumulator of the size of the
trainable parameters, whatever the number of nodes. With two nodes its result does not depend on who answers
first; with more it does in the last bit of fp32.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from federation.privacy import add_noise
from federation.settings import AggregationConfig, PrivacyConfig
from federation.wire.payload import Payload
from server.aggregation.robust import median, multi_krum, trimmed_mean

__all__ = ["Aggregator", "WeightedMean", "apply_update", "make_aggregator", "make_server_optimizer"]

_FEDADAM_EPS = 1e-3  # Reddi et al., ICLR 2021, section 5: tau


class Aggregator(Protocol):
    """Collects the verified updates of one round."""

    weighs: bool  # whether an update of more examples counts for more

    def add(self, update: Payload, num_examples: float, share: float = 1.0) -> None:
        """Take one update, trained on `num_examples` frames, or one that counts like so many.

        Args:
            share: of the round's usual steps that it was trained for; more than 1 where a site claims more.
        """

    def aggregate(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the aggregated update of every parameter, fp32; nothing if none was added. Call it once."""


class WeightedMean:
    """`sum(n_k * update_k) / sum(n_k)` (McMahan et al., AISTATS 2017, alg. 1), streaming.

    Updates of different numbers of steps are divided by the root of these, and the mean is multiplied by the
    mean root: fewer steps count for no less. FedNova (Wang et al., NeurIPS 2020, eq. 6) divides by the number
    itself, as plain gradient descent asks for; the updates of AdamW grow more slowly, and dividing them so
    ends in divergence (`tests/benchmarks/uneven/README.md`).

    Args:
        shapes: parameter name -> shape.
        clip_norm: an update with a larger L2 norm, divided by that root, is scaled down to it; 0 for never.
    """

    weighs = True

    def __init__(self, shapes: Mapping[str, torch.Size], clip_norm: float = 0.0) -> None:
        self._sums = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self._weight = self._work = 0.0
        self._clip_norm = clip_norm

    def add(self, update: Payload, num_examples: float, share: float = 1.0) -> None:
        """Fold in one update, decoding a chunk at a time."""
        root = math.sqrt(share)
        factor = num_examples / root
        if self._clip_norm:
            factor *= min(1.0, self._clip_norm / max(update.norm() / root, 1e-12))
        for name, start, values in update.parts():
            # Not add_(alpha=...): that fuses the product into the sum, and then even two nodes give
            # other bits in another order of arrival.
            self._sums[name].view(-1)[start : start + len(values)].add_(values.mul_(factor))
        self._weight += num_examples
        self._work += num_examples * min(root, 1.0)  # whoever claims more than all does not lengthen the mean

    def aggregate(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the mean of what was added."""
        if self._weight:
            for name, total in self._sums.items():
                yield name, total.div_(self._weight).mul_(self._work / self._weight)


class PrivateMean:
    """The unweighted mean of clipped updates with Gaussian noise (McMahan et al., ICLR 2018, alg. 1).

    Examples do not weigh: a site that claims many would count for more than the noise hides.
    """

    weighs = False

    def __init__(self, shapes: Mapping[str, torch.Size], config: PrivacyConfig) -> None:
        self._mean = WeightedMean(shapes, config.clip_norm)
        self._deviation, self._count = config.noise_multiplier * config.clip_norm, 0

    def add(self, update: Payload, num_examples: float, share: float = 1.0) -> None:
        """Fold in one update."""
        self._mean.add(update, 1)
        self._count += 1

    def aggregate(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the noisy mean of what was added."""
        for name, mean in self._mean.aggregate():
            yield name, add_noise(mean, self._deviation / self._count)


class Robust:
    """Holds the updates of a round, encoded, for a rule that must see all of them."""

    weighs = False

    def __init__(self, config: AggregationConfig) -> None:
        self._config = config
        self._updates: list[Payload] = []

    def add(self, update: Payload, num_examples: float, share: float = 1.0) -> None:
        """Keep the update; examples do not weigh in a robust rule."""
        self._updates.append(update)

    def aggregate(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the configured rule makes of the updates."""
        if not self._updates:
            return iter(())
        if self._config.method == "median":
            return median(self._updates)
        if self._config.method == "trimmed_mean":
            return trimmed_mean(self._updates, self._config.trim_fraction)
        return multi_krum(self._updates, self._config.byzantine)


def make_aggregator(
    config: AggregationConfig, privacy: PrivacyConfig, shapes: Mapping[str, torch.Size]
) -> Aggregator:
    """Return the aggregator of one round that the configuration names."""
    if privacy.mode == "central":
        return PrivateMean(shapes, privacy)
    if config.method == "mean":
        return WeightedMean(shapes, config.clip_norm)
    return Robust(config)


def make_server_optimizer(
    config: AggregationConfig, weights: Mapping[str, Tensor]
) -> torch.optim.Optimizer | None:
    """Return the server's optimizer over the whole run, or None to add the aggregated update as it is.

    FedAvgM (Hsu et al., 2019) and FedAdam (Reddi et al., ICLR 2021) are PyTorch's SGD with momentum and
    Adam, with the negative update as the gradient. The momentum is Nesterov's, as in DiLoCo (Douillard et
    al., 2023).
    """
    if config.strategy in ("fedprox", "fedavg"):
        return None
    rate, momentum = config.server_learning_rate, config.server_momentum
    if config.strategy == "fedavgm":
        return torch.optim.SGD(weights.values(), lr=rate, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.Adam(weights.values(), lr=rate, betas=(momentum, 0.99), eps=_FEDADAM_EPS)


def apply_update(
    aggregator: Aggregator, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None
) -> float:
    """Take the step of a round on the global `weights` in place.

    Returns:
        The L2 norm of that step; 0.0 if there was no update, then nothing is changed.
    """
    norms = []
    for name, update in aggregator.aggregate():
        step = update
        if optimizer is None:
            weights[name].add_(update)
        else:
            before = weights[name].clone()
            weights[name].grad = update.neg_()
            optimizer.step()  # it passes over the parameters without a gradient: all but this one
            optimizer.zero_grad()
            step = before.sub_(weights[name])
        norms.append(torch.linalg.vector_norm(step).item())
    return math.hypot(*norms)
