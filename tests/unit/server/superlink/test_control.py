"""Errors of the Control API; what it does when it works: `test_site.py` and tests/integration, container."""

import json
from pathlib import Path

import httpx
import pytest
from flwr.supercore.error.base import ApiErrorCode

from certs.issue import issue_all
from server.superlink import control
from server.superlink.control import (
    ControlError,
    RefusedError,
    SuperLink,
    active_run,
    app_files,
    register_supernode,
)

SUPERLINK = SuperLink("fed.example.org:8000", Path("ca.crt"))


class Client:
    """Answers everything with one HTTP status."""

    def __init__(self, status: int, body: str) -> None:
        self.response = httpx.Response(status, text=body, request=httpx.Request("POST", "https://x"))

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        """Every method of the API fails."""
        return lambda _: self.response.raise_for_status()

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Let SuperLink answer everything with a status and a body."""

    def answer(status: int, body: str) -> None:
        monkeypatch.setattr(control, "connect", lambda _: Client(status, body))

    return answer


@pytest.mark.parametrize(
    ("status", "body", "refused", "reason"),
    [
        (400, json.dumps({"code": 15, "detail": "Invalid run configuration."}), True, "Invalid run configur"),
        (403, json.dumps({"code": 9, "detail": "You do not have permission."}), True, "You do not have"),
        (503, json.dumps({"code": 1005, "detail": "LinkState is not initialized."}), False, "LinkState"),
        (500, json.dumps({"code": 14, "detail": "Failed to create the run."}), False, "Failed to create"),
        (404, "<html>nginx</html>", False, "HTTP 404"),  # a gateway that stands before it
        (502, "", False, "HTTP 502"),
    ],
)
def test_what_would_be_answered_again_is_told_from_what_passes(
    answers, status: int, body: str, refused: bool, reason: str
) -> None:
    answers(status, body)
    with pytest.raises(ControlError, match=rf"SuperLink at fed.example.org:8000 refuses .*{reason}") as error:
        active_run(SUPERLINK)
    assert isinstance(error.value, RefusedError) == refused


def test_a_superlink_that_is_not_there_is_named(tmp_path: Path) -> None:
    issue_all(tmp_path, hosts=[], sites=["site-a"])
    superlink = SuperLink("127.0.0.1:1", tmp_path / "superlink" / "ca.crt")
    with pytest.raises(
        ControlError, match=r"SuperLink at 127.0.0.1:1 cannot be reached to list runs \(.*refused"
    ):
        active_run(superlink)


def test_a_key_that_is_registered_already_is_no_error_and_any_other_refusal_is(
    tmp_path: Path, answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue_all(tmp_path, hosts=[], sites=["site-a"])
    key = (tmp_path / "sites" / "site-a" / "node.key.pub").read_text()
    answers(412, json.dumps({"code": int(ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE), "detail": "in use"}))
    monkeypatch.setattr(control, "_nodes_with", lambda *_: [7])
    register_supernode(SUPERLINK, key, "site-a")
    monkeypatch.setattr(control, "_nodes_with", lambda *_: [])
    with pytest.raises(RefusedError, match="the key of site-a was revoked, and is taken no second time"):
        register_supernode(SUPERLINK, key, "site-a")
    answers(412, json.dumps({"code": int(ApiErrorCode.PUBLIC_KEY_NOT_VALID), "detail": "not valid"}))
    with pytest.raises(RefusedError, match="refuses to register a key: not valid"):
        register_supernode(SUPERLINK, key, "site-a")


@pytest.mark.parametrize(
    "key", ["", "no key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Ff3M6UQ3pdHhXxqnvCn6IUVe0"]
)
def test_a_text_that_is_no_key_is_an_error_before_superlink_is_asked(key: str) -> None:
    with pytest.raises(ControlError, match="public key '"):
        register_supernode(SUPERLINK, key, "site-a")


def test_the_app_is_our_three_packages_and_the_project_file() -> None:
    assert {name.partition("/")[0] for name in app_files()} == {
        "server",
        "client",
        "federation",
        "pyproject.toml",
    }
