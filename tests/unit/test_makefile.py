"""The targets that need a name say so before they make anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


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
        ("site SUPERLINK=x:1", "NAME"),
        ("site NAME=x", "SUPERLINK"),
        ("site-revoke", "NAME"),
    ],
)
def test_a_missing_name_is_one_line_and_nothing_is_made(target: str, missing: str, tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    names = ("RUN", "ROUND", "POLICY", "A", "B", "NAME", "SUPERLINK")
    # Under `make test` an outer make set variables that let this one print the folders that it enters.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in names and not name.startswith(("MAKE", "MFLAGS"))
    }
    result = subprocess.run(
        ["make", *target.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
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
