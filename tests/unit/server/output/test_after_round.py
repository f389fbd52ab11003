"""What becomes of a run's policy: exports, closed loop and Hub together."""

import errno
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from federation.config import RunConfig, flatten, parse_run_config
from federation.errors import ConfigError
from federation.policy.build import frozen_fingerprint
from server.model import GlobalModel
from server.output import after_round as delivery_module
from server.output import hub as hub_module
from server.output.after_round import AfterRound
from server.output.export import export_policy
from server.run.checkpoints import Checkpoints
from server.run.recorded import EVENTS_FILE, as_continuation, read_metrics
from server.run.records import RunRecord
from tests.conftest import TINY
from tests.local_hub import TOKEN, LocalHub, local_hub

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with local_hub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_module, "HfApi", lambda: huggingface_hub.HfApi(endpoint=server.url))
        monkeypatch.setattr(hub_module, "_SECONDS_BEFORE_RETRIES", (0.0,))
        yield server


@pytest.fixture
def model(policy, weights, statistics) -> GlobalModel:
    return GlobalModel(weights, statistics, frozen_fingerprint(policy))


def _config(**changes: object) -> RunConfig:
    return parse_run_config(TINY | changes, "tests")


def _deliver(policy, model: GlobalModel, config: RunConfig, outputs: Path) -> Path:
    """Two rounds of a run in which round 1 is the best."""
    record = RunRecord(outputs, "run-1", config)
    checkpoints = Checkpoints(record.folder / "checkpoints", config.checkpoint, flatten(config), "m")
    with AfterRound(policy, config, record) as after_round:
        for round_, loss in ((0, 2.0), (1, 1.0), (2, 1.5)):
            checkpoints.save(round_, model, loss, entry=None)
            after_round.start(round_, model)
            for tensor in model.weights.values():
                tensor.add_(1)
        after_round.finish(model, checkpoints, 2)
    return record.folder


def _pushes(folder: Path) -> list[tuple[str, int]]:
    events = [json.loads(line) for line in (folder / EVENTS_FILE).read_text().splitlines()]
    return [(event["event"], event["round"]) for event in events if "push" in event["event"]]


def test_the_last_and_the_best_policy_are_exported(policy, model, tmp_path: Path) -> None:
    folder = _deliver(policy, model, _config(), tmp_path)
    assert "weights after round 2" in (folder / "pretrained_model" / "README.md").read_text()
    assert "weights after round 1" in (folder / "pretrained_model_best" / "README.md").read_text()
    last, best = (folder / f"pretrained_model{end}" / "model.safetensors" for end in ("", "_best"))
    assert last.read_bytes() != best.read_bytes()


_RESULT = {
    "success_rate": 0.5,
    "interval": [0.2, 0.8],
    "mean_return": 0.6,
    "episodes": 4,
    "expert_success_rate": 1.0,
}


class _Evaluations:
    """Stands in for `Simulations`: evaluates at once, or dies like the server in the midst of it."""

    def __init__(self, folder: Path, _: object, done: Any) -> None:
        self._folder, self._done, self._started = folder, done, []

    dies = False

    def due(self, round_: int, *, last: bool = False) -> bool:
        return last

    def start(self, round_: int, export: Any) -> None:
        assert (self._folder / "pretrained_model" / "model.safetensors").is_file()
        self._started.append(round_)

    def wait(self) -> None:
        if self.dies:
            raise KeyboardInterrupt
        for round_ in self._started:
            self._done(round_, _RESULT)
        self._started.clear()

    def collect(self) -> None: ...

    def stop(self) -> None: ...


def test_the_last_evaluation_is_done_by_a_continuation_if_the_server_died_in_it(
    policy, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "Simulations", _Evaluations)
    monkeypatch.setattr(_Evaluations, "dies", True)
    with pytest.raises(KeyboardInterrupt):
        _deliver(policy, model, _config(), tmp_path)
    folder = tmp_path / "run-1"
    assert (folder / "pretrained_model" / "model.safetensors").is_file()
    assert (folder / "pretrained_model_best" / "model.safetensors").is_file()
    assert "In closed loop" not in (folder / "pretrained_model" / "README.md").read_text()

    monkeypatch.setattr(_Evaluations, "dies", False)
    config = as_continuation(_config())
    gc.collect()  # the dead server's lock on the record
    record = RunRecord(tmp_path, "run-1", config)
    record.resume_after(2, None)
    store = Checkpoints(folder / "checkpoints", config.checkpoint, flatten(config), "m")
    with AfterRound(policy, config, record) as after_round:
        after_round.finish(model, store, 2)
    assert [entry["round"] for entry in read_metrics(folder)["simulated"]] == [2]
    assert "| round 2 | 50% |" in (folder / "pretrained_model" / "README.md").read_text()


def test_the_policy_is_pushed_on_the_way_and_at_the_end(policy, model, hub, tmp_path: Path) -> None:
    folder = _deliver(policy, model, _config(**{"hub.repo": "lab/so101", "hub.push_frequency": 1}), tmp_path)
    assert sorted(_pushes(folder)) == [("pushed", 1), ("pushed", 2)]
    assert [tag for _, tag in hub.tags] == [f"{folder.name}-round-{n}" for n in (1, 2)]
    pushed = hub.repos["lab/so101"]["README.md"].decode()
    assert "weights after round 2" in pushed
    assert not list((folder / "to_push").iterdir())


def test_a_failed_push_is_an_event_and_not_the_end_of_the_run(policy, model, hub, tmp_path: Path) -> None:
    hub.failures[("POST", "/lab/so101/commit")] = [403] * 50
    folder = _deliver(policy, model, _config(**{"hub.repo": "lab/so101"}), tmp_path)
    assert _pushes(folder) == [("push_failed", 2)]
    assert (folder / "pretrained_model" / "model.safetensors").is_file()


def test_an_export_that_fails_between_the_rounds_is_not_the_end_of_the_run(
    policy, model, hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *others: Any) -> None:
        if folder.parent.name == "to_push":
            raise OSError(errno.ENOSPC, "No space left on device")
        export_policy(folder, *others)

    monkeypatch.setattr(delivery_module, "export_policy", full)
    folder = _deliver(policy, model, _config(**{"hub.repo": "lab/so101", "hub.push_frequency": 1}), tmp_path)
    assert _pushes(folder) == [("pushed", 2)]


def test_what_a_killed_server_was_to_push_is_cleared(policy, hub, tmp_path: Path) -> None:
    config = _config(**{"hub.repo": "lab/so101"})
    record = RunRecord(tmp_path, "run-1", config)
    (record.folder / "to_push" / ".round_1.part").mkdir(parents=True)
    with AfterRound(policy, config, record):
        assert not (record.folder / "to_push").exists()


def test_a_missing_simulator_ends_the_run_before_its_first_round(
    policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(variants: str) -> None:
        raise ConfigError("mujoco is not installed")

    monkeypatch.setattr(delivery_module, "require_simulator", missing)
    config = _config(**{"evaluation.sim_frequency": 1})
    with pytest.raises(ConfigError, match="mujoco"):
        AfterRound(policy, config, RunRecord(tmp_path, "run-1", config))
