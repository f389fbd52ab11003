"""Train one arm of the comparison with the project's own training and aggregation, without Flower.

Flower moves bytes and changes none, so the in-process federation differs from `make arm` only in the wire's
codec (fp32 here) and the order of frames.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.recordings.samples import JoinedSamples
from client.training import TrainingComponents, TrainingResult, run_training_loop, setup_training_components
from federation.config import RunConfig
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.data.sample_cache import open_samples
from federation.policy.build import build_policy, build_processors, load_trainable, trainable_parameters
from federation.policy.folder import save_policy_folder
from server.aggregation.collector import apply_update, make_aggregator, make_server_optimizer
from tests.benchmarks.in_process import as_received

__all__ = ["Aggregate", "as_in_a_run", "train"]

Aggregate = Callable[[dict[str, Tensor], Sequence[TrainingResult]], None]
"""Takes the step of a round on the global weights in place, from what the learners made of them."""


def as_in_a_run(config: RunConfig, optimizer: torch.optim.Optimizer | None) -> Aggregate:
    """The aggregation that `config` names."""

    def aggregate(weights: dict[str, Tensor], results: Sequence[TrainingResult]) -> None:
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        aggregator = make_aggregator(config.aggregation, config.privacy, shapes)
        for result in results:
            aggregator.add(as_received(result.update), result.num_examples)
        apply_update(aggregator, weights, optimizer)

    return aggregate


def train(
    config: RunConfig,
    learners: Sequence[Sequence[str]],
    rounds: int,
    data: Path,
    scratch: Path,
    folder: Path,
    aggregate: Aggregate | None = None,
) -> list[float]:
    """Train and save the policy to `folder`; returns the training loss of each round.

    Args:
        learners: the sites whose data each learner pools. Several are a federation and start each round
            anew from their mean; one goes on where it was, as plain training does, with a batch per site.
        rounds: the learning rate's schedule is over them; 0 saves the policy as it is drawn.
        data: folder with a dataset for each site.
        scratch: folder for decoded samples and the stand-in VLM.
        aggregate: takes the step of a round; None: as a run does.
    """
    if len(learners) == 1:
        # Plain training, of pooled data on as many frames as the federation's sites together.
        batch_size = config.training.batch_size * len(learners[0])
        config = dataclasses.replace(
            config,
            training=dataclasses.replace(config.training, proximal_mu=0.0, batch_size=batch_size),
            aggregation=dataclasses.replace(config.aggregation, strategy="fedavg"),
        )
    policy = build_policy(config.policy, seed=config.run.seed, device=torch.device("cpu"), cache=scratch)
    sites = sorted({site for learner in learners for site in learner})
    statistics = merge_statistics([describe_dataset(data / site).statistics for site in sites])
    samples = {site: open_samples(data / site, policy.config, scratch / site, 2 * 10**9) for site in sites}
    for each in samples.values():
        each.fill(lambda: True)  # in the order of the recording: a third of what it costs at random
    pooled = ["+".join(learner) for learner in learners]
    datasets = {
        name: JoinedSamples([samples[site] for site in learner], policy.config, ())
        for name, learner in zip(pooled, learners, strict=True)
    }
    weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
    aggregate = aggregate or as_in_a_run(config, make_server_optimizer(config.aggregation, weights))
    kept: dict[str, dict[str, Any]] = {}  # optimizers' states, as with `training.keep_optimizer`
    going_on: TrainingComponents | None = None
    losses = []
    for round_ in range(1, rounds + 1):
        results: list[TrainingResult] = []
        for number, name in enumerate(pooled):
            if going_on is None:
                seed = 1000 * config.run.seed + 10 * round_ + number
                components = setup_training_components(
                    config, policy, weights, statistics, datasets[name], seed
                )
                if name in kept:
                    components.optimizer.load_state_dict(kept[name])
            else:
                components = going_on
                components.received = [weights[key].clone() for key in components.parameters]
            result = run_training_loop(components, round_, rounds, lambda *_: None)
            kept[name] = components.optimizer.state_dict()
            results.append(result)
            if len(learners) == 1:
                going_on = components
        aggregate(weights, results)
        losses.append(sum(result.policy_loss for result in results) / len(results))
        print(f"{' | '.join(pooled)}: round {round_}, training loss {losses[-1]:.4f}", flush=True)
    load_trainable(policy, weights)
    save_policy_folder(folder, policy, build_processors(policy, statistics), "Benchmark of closed loop.\n")
    return losses
