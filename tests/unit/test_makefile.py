"""Targets that need a name say so before they make anything; any path may hold a blank; Python is found."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY

# Not the one of .venv: a first line of a script cannot name a path with a blank.
INTERPRETER = Path(sys.executable).resolve()


def _make(
    folder: Path, *arguments: str, without: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in without}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("resume", "RUN"),
        ("resume RUN=", "RUN"),
        ("rollback", "RUN"),
        ("rollback RUN=x", "ROUND"),
        ("report", "RUN"),
        ("simulate", "RUN or POLICY"),
        ("serve", "RUN or POLICY"),
        ("compare B=x", "A"),
        ("compare A=x", "B"),
        ("site-revoke", "NAME"),
    ],
)
def test_a_missing_name_is_one_line_and_nothing_is_made(target: str, missing: str, tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    names = ("RUN", "ROUND", "POLICY", "A", "B", "NAME", "SUPERLINK")
    result = _make(tmp_path, *target.split(), without=names)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    name = target.split()[0]
    assert f"{name} needs {missing}: make {name} " in line
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


@pytest.mark.parametrize("target", ["resume RUN=x", "simulate POLICY=x", "compare A=x B=y", "help"])
def test_a_name_that_is_there_is_taken(target: str) -> None:
    command = ["make", "--dry-run", *target.split()]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def _write_program(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in a folder with blanks, whose programs write down their folder and arguments."""
    folder = tmp_path / "Ann Lee" / "so100 clone"
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "Makefile", folder)
    shutil.copytree(
        REPOSITORY / "docker", folder / "docker", ignore=shutil.ignore_patterns("*.json", "*.png")
    )
    (folder / "requirements.lock").touch()
    note = (
        f"#!{INTERPRETER}\nimport json, os, sys\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as calls:\n"
        "    call = [os.getcwd(), *sys.argv[1:]]\n"
        "    print(json.dumps(call), file=calls)\n"
    )
    for name in ("python", "coverage"):
        _write_program(folder / ".venv" / "bin" / name, note)
    _write_program(folder / "docker" / "prepare.sh", note)
    # No Compose: docker/env.sh reads .env itself.
    _write_program(tmp_path / "bin" / "docker", note + "sys.exit(sys.argv[1:3] == ['compose', 'version'])\n")
    (folder / ".venv" / ".installed").touch()
    return folder


def _calls(clone: Path, *arguments: str) -> list[list[str]]:
    """Folder and arguments of each program that make starts."""
    file = clone.parents[1] / "calls"
    file.unlink(missing_ok=True)
    path = f"{clone.parents[1] / 'bin'}:{os.environ['PATH']}"
    result = _make(clone, *arguments, PATH=path)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in file.read_text().splitlines()]


OWN = "my data/arm 1"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            ["demo", f"DATA={OWN}", "CONFIG=my configs/a.toml"],
            ["--data", OWN, "--config", "my configs/a.toml"],
        ),
        (["resume", "RUN=a b", f"DATA={OWN}"], ["resume", "a b", "--data", OWN]),
        (["rollback", "RUN=a b", "ROUND=7"], ["rollback", "a b", "7"]),
        (["report", "RUN=a b"], ["report", "a b"]),
        (["simulate", f"POLICY={OWN}"], ["simulate", "--policy", OWN]),
        (["simulate", "RUN=a b", "SCENES=left,right"], ["simulate", "a b", "--scenes", "left,right"]),
        (["compare", f"A={OWN}", "B=c d"], ["compare", OWN, "c d"]),
        (["serve", f"POLICY={OWN}"], ["serve", "--policy", OWN]),
        (["serve", "RUN=a b"], ["serve", "a b"]),
        (["doctor", f"DATA={OWN}"], ["doctor", "--dataset", OWN]),
        (["site-revoke", "NAME=lab-b"], ["revoke", "lab-b"]),
        (["certs"], ["keys"]),
    ],
)
def test_a_path_with_a_blank_arrives_whole(clone: Path, target: list[str], expected: list[str]) -> None:
    calls = _calls(clone, *target)
    assert all(call[0] == str(clone) for call in calls)
    arguments = next(call[1:] for call in calls if expected[0] in call)
    assert all(argument in arguments for argument in expected)


def test_only_the_samples_own_folder_is_recorded_anew(clone: Path) -> None:
    def recorded(*arguments: str) -> bool:
        return any("sample-data" in call for call in _calls(clone, "demo", *arguments))

    assert recorded()
    assert recorded("DATA=data/sample")
    assert not recorded("DATA=my data/sample")
    assert not recorded("DATA=my data/sample b")


def test_the_tests_coverage_lies_in_the_clone(clone: Path) -> None:
    first = _calls(clone, "test", "PYTEST_ARGS=-q")[0]
    assert first[1:4] == ["run", "-m", "pytest"]
    assert first[-1] == "-q"


@pytest.mark.parametrize("target", ["certs", "up"])
@pytest.mark.parametrize(("line", "recorded"), [("export EVALUATION_DATA='my own'", False), ("A=b", True)])
def test_sample_data_is_recorded_unless_env_names_data_of_ones_own(
    clone: Path, target: str, line: str, recorded: bool
) -> None:
    (clone / ".env").write_text(line)
    calls = _calls(clone, target)
    assert any("sample-data" in call for call in calls) == recorded


@pytest.fixture
def without_python(tmp_path: Path) -> Path:
    """A folder of programs first on the PATH, in which no Python will do."""
    programs = tmp_path / "bin"
    for name in ("python3", "python3.12", "python3.13", "uv"):
        _write_program(programs / name, "#!/bin/sh\nexit 1\n")
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    return programs


def _env(programs: Path) -> subprocess.CompletedProcess[str]:
    home = programs.parent
    return _make(home, "env", without=("PYTHON",), PATH=f"{programs}:{os.environ['PATH']}", HOME=str(home))


def test_without_a_python_that_will_do_one_line_says_what_to_install(without_python: Path) -> None:
    result = _env(without_python)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    for text in ("no Python 3.12 or 3.13", "Debian 12", "Ubuntu 22.04", "uv", "make PYTHON="):
        assert text in line
    assert not (without_python.parent / ".venv").exists()


def test_uv_brings_a_python_where_there_is_none(without_python: Path) -> None:
    folder = without_python.parent
    _write_program(folder / "its python", f"#!/bin/sh\necho \"$*\" >>'{folder}/made'\n")
    _write_program(
        without_python / "uv",
        "#!/bin/sh\n"
        f"case \"$*\" in\n'python install 3.12') touch '{folder}/fetched' ;;\n"
        f"'python find --system 3.12') test -e '{folder}/fetched' && echo '{folder}/its python' ;;\n"
        "*) exit 1 ;;\nesac\n",
    )
    _env(without_python)
    assert (folder / "made").read_text().splitlines()[0] == "-m venv .venv"


@pytest.mark.parametrize(("version", "taken"), [("(3, 11)", False), ("(3, 12)", True), ("(3, 14)", False)])
def test_the_pythons_that_will_do_are_3_12_and_3_13(without_python: Path, version: str, taken: bool) -> None:
    folder = without_python.parent
    _write_program(
        without_python / "python3",
        f"#!{INTERPRETER}\nimport sys\nsys.version_info = {version}\n"
        "if sys.argv[1] == '-c':\n    exec(sys.argv[2])\n"
        f"else:\n    open({str(folder / 'made')!r}, 'w').write(' '.join(sys.argv[1:]))\n",
    )
    _env(without_python)
    assert (folder / "made").exists() == taken
