"""Training of one arm with one seed, in this process, and its held-out figures on the way."""

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from client.recordings.samples import JoinedSamples
from client.training import TrainingComponents, TrainingResult
from federation.config import RunConfig, parse_run_config
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.data.sample_cache import open_samples
from federation.policy.build import build_policy, trainable_parameters
from server.evaluation.held_out import Evaluator
from tests.benchmarks.in_process import Learner, as_in_a_run, federate
from tests.benchmarks.pretraining import pretrain, start_from
from tests.benchmarks.study.arms import LONG, Arm
from tests.benchmarks.study.scaffold import Scaffold

__all__ = ["Hooks", "base_of", "run_arm", "run_job"]

_EVALUATIONS = 10  # over the run, besides the one before training


class Hooks(Protocol):
    """What a method changes of a federation; what it keeps between rounds is its own."""

    def prepare(self, name: str, components: TrainingComponents) -> None:
        """Be called before a learner trains a round."""

    def aggregate(self, weights: dict[str, Tensor], results: Mapping[str, TrainingResult]) -> None:
        """Take the step of a round on `weights`."""


def run_job(job: tuple[Arm, int, Path], method: Hooks | None = None) -> dict[str, Any]:
    """`run_arm` for a process of a pool, which decodes into a cache of its own."""
    arm, seed, data = job
    process = multiprocessing.current_process().name
    return run_arm(arm, seed, data, data.parent / ".study-cache" / process, method)


def base_of(data: Path) -> Path:
    """Return the folder of the base for sites in `data`, trained first if it is not there yet."""
    tiny = {
        "policy.size": "tiny",
        "run.num_rounds": LONG // 40,
        "training.local_steps": 40,
        "training.batch_size": 32,
        "training.warmup_steps": 10,
        "training.learning_rate": 1.6e-2,
        "training.min_learning_rate": 1.6e-3,
    }
    return pretrain(data.with_name("foreign"), data.parent / ".study-base", tiny)


def run_arm(arm: Arm, seed: int, data: Path, cache: Path, method: Hooks | None = None) -> dict[str, Any]:
    """Train and return {"arm", "seed", "steps": [...], "policy_loss": [...], "action_mse": [...]}.

    Args:
        data: folder with the datasets of the sites and `holdout`.
        cache: folder for decoded samples, shared by all arms.
        method: None: as the arm says.
    """
    torch.set_num_threads(1)
    config = _configure(arm, seed, base_of(data) if arm.fine_tuned else None)
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(config.policy, seed=seed, device=torch.device("cpu"), cache=Path(folder))
        roots = {site: data / site for site in arm.sites}
        if arm.corrupt:
            roots[arm.corrupt] = _with_damaged_video(roots[arm.corrupt], Path(folder))
        samples = {
            site: open_samples(root, policy.config, _cache(cache, site, arm), 2 * 10**9)
            for site, root in roots.items()
        }
        reported = {site: describe_dataset(root).statistics for site, root in roots.items()}
        shared = merge_statistics(list(reported.values()))
        learners = {
            site: Learner(each, shared if arm.shared_normalisation else merge_statistics([reported[site]]))
            for site, each in samples.items()
        }
        if arm.pooled or arm.alike:
            pooled = Learner(JoinedSamples(list(samples.values()), policy.config, ()), shared)
            learners = {"pooled": pooled} if arm.pooled else dict.fromkeys(arm.sites, pooled)
        evaluator = Evaluator(policy, shared, {"holdout": data / "holdout"}, config.evaluation)
        weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
        if arm.scaffold:
            method = Scaffold(as_in_a_run(config))
        hooks = (method.aggregate, method.prepare) if method else ()
        rounds = federate(config, policy, weights, learners, *hooks)
        return {"arm": arm.name, "seed": seed, **_train(arm, weights, rounds, evaluator)}


def _train(
    arm: Arm,
    weights: dict[str, Tensor],
    rounds: Iterable[Mapping[str, TrainingResult]],
    evaluator: Evaluator,
) -> dict[str, Any]:
    """Train the `rounds`, which change `weights`, and evaluate on the way."""
    curve: dict[str, list[float]] = {"steps": [], "policy_loss": [], "action_mse": []}

    def evaluate(rounds: int) -> None:
        figures = evaluator.evaluate(weights)
        curve["steps"].append(rounds * arm.local_steps)
        curve["policy_loss"].append(figures["policy_loss"])
        curve["action_mse"].append(figures["action_mse"])

    evaluate(0)
    skipped = 0
    for round_, results in enumerate(rounds, start=1):
        skipped += sum(result.skipped_frames for result in results.values())
        if round_ % max(1, arm.num_rounds // _EVALUATIONS) == 0 or round_ == arm.num_rounds:
            evaluate(round_)
            print(f"{arm.name}, step {curve['steps'][-1]}: {curve['policy_loss'][-1]:.4f}", flush=True)
    return {"skipped_frames": skipped, **curve}


def _configure(arm: Arm, seed: int, base: Path | None = None) -> RunConfig:
    return parse_run_config(
        (start_from(base) if base else {"policy.size": "tiny"})
        | {
            "run.seed": seed,
            "run.num_rounds": arm.num_rounds,
            "federation.fraction_fit": arm.fraction_fit,
            "training.local_steps": arm.local_steps,
            "training.keep_optimizer": arm.keep_optimizer,
            "training.batch_size": arm.batch_size,
            "training.proximal_mu": 0.0 if arm.pooled or arm.strategy == "fedavg" else arm.proximal_mu,
            "training.learning_rate": arm.learning_rate,
            "training.min_learning_rate": arm.learning_rate / 10,
            "training.warmup_steps": 10,
            "training.num_workers": 0,
            "aggregation.strategy": arm.strategy,
            "aggregation.server_learning_rate": arm.server_learning_rate,
            "aggregation.server_momentum": arm.server_momentum,
            "evaluation.eval_mode": "full",
            "evaluation.frame_stride": 10,
        },
        arm.name,
    )


def _with_damaged_video(root: Path, folder: Path) -> Path:
    """A copy of the dataset whose wrist video has a hole of a quarter of its bytes."""
    copy = Path(shutil.copytree(root, folder / f"{root.name}-corrupt"))
    video = next((copy / "videos" / "observation.images.wrist").rglob("*.mp4"))
    content = bytearray(video.read_bytes())
    start, length = len(content) // 3, len(content) // 4
    content[start : start + length] = bytes(length)
    video.write_bytes(content)
    return copy


def _cache(cache: Path, site: str, arm: Arm) -> Path:
    return cache / (f"{site}-corrupt" if arm.corrupt == site else site)
