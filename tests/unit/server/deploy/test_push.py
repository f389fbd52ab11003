"""so100-server push, with the real `huggingface_hub` client, against a small local Hub."""

import json
from pathlib import Path
from typing import Any

import pytest

from federation.config import parse_run_config
from server.cli import main
from server.output import hub as hub_module
from server.run.records import RunRecord
from tests.local_hub import LocalHub
from tests.unit.server.monitoring.test_exporter import _entry, _evaluation

pytestmark = pytest.mark.slow


def _run(outputs: Path, status: str = "finished", **changes: Any) -> Path:
    record = RunRecord(outputs, "run-1", parse_run_config(changes, "tests"))
    record.evaluated(0, _evaluation(2.0))
    record.round_finished(_entry(1, evaluation=_evaluation(0.5)))
    record.round_finished(_entry(2, evaluation=_evaluation(1.0)))
    for name in ("pretrained_model", "pretrained_model_best"):
        (record.folder / name).mkdir()
        (record.folder / name / "config.json").write_text(json.dumps({"folder": name}))
    record.close(status)
    return record.folder


def _push(outputs: Path, *options: str) -> int:
    return main(["push", "run-1", "--outputs", str(outputs), *options])


def test_the_last_policy_and_the_best_are_pushed_under_their_rounds(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path)
    assert _push(tmp_path, "--repo", "lab/so101") == 0
    assert "round 2 of run-1 is on the Hub: lab/so101" in capsys.readouterr().out
    assert json.loads(hub.repos["lab/so101"]["config.json"]) == {"folder": "pretrained_model"}
    assert _push(tmp_path, "--repo", "lab/so101", "--best") == 0
    assert json.loads(hub.repos["lab/so101"]["config.json"]) == {"folder": "pretrained_model_best"}
    assert {tag for _, tag in hub.tags} == {"run-1-round-1", "run-1-round-2"}


def test_the_repository_of_the_run_is_the_default(hub: LocalHub, tmp_path: Path) -> None:
    _run(tmp_path, **{"hub.repo": "lab/other"})
    assert _push(tmp_path) == 0
    assert "lab/other" in hub.repos


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("running", "run run-1 has not finished"),
        ("no repository", "name a repository: --repo owner/name"),
        ("malformed", "hub.repo = 'lab/': must be owner/name"),
        ("blank", "hub.repo = 'my lab/so101': must be owner/name as the Hub takes it"),
        ("no export", "no policy there; make resume RUN=run-1 exports it"),
        ("no token", "there is no token: set HF_TOKEN"),
        ("forbidden", "is not on the Hub: the Hub forbids it (403)"),
    ],
)
def test_what_is_wrong_is_one_line(
    fault: str,
    message: str,
    hub: LocalHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = _run(tmp_path, "failed" if fault == "running" else "finished")
    if fault == "no export":
        (folder / "pretrained_model").rename(folder / "away")
    elif fault == "no token":
        monkeypatch.setattr(hub_module, "get_token", lambda: None)
    elif fault == "forbidden":
        hub.failures[("POST", "/lab/so101/commit")] = [403]
    named = {"no repository": [], "malformed": ["--repo", "lab/"], "blank": ["--repo", "my lab/so101"]}
    assert _push(tmp_path, *named.get(fault, ["--repo", "lab/so101"])) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
