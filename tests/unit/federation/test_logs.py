import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation import logs


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    speaker = dict(logs._speaker)
    yield
    logs._speaker.update(speaker)
    for handler in list(logging.getLogger("so100").handlers):
        logging.getLogger("so100").removeHandler(handler)


def test_a_line_says_which_run_node_and_round(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logs.bind_context(run="run-1", node="site-a", round_=3)
    logs.get_logger("client.app").info("trained %d steps", 30)
    assert capsys.readouterr().err.endswith("INFO    run-1 site-a round 3 | trained 30 steps\n")


def test_json_is_one_object_a_line_with_the_traceback_inside(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDERATION_LOG_FORMAT", "JSON")
    logs.configure(tmp_path / "server.log")
    logs.bind_context(run="run-1", node="site-a", round_=3)
    try:
        raise ValueError("no\nway")
    except ValueError:
        logs.get_logger("client.app").exception('it said "no"')
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["time"].endswith("Z")
    assert entry["exception"].endswith("ValueError: no\nway")
    fields = ("level", "run", "node", "round", "logger", "message")
    assert [entry[key] for key in fields] == ["ERROR", "run-1", "site-a", 3, "client.app", 'it said "no"']
    assert 'run-1 site-a round 3 | it said "no"' in (tmp_path / "server.log").read_text()


def test_what_is_not_known_yet_is_null(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDERATION_LOG_FORMAT", "json")
    monkeypatch.setattr(logs, "_speaker", {"run": "-", "node": "-", "round": "-"})
    logs.configure()
    logs.get_logger("server.monitoring.exporter").info("up")
    entry = json.loads(capsys.readouterr().err)
    assert [entry[key] for key in ("run", "node", "round")] == [None, None, None]


def test_the_level_is_the_environments_and_a_misspelt_one_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDERATION_LOG_LEVEL", "warning")
    logs.configure()
    logs.get_logger("x").info("quiet")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FEDERATION_LOG_LEVEL", "LOUD")
    logs.configure()
    logs.get_logger("x").info("heard")
    said = capsys.readouterr().err
    assert "FEDERATION_LOG_LEVEL = 'LOUD': must be one of DEBUG, INFO, WARNING, ERROR; INFO is taken" in said
    assert "heard" in said
