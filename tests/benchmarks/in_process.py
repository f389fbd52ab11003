"""A federation in this process: the project's own training and aggregation, without Flower.

Flower moves bytes and changes none, so a round here differs from one of a run only in the wire's codec (fp32,
if a benchmark names no other) and in the order of frames.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from client.recordings.samples import JoinedSamples
from client.round import seed_of_round
from client.training import TrainingComponents, TrainingResult, run_training_loop, setup_training_components
from federation.config import RunConfig
from federation.data.sample_cache import SampleCache
from federation.data.statistics import Statistics
from federation.policy.build import load_trainable
from federation.wire.payload import Header, Payload, open_payload, pack_tensors
from server.aggregation.collector import apply_update, make_aggregator, make_server_optimizer
from server.join_answer import Node
from server.sampling import sample_nodes

__all__ = ["Aggregate", "Learner", "Prepare", "as_in_a_run", "as_received", "federate"]

Aggregate = Callable[[dict[str, Tensor], Mapping[str, TrainingResult]], None]
"""Takes the step of a round on the global weights in place, from what the learners made of them."""

Prepare = Callable[[str, TrainingComponents], None]
"""Sees what a learner, by its name, is about to train a round with."""


@dataclass(frozen=True)
class Learner:
    """What one learner trains on; the statistics normalise it."""

    samples: JoinedSamples | SampleCache
    statistics: Statistics


def federate(
    config: RunConfig,
    policy: SmolVLAPolicy,
    weights: dict[str, Tensor],
    learners: Mapping[str, Learner],
    aggregate: Aggregate | None = None,
    prepare: Prepare | None = None,
) -> Iterator[dict[str, TrainingResult]]:
    """Train the rounds of `config`; yield after each what every learner made of it, by its name.

    Several learners start each round from `weights`; a single one goes on where it was, as in plain training.

    Args:
        weights: the global trainable ones, fp32; each round takes its step on them in place.
        aggregate: takes the step; None: as a run does.
        prepare: called before a learner trains.
    """
    aggregate = aggregate or as_in_a_run(config)
    nodes = {number: Node(number, name, 0, 0, 0, (), {}) for number, name in enumerate(learners)}
    kept: dict[str, dict[str, Any]] = {}  # optimizers' states
    going_on: TrainingComponents | None = None
    for round_ in range(1, config.run.num_rounds + 1):
        results: dict[str, TrainingResult] = {}
        for node in sample_nodes(nodes, config.federation, config.run.seed, round_):
            name, learner = node.name, learners[node.name]
            if going_on is None:
                seed = seed_of_round(config.run.seed, name, round_)
                components = setup_training_components(
                    config, policy, weights, learner.statistics, learner.samples, seed
                )
                if name in kept:
                    components.optimizer.load_state_dict(kept[name])
            else:
                components = going_on
                load_trainable(policy, weights)
                components.received = [weights[key].clone() for key in components.parameters]
            if prepare is not None:
                prepare(name, components)
            results[name] = run_training_loop(components, round_, config.run.num_rounds, lambda *_: None)
            if config.training.keep_optimizer:
                kept[name] = components.optimizer.state_dict()
            if len(learners) == 1:
                going_on = components
        aggregate(weights, results)
        yield results


def as_in_a_run(config: RunConfig, codec: str = "fp32") -> Aggregate:
    """Return the aggregation that `config` names, of updates sent with `codec` and error feedback.

    It is of one federation: it keeps the server's optimizer and what the codec lost of each update.
    """
    optimizers: list[torch.optim.Optimizer | None] = []
    lost: dict[str, dict[str, Tensor]] = {}

    def aggregate(weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> None:
        if not optimizers:
            optimizers.append(make_server_optimizer(config.aggregation, weights))
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        aggregator = make_aggregator(config.aggregation, config.privacy, shapes)
        for name, result in results.items():
            before = lost.get(name, {})
            update = {key: tensor + before.get(key, 0) for key, tensor in result.update.items()}
            received = as_received(update, codec)
            lost[name] = {key: update[key] - tensor for key, tensor in received.tensors()}
            aggregator.add(received, result.num_examples)
        apply_update(aggregator, weights, optimizers[0])

    return aggregate


def as_received(update: Mapping[str, Tensor], codec: str = "fp32") -> Payload:
    """Return `update` packed and opened again."""
    shapes = {name: tensor.shape for name, tensor in update.items()}
    record, header, sealed = pack_tensors(update.items(), Header(codec, "benchmark", 1, ""))
    return open_payload(record, header, shapes, sealed)
