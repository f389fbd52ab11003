"""What the containers start of so100-server, and docker-compose.yml starts nothing that is not there."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from client import cli as site
from federation.errors import FederationError
from server import cli
from server.cli import main
from server.superlink.control import ControlError, SuperLink
from tests import REPOSITORY

LINK = SuperLink("superlink:8000", Path("ca.crt"))
SERVICES = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]


def test_submit_calls_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("server.deploy.submit.submit", lambda *args, **options: calls.append((args, options)))
    assert main(["submit", "--ca", "ca.crt"]) == 0
    line = "submit --ca ca.crt --superlink s:1 --site a=a.pub --site b=b.pub --config c.toml --outputs o"
    line += " --invited i --deliver run-2"
    assert main([*line.split(), "--resume", "run-1", "--new", "--detach", "--wait-seconds", "3"]) == 0
    assert calls == [
        (
            (LINK, {}, Path("/outputs"), None),
            {"invited": None, "resume": None, "deliver": None, "new": False, "detach": False}
            | {"wait_seconds": 180.0},
        ),
        (
            (
                SuperLink("s:1", Path("ca.crt")),
                {"a": Path("a.pub"), "b": Path("b.pub")},
                Path("o"),
                Path("c.toml"),
            ),
            {"invited": Path("i"), "resume": "run-1", "deliver": "run-2", "new": True, "detach": True}
            | {"wait_seconds": 3.0},
        ),
    ]


@pytest.mark.parametrize(
    ("error", "unattended", "code"),
    [(FederationError, False, 2), (FederationError, True, 0), (ControlError, True, 2)],
)
def test_unattended_only_what_may_pass_is_worth_another_start(
    error: type[FederationError],
    unattended: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("it cannot be done")

    monkeypatch.setattr("server.deploy.submit.submit", fail)
    assert main(["submit", "--ca", "ca.crt", *(["--unattended"] if unattended else [])]) == code
    assert capsys.readouterr().err == "error: it cannot be done\n"


@pytest.mark.parametrize("revoke", [False, True])
def test_register_calls_its_room(revoke: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "server.deploy.register.change_registration", lambda *args, **options: calls.append((args, options))
    )
    line = "register --superlink superlink:8000 --ca ca.crt --name lab-b --key k"
    assert main([*line.split(), *(["--revoke"] if revoke else [])]) == 0
    assert calls == [((LINK, "lab-b", "k"), {"revoke": revoke})]


def test_exporter_calls_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("server.monitoring.exporter.serve_metrics", lambda *args: calls.append(args))
    line = "exporter --outputs o --host :: --port 1 --superlink s:1 --ca c --certificate a --certificate b"
    assert main(line.split()) == 0
    assert calls == [(Path("o"), "::", 1, "s:1", Path("c"), [Path("a"), Path("b")])]


@pytest.mark.parametrize("name", ["exporter", "run", "site-a-progress", "site-b-progress"])
def test_compose_starts_commands_with_options_that_there_are(name: str) -> None:
    service = SERVICES[name]
    python, dash, module, command, *arguments = [*service.get("entrypoint", []), *service["command"]]
    assert (python, dash) == ("python", "-m")
    app = {"server.cli": cli.app, "client.cli": site.app}[module]
    known = get_command(app).commands[command]
    with known.make_context(command, arguments) as context:
        assert context.args == []
