"""so100-site: every command calls its room with what was typed or what the environment names."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from client.cli import app, main
from client.recordings.sources import Source
from federation.settings import PolicyConfig
from tests import REPOSITORY
from tests.unit.help_texts import check_command

NAMES = list(get_command(app).commands)
UNSET = {"full": False, "scratch": None, "key": None, "ca": None, "superlink": None}
CAMERAS = {"cameras": PolicyConfig().cameras}


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(
        "client.doctor.main.examine_site", lambda sources, **options: calls.append((sources, options)) or True
    )
    return calls


def test_doctor_calls_its_room(examined: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--dataset", "d"]) == 0
    line = "--dataset d --full --superlink s:1 --ca c --key k --scratch x --cameras top --camera-names top=a"
    assert main(["doctor", *line.split()]) == 0
    files = {"ca": Path("c"), "key": Path("k"), "scratch": Path("x"), "superlink": "s:1"}
    named = {"cameras": "top", "full": True, **files}
    assert examined == [((Source("d"),), UNSET | CAMERAS), ((Source("d", {"top": "a"}),), named)]
    monkeypatch.setattr("client.doctor.main.examine_site", lambda *_, **__: False)
    assert main(["doctor", "--dataset", "d"]) == 1


def test_the_environment_of_a_container_names_what_is_not_typed(
    examined: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SUPERLINK", "CA", "KEY", "SCRATCH", "CAMERAS"):
        monkeypatch.setenv(f"FEDERATION_{name}", name.lower())
    monkeypatch.setenv("FEDERATION_DATASET", "/my data, hf:ann/pick@v1")
    monkeypatch.setenv("FEDERATION_CAMERA_NAMES", "top=phone; top=a b,wrist=none")
    assert main(["doctor"]) == 0
    files = {name: Path(name) for name in ("ca", "key", "scratch")}
    texts = {name: name for name in ("superlink", "cameras")}
    both = Source("/my data", {"top": "phone"}), Source("hf:ann/pick@v1", {"top": "a b", "wrist": "none"})
    assert examined == [(both, UNSET | files | texts)]
    for name in ("SUPERLINK", "CA", "KEY", "SCRATCH", "CAMERAS", "CAMERA_NAMES"):
        monkeypatch.setenv(f"FEDERATION_{name}", "")  # as Compose sets what .env leaves empty
    assert main(["doctor", "--dataset", "d"]) == 0
    assert examined[1:] == [((Source("d"),), UNSET | CAMERAS)]


def test_repair_calls_its_room(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("client.repair.main.repair_and_print", lambda *arguments: calls.append(arguments))
    assert main(["repair", "d"]) == main(["repair", "d", "n", "--without", "3,7"]) == 0
    assert main(["repair"]) == 2
    assert "Missing argument 'DATASET'" in capsys.readouterr().err
    monkeypatch.setenv("FEDERATION_DATASET", "mine")
    assert main(["repair", "--without", "3"]) == 0
    assert calls == [
        (Path("d"), None, "", ""),
        (Path("d"), Path("n"), "3,7", ""),
        (Path("mine"), None, "3", ""),
    ]


def test_exporter_calls_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "client.supernode.exporter.serve_progress", lambda *arguments: calls.append(arguments)
    )
    assert main(["exporter", "--node", "lab-b", "--scratch", "s"]) == 0
    assert main(["exporter", "--node=lab-b", "--scratch=s", "--host=::", "--port=1"]) == 0
    assert calls == [("lab-b", Path("s"), "127.0.0.1", 9401), ("lab-b", Path("s"), "::", 1)]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_line_of_help_an_example_and_refuses_unknown_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_command(app, main, "so100-site", "so100-site ", name, capsys)


def test_the_cameras_that_the_help_names_are_the_defaults() -> None:
    (option,) = (option for option in get_command(app).commands["doctor"].params if option.name == "cameras")
    assert option.help.endswith(f"default: {PolicyConfig().cameras}")


def test_the_operators_containers_have_the_doctor_as_a_program(tmp_path: Path) -> None:
    program = REPOSITORY / "client" / "supernode" / "bin" / "doctor"
    command = [sys.executable, str(program), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage: so100-site doctor" in result.stdout
