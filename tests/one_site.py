"""What a SuperNode does with a dataset, in this process: the answer to the join, and a step of training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app
from client.training import run_training_loop, setup_training_components
from federation.config import parse_run_config
from federation.data.normalisation import merge_statistics
from federation.data.sample_cache import open_samples
from federation.judgement.judge import DatasetUse, judge_datasets
from federation.messages import QUERY_JOIN
from federation.policy.build import build_policy, trainable_parameters
from tests.conftest import TINY

_BATCH = 8


def join(root: Path, scratch: Path, cameras: str = "", **settings: Any) -> Message:
    """What the site answers to the join of a run with `settings`, `policy.fps` as `policy_fps`."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower stamps a message with them
    node = {"name": "site-a", "dataset": str(root), "scratch": str(scratch), "cameras": cameras}
    context = SimpleNamespace(node_config=node, run_config=_settings(settings))
    return app.join(Message(RecordDict(), 1, QUERY_JOIN), context)  # type: ignore[arg-type]


def train_step(root: Path, scratch: Path, cameras: dict[str, str] | None = None, **settings: Any) -> float:
    """Train one step on the dataset as a round does; the policy loss."""
    config = parse_run_config(_settings(settings), "tests")
    (description,) = judge_datasets([DatasetUse(root, config.policy, scratch, cameras or {})])
    policy = build_policy(config.policy, seed=0, device=torch.device("cpu"), cache=scratch)
    samples = open_samples(
        root,
        policy.config,
        scratch / "samples",
        10**8,
        description.used_cameras,
        description.usable_episodes,
    )
    weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
    statistics = merge_statistics([description.statistics])
    components = setup_training_components(config, policy, weights, statistics, samples, 0)
    result = run_training_loop(components, 1, 1, lambda *_: None)
    assert result.num_examples == _BATCH
    assert result.skipped_frames == 0
    return result.policy_loss


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    given = {name.replace("_", ".", 1): value for name, value in settings.items()}
    return TINY | {"training.local_steps": 1, "training.batch_size": _BATCH} | given
