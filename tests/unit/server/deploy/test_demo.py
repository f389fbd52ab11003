"""What `make demo` decides before and after a run; whole runs: tests/integration."""

import itertools
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from certs.issue import CertificateError, issue_all
from federation.config import RunConfig, parse_run_config
from federation.data.description import DatasetDescription
from federation.errors import DatasetError
from server.cli import main
from server.deploy import demo
from server.deploy.local_cluster import LocalCluster
from server.run.records import RunRecord
from server.superlink.control import SuperLink
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.one_site import join
from tests.synthetic import split_video


class Cluster:
    """Stands in for the processes."""

    superlink = SuperLink("unused:1", Path("unused"))

    def __init__(self, *_: object, **__: object) -> None:
        """Start nothing."""

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop nothing."""

    def check_processes(self) -> None:
        """Find nothing."""


@contextmanager
def _no_logs(cluster: Cluster, folder: Path) -> Iterator[None]:
    yield


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The data folders of the runs that the demo starts; each is recorded and then fails."""
    folders: list[Path] = []

    def check(config: RunConfig, data: Path) -> tuple[dict[str, Path], Path, list[DatasetDescription]]:
        folders.append(data)
        return {}, data / "holdout", []

    def submit(_: Path, config: RunConfig) -> str:
        record = RunRecord(tmp_path / "outputs", config.run.name, config)
        record._events.close()
        record._lock.close()
        return "1"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "LocalCluster", Cluster)
    monkeypatch.setattr(demo, "_check_data", check)
    for name in ("_check_samples", "verify_server_certificate", "require_free_port"):
        monkeypatch.setattr(demo, name, lambda *_: [])
    monkeypatch.setattr(demo, "_logs_kept", _no_logs)
    monkeypatch.setattr(demo, "submit_run", submit)
    monkeypatch.setattr(demo, "_show", lambda *_: "disk full")
    config = parse_run_config(TINY | {"run.name": "run-1"}, "tests")
    demo.run_demo(config, Path("mine"), Path("outputs"), Path("certs"), 1, Console(quiet=True))
    return folders


def _resume(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("server.cli.commands._CLONE", Path.cwd())
    Path("docker-compose.yml").touch()
    return main(["resume", "run-1", *arguments])


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


def test_a_run_is_resumed_with_a_changed_configuration_if_one_is_named(
    followed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[RunConfig] = []
    monkeypatch.setattr(demo, "run_demo", lambda config, *_: resumed.append(config) or 0)
    (tmp_path / "slower.toml").write_text("[training]\nlearning_rate = 5e-5\n")
    assert _resume(monkeypatch) == _resume(monkeypatch, "--config", "slower.toml") == 0
    assert [config.training.learning_rate for config in resumed] == [TINY["training.learning_rate"], 5e-5]
    assert [(config.run.name, config.run.resume) for config in resumed] == [("run-1", True)] * 2


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    out = tmp_path / "certs"
    issue_all(out, hosts=[], sites=["site-a"])
    return out


def test_a_serverapp_that_dies_in_the_middle_of_an_event_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"event": "run_started"}\n{"event": "round_st')
    for name in ("_STATUS_INTERVAL_SECONDS", "_POLL_INTERVAL_SECONDS"):
        monkeypatch.setattr(demo, name, 0.0)
    monkeypatch.setattr(demo, "run_status", lambda *_: "finished:failed")
    cluster = Cluster()
    seen = [event for event in itertools.islice(demo._follow(events, 0, cluster, "1"), 9) if event]  # type: ignore
    assert seen[:2] == [
        {"event": "run_started"},
        {"event": "run_failed", "reason": "the ServerApp ended as finished:failed"},
    ]


def test_sites_beyond_the_two_of_make_certs_get_keys_of_their_own(certs: Path) -> None:
    first = (certs / "sites" / "site-a" / "node.key").read_bytes()
    demo._issue_missing_keys(certs, ["site-a", "site-b", "site-c"])
    keys = [certs / "sites" / f"site-{letter}" / "node.key" for letter in "abc"]
    assert len({key.read_bytes() for key in keys}) == 3
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert keys[0].read_bytes() == first
    LocalCluster({f"site-{x}": certs for x in "abc"}, certs, certs, certs, free_port(), certs)


@pytest.mark.parametrize("name", ["site-A", "site-given-away"])
def test_a_site_whose_key_cannot_be_made_is_named(certs: Path, name: str) -> None:
    (certs / "sites" / "site-given-away").mkdir()
    (certs / "sites" / "site-given-away" / "node.key.pub").touch()
    with pytest.raises(CertificateError, match=name):
        demo._issue_missing_keys(certs, [name])


def test_a_folder_of_keys_that_cannot_be_written_is_one_line(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(certs / "sites"))

    monkeypatch.setattr(demo, "add_site", closed)
    with pytest.raises(CertificateError, match="no key for site-c could be made"):
        demo._issue_missing_keys(certs, ["site-c"])


def test_the_demo_judges_every_dataset_as_the_join_does_and_the_join_finds_its_verdict(
    data: Path, tmp_path: Path, looks: list[Path]
) -> None:
    config = parse_run_config(TINY, "tests")
    scratch = tmp_path / "scratch"
    folders = {"site-a": data / "site-a", "site-b": data / "site-b", "server": data / "holdout"}
    described = [demo.describe_fitting(root, config.policy) for root in folders.values()]
    demo._check_samples(config, folders, described, scratch)
    assert len(looks) == 1  # LeRobot is imported once for all of them
    assert not join(data / "site-a", scratch / "site-a").has_error()
    assert len(looks) == 1
    folders["site-b"] = Path(shutil.copytree(data / "site-b", tmp_path / "site-b"))
    split_video(folders["site-b"], "wrist", (96, 64))
    with pytest.raises(DatasetError, match="site-b: the pictures of the camera wrist differ in size"):
        demo._check_samples(config, folders, described, scratch)
