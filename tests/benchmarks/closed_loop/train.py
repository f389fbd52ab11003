"""Train one arm of the comparison in this process."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from torch.utils.data import Subset

from client.recordings.samples import JoinedSamples
from federation.config import RunConfig
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.data.sample_cache import SampleCache, open_samples
from federation.data.tables import read_episodes
from federation.policy.build import build_policy, build_processors, load_trainable, trainable_parameters
from federation.policy.folder import save_policy_folder
from tests.benchmarks.in_process import Aggregate, Learner, Prepare, as_in_a_run, federate

__all__ = ["FULL_RATE", "at_rate", "train"]


def at_rate(rate: float) -> dict[str, Any]:
    """Return the settings of a learning rate that ends at a twentieth of itself."""
    return {"training.learning_rate": rate, "training.min_learning_rate": rate / 20}


FULL_RATE = at_rate(1e-3)
"""What suits one learner; beside momentum on the server sites take half of it, as `configs/arm.toml` says."""


class _Beginnings(Subset[dict[str, Any]]):
    """The samples of the first `frames` frames of each episode in `root`."""

    is_full = True

    def __init__(self, samples: SampleCache, root: Path, frames: int) -> None:
        starts = [row["dataset_from_index"] for row in read_episodes(root)]
        super().__init__(samples, [start + number for start in starts for number in range(frames)])
        self.name = samples.name


def _join(
    samples: Mapping[str, SampleCache], policy: SmolVLAConfig, data: Path, beginning: int
) -> JoinedSamples:
    parts: list[Any] = list(samples.values())
    if not beginning:
        return JoinedSamples(parts, policy, ())
    beginnings = [_Beginnings(each, data / site, beginning) for site, each in samples.items()]
    return JoinedSamples(parts + beginnings, policy, 2 * [float(len(part)) for part in parts])


def train(
    config: RunConfig,
    learners: Sequence[Sequence[str]],
    data: Path,
    scratch: Path,
    folder: Path,
    aggregate: Aggregate | None = None,
    prepare: Prepare | None = None,
    *,
    codec: str = "fp32",
    beginning: int = 0,
) -> list[float]:
    """Train the rounds of `config` and save the policy to `folder`; return the training loss of each round.

    Args:
        learners: the sites whose data each learner pools. Several are a federation and start each round
            anew from their mean; one goes on where it was, as plain training does, with a batch per site.
        data: folder with a dataset for each site.
        scratch: folder for decoded samples and the stand-in VLM.
        aggregate: takes the step of a round; None: as a run does, of updates sent with `codec`.
        prepare: called before a learner, named after its sites, trains a round.
        beginning: draw half of the samples from the first so many frames of episodes; 0: all frames alike.
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
    names = ["+".join(learner) for learner in learners]
    pooled = {
        name: Learner(
            _join({site: samples[site] for site in learner}, policy.config, data, beginning), statistics
        )
        for name, learner in zip(names, learners, strict=True)
    }
    weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
    losses: list[float] = []
    aggregate = aggregate or as_in_a_run(config, codec)
    for results in federate(config, policy, weights, pooled, aggregate, prepare):
        losses.append(sum(result.policy_loss for result in results.values()) / len(results))
        print(f"{' | '.join(names)}: round {len(losses)}, training loss {losses[-1]:.4f}", flush=True)
    load_trainable(policy, weights)
    save_policy_folder(folder, policy, build_processors(policy, statistics), "Benchmark of closed loop.\n")
    return losses
