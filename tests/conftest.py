"""Fixtures shared by all tests. Nothing here reaches a network: the Hub client is told it is offline."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported anywhere
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from hypothesis import HealthCheck, settings

from federation.config import RunConfig, parse_run_config
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.data.statistics import Statistics
from federation.judgement import sample_process
from federation.policy.build import build_policy, trainable_parameters
from federation.settings import PolicyConfig
from tests.synthetic import record_dataset

# The same examples in each run: a red one is somebody's change. On a busy machine one may take any time.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fixed")

TINY = {
    "policy.size": "tiny",
    "run.num_rounds": 2,
    "run.deliver": "never",  # a message to each site at the end of each run of a test; two tests have it
    "training.local_steps": 3,
    "training.batch_size": 4,
    "training.num_workers": 0,
    "training.learning_rate": 2e-3,
    "training.warmup_steps": 0,
    "evaluation.frame_stride": 20,
    "federation.join_timeout_seconds": 120,
    "federation.round_deadline_seconds": 240,
}


@pytest.fixture(scope="session", autouse=True)
def _no_outer_make() -> None:
    """Forget the variables of `make test`, which change what a make that a test starts does and prints."""
    for name in [name for name in os.environ if name.startswith(("MAKE", "MFLAGS"))]:
        del os.environ[name]


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    """A run of the tiny policy, short enough for a test."""
    return parse_run_config(TINY, "tests")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-in VLM folder is built, once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Have samples looked at in this process, which has torch; each look adds its folder to the list."""
    folders: list[Path] = []

    def run(folder: Path, *_: object) -> str:
        folders.append(folder)
        (folder / "printed").touch()
        sample_process._answer(folder)
        return "ended"

    monkeypatch.setattr(sample_process, "_run", run)
    return folders


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets site-a, site-b and holdout. Do not change them: copy."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("site-a", "site-b", "holdout")):
        record_dataset(folder / name, seed=seed)
    return folder


@pytest.fixture
def make_policy(cache: Path):  # type: ignore[no-untyped-def]
    """Build the tiny policy: `make_policy(seed=0)`."""

    def make(seed: int = 0):  # type: ignore[no-untyped-def]
        return build_policy(PolicyConfig(size="tiny"), seed=seed, device=torch.device("cpu"), cache=cache)

    return make


@pytest.fixture
def policy(make_policy):  # type: ignore[no-untyped-def]
    """The tiny policy with the weights of seed 0."""
    return make_policy()


@pytest.fixture
def weights(policy) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    """A copy of the tiny policy's trainable weights."""
    return {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}


@pytest.fixture(scope="session")
def statistics(data: Path) -> Statistics:
    """The normalisation of a federation of site-a alone."""
    return merge_statistics([describe_dataset(data / "site-a").statistics])
