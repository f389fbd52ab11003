"""Pushing with the real `huggingface_hub` client, against a small local Hub."""

import json
import shutil
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest

from federation.errors import ConfigError
from federation.settings import HubConfig
from server.output import hub as hub_module
from server.output.hub import Hub
from tests.local_hub import LocalHub

pytestmark = pytest.mark.slow

CONFIG = HubConfig(repo="lab/so101", push_frequency=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pretrained_model"
    (folder / "vlm").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vlm_model_name": "./vlm"}))
    steps = [{"config": {"tokenizer_name": "./vlm"}}, {"config": {}}]
    (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": steps}))
    (folder / "vlm" / "config.json").write_text("{}")
    return folder


def _push(folder: Path, round_: int = 4, run: str = "run-1") -> list[dict]:
    pushing = Hub(CONFIG, run)
    pushing.push(folder, round_)
    pushing.close()
    return list(pushing.reports())


def test_a_push_makes_the_repository_and_tags_the_round(hub: LocalHub, folder: Path) -> None:
    assert _push(folder) == [{"event": "pushed", "round": 4, "repo": "lab/so101"}]
    assert hub.tags == {("lab/so101", "run-1-round-4"): hub.commits["lab/so101"][-1]}
    assert hub.repos["lab/so101"].keys() == {"config.json", "policy_preprocessor.json"}


def test_a_round_that_is_done_again_is_what_its_tag_names(hub: LocalHub, folder: Path) -> None:
    _push(folder)
    (folder / "config.json").write_text(json.dumps({"vlm_model_name": "./vlm", "after": "a rollback"}))
    assert _push(folder)[0]["event"] == "pushed"
    first, second = hub.commits["lab/so101"]
    assert hub.tags == {("lab/so101", "run-1-round-4"): second}
    assert first != second


def test_a_round_of_another_run_leaves_the_tags_of_the_first(hub: LocalHub, folder: Path) -> None:
    for run in ("run-1", "run-2"):
        _push(folder, run=run)
    first, second = hub.commits["lab/so101"]
    assert [hub.tags["lab/so101", f"run-{n}-round-4"] for n in (1, 2)] == [first, second]


def test_a_tag_is_moved_although_the_hub_breaks_in_the_middle(hub: LocalHub, folder: Path) -> None:
    _push(folder)
    hub.failures[("DELETE", "/tag/")] = [502]
    assert _push(folder)[0]["event"] == "pushed"
    assert hub.tags["lab/so101", "run-1-round-4"] == hub.commits["lab/so101"][-1]


def test_the_hubs_own_sentence_is_kept(hub: LocalHub, folder: Path) -> None:
    hub.said = "Private repository storage limit reached,\nplease upgrade your plan"
    hub.failures[("POST", "/lab/so101/commit")] = [403]
    (report,) = _push(folder)
    assert report["reason"] == (
        "the Hub forbids it (403): if it means the token, that needs write access to this owner's "
        "repositories; it says: Private repository storage limit reached, please upgrade your plan"
    )


def test_a_policy_with_its_own_vlm_names_a_repository_beside_it(hub: LocalHub, folder: Path) -> None:
    _push(folder)
    assert hub.repos["lab/so101-vlm"].keys() == {"config.json"}
    assert json.loads(hub.repos["lab/so101"]["config.json"])["vlm_model_name"] == "lab/so101-vlm"
    steps = json.loads(hub.repos["lab/so101"]["policy_preprocessor.json"])["steps"]
    assert steps[0]["config"]["tokenizer_name"] == "lab/so101-vlm"
    assert json.loads((folder / "config.json").read_text())["vlm_model_name"] == "./vlm"


def test_no_token_is_said_at_the_start(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="no token: set HF_TOKEN"):
        Hub(CONFIG, "run-1")


@pytest.mark.parametrize(
    ("failing", "status", "said"),
    [
        (("GET", "/whoami-v2"), 401, "does not know the token"),
        (("POST", "/repos/create"), 403, "needs write access"),
        (("POST", "/repos/create"), 404, "no such owner"),
        (("GET", "/whoami-v2"), 500, "answered 500"),
    ],
)
def test_a_hub_that_cannot_be_used_is_said_at_the_start(
    hub: LocalHub, failing: tuple[str, str], status: int, said: str
) -> None:
    hub.failures[failing] = [status] * 20
    with pytest.raises(ConfigError, match=said):
        Hub(CONFIG, "run-1")


def test_a_hub_that_is_away_is_said_at_the_start(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr(hub_module, "HfApi", lambda: huggingface_hub.HfApi(endpoint=closed))
    with pytest.raises(ConfigError, match="cannot be reached"):
        Hub(CONFIG, "run-1")


@pytest.mark.parametrize("status", [500, 502])
def test_a_push_is_tried_again_while_the_hub_is_broken(hub: LocalHub, folder: Path, status: int) -> None:
    hub.failures[("POST", "/lab/so101/commit")] = [status]
    assert _push(folder)[0]["event"] == "pushed"


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
def test_a_failed_push_is_reported_and_never_raised(
    hub: LocalHub, folder: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.failures[("POST", "/lab/so101/commit")] = [status] * 100
    (report,) = _push(folder)
    assert report["event"] == "push_failed"
    assert str(status) in report["reason"]


def test_what_was_exported_only_to_be_pushed_is_removed(hub: LocalHub, folder: Path) -> None:
    pushing = Hub(CONFIG, "run-1")
    pushing.push(folder, 2, remove=True)
    pushing.close()
    assert not folder.exists()


def test_a_push_that_waits_gives_way_to_a_newer_round(
    hub: LocalHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = threading.Event()
    upload = Hub._upload
    monkeypatch.setattr(Hub, "_upload", lambda *order: (away.wait(60), upload(*order)))
    pushing = Hub(CONFIG, "run-1")
    for round_ in (2, 4, 6):
        pushing.drop_waiting()
        exported = Path(shutil.copytree(folder, tmp_path / f"round_{round_}"))
        pushing.push(exported, round_, remove=True)
        while round_ == 2 and not pushing._newest[0].running():  # type: ignore[index]
            time.sleep(0.01)
    left = sorted(path.name for path in tmp_path.glob("round_*"))
    pushing.push(folder, 8)  # the last round's, which nothing gives up
    away.set()
    pushing.close()
    assert left == ["round_2", "round_6"]
    assert [report["round"] for report in pushing.reports()] == [2, 6, 8]
    assert not list(tmp_path.glob("round_*"))


def test_pushes_are_due_every_so_many_rounds(hub: LocalHub) -> None:
    assert [round_ for round_ in range(1, 7) if Hub(CONFIG, "run-1").due(round_)] == [2, 4, 6]
