"""What `make demo` decides before and after a run; whole runs: tests/integration."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from client.progress import PROGRESS_FILE, ProgressFile
from federation.config import RunConfig, parse_run_config
from server import demo
from server.records import RunRecord
from tests.conftest import TINY


class Cluster:
    """Stands in for the processes."""

    flwr_home = Path("unused")

    def __init__(self, *_: object, **__: object) -> None:
        """Start nothing."""

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop nothing."""


@contextmanager
def _no_logs(cluster: Cluster, folder: Path) -> Iterator[None]:
    yield


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The data folders of the runs that `demo.main` starts; each is recorded and then fails."""
    folders: list[Path] = []

    def check(config: RunConfig, data: Path) -> tuple[dict[str, Path], Path]:
        folders.append(data)
        return {}, data / "holdout"

    def submit(_: Path, config: RunConfig) -> str:
        record = RunRecord(tmp_path / "outputs", config.run.name, config)
        record._events.close()
        record._lock.close()
        return "1"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "LocalCluster", Cluster)
    monkeypatch.setattr(demo, "_check_data", check)
    monkeypatch.setattr(demo, "_logs_kept", _no_logs)
    monkeypatch.setattr(demo, "submit_run", submit)
    monkeypatch.setattr(demo, "_show", lambda *_: "disk full")
    config = parse_run_config(TINY | {"run.name": "run-1"}, "tests")
    demo.run_demo(config, Path("mine"), Path("outputs"), Path("certs"), 1, Console(quiet=True))
    return folders


def _resume(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["demo", "--resume", "run-1", *arguments])
    return demo.main()


def test_a_resumed_run_goes_on_with_the_data_it_had(
    followed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _resume(monkeypatch) == 1
    assert _resume(monkeypatch, "--data", "other") == 1
    assert _resume(monkeypatch) == 1
    assert followed == [Path("mine"), tmp_path / "mine", Path("other"), tmp_path / "other"]


def test_a_run_that_does_not_say_what_data_it_had_gets_the_sample(
    followed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs" / "run-1" / "demo.json").unlink()
    assert _resume(monkeypatch) == 1
    assert followed[1] == Path("data/sample")


def test_the_bar_of_a_site_is_as_long_as_the_steps_that_it_takes(tmp_path: Path) -> None:
    progress = Progress()
    task = progress.add_task("site-a", total=200, note="")
    demo._show_local_progress(tmp_path / PROGRESS_FILE, progress, task)
    assert progress.tasks[0].total == 200
    ProgressFile(tmp_path, round_=2, local_steps=37).update(12, 0.5)
    demo._show_local_progress(tmp_path / PROGRESS_FILE, progress, task)
    assert (progress.tasks[0].completed, progress.tasks[0].total) == (12, 37)


def test_a_run_is_resumed_with_a_changed_configuration_if_one_is_named(
    followed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[RunConfig] = []
    monkeypatch.setattr(demo, "run_demo", lambda config, *_: resumed.append(config) or 0)
    (tmp_path / "slower.toml").write_text("[training]\nlearning_rate = 5e-5\n")
    assert _resume(monkeypatch) == _resume(monkeypatch, "--config", "slower.toml") == 0
    assert [config.training.learning_rate for config in resumed] == [TINY["training.learning_rate"], 5e-5]
    assert [(config.run.name, config.run.resume) for config in resumed] == [("run-1", True)] * 2


def test_the_end_shows_every_evaluated_round_and_what_the_arm_did(tmp_path: Path) -> None:
    entries = [{"round": n, "clients": {"site-a": {"policy_loss": 0.5}}} for n in range(1, 41)]
    entries[39] |= {"evaluation": {"policy_loss": 0.25, "action_mse": 9.0}}
    metrics = {
        "run": "run-1",
        "status": "finished",
        "reason": "",
        "config": {},
        "nodes": {"site-a": {}},
        "baseline": {"policy_loss": 2.0, "action_mse": 90.0},
        "rounds": entries,
        "simulated": [{"round": 40, "success_rate": 0.95, "interval": [0.76, 0.99], "episodes": 20}],
    }
    for shown, rows in ((40, 2), (20, 21)):
        (tmp_path / "federated_metrics.json").write_text(json.dumps(metrics | {"rounds": entries[-shown:]}))
        with (console := Console(width=120)).capture() as printed:
            demo._print_summary(tmp_path, console)
        assert printed.get().count("│\n") == rows
        assert "round 40: 95% of 20 simulated episodes succeed (95 % interval 76% to 99%)" in printed.get()
