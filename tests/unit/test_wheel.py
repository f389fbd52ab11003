"""What a site installs: the wheel of this checkout, built and installed without a network."""

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files

from server.superlink.control import app_files
from tests import REPOSITORY

pytestmark = pytest.mark.slow

PACKAGES = ("federation", "client", "server", "certs")
PROGRAMS = {file.name for file in (REPOSITORY / "client" / "supernode" / "bin").iterdir()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout, in which an earlier build left a file."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "generated")
        shutil.copytree(REPOSITORY / package, copy / package, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    (copy / "build" / "lib" / "client").mkdir(parents=True)
    (copy / "build" / "lib" / "client" / "stale.py").touch()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, "--wheel-dir", str(folder), str(copy)], env=environment, check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone, beside the packages of this one."""
    environment = tmp_path_factory.mktemp("site") / "venv"
    command = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(command, check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", "--no-compile", str(wheel)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment


def _run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    path = f"{installed / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=environment | {"PATH": path}, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_four_packages_and_what_a_supernode_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        project = archive.read("client/project.toml")
    modules = {name for name in entries if name.endswith(".py")}
    ours = {
        file.relative_to(REPOSITORY).as_posix()
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*.py")
    }
    assert modules == ours
    assert project == (REPOSITORY / "pyproject.toml").read_bytes()
    programs = {name for name in entries if name.startswith("client/supernode/bin/")}
    assert {name.rpartition("/")[2] for name in programs} == PROGRAMS
    programs.add("server/superlink/bin/flower-superlink")
    assert all(entries[name].external_attr >> 16 & stat.S_IXUSR for name in programs)
    others = {name for name in entries.keys() - modules - programs if ".dist-info/" not in name}
    assert others == {"client/project.toml"}


def test_the_installed_site_runs_what_this_checkouts_server_sends(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "app.fab").write_bytes(build_fab_from_files(app_files())[0])
    code = (
        "from pathlib import Path\n"
        "from client.supernode.consent import INSTALLED, give_consent\n"
        "print(give_consent(Path('app.fab').read_bytes(), INSTALLED, ''), INSTALLED)"
    )
    result = _run(installed, tmp_path, str(installed / "bin" / "python"), "-c", code)
    assert result.returncode == 0, result.stderr
    consent, folder = result.stdout.split(maxsplit=1)
    assert consent == "True"
    assert Path(folder.strip()).is_relative_to(installed.resolve())


def test_the_commands_run_where_they_are_installed(installed: Path, tmp_path: Path) -> None:
    assert "doctor" in _run(installed, tmp_path, "so100-site", "--help").stdout
    doctor = _run(installed, tmp_path, "so100-site", "doctor", "--dataset", "nothing")
    assert doctor.returncode == 1, doctor.stderr
    assert "error    dataset" in doctor.stdout
    assert "this site is not ready" in doctor.stdout
    elsewhere = _run(installed, tmp_path, "so100-server", "demo")
    assert elsewhere.returncode == 2
    assert "without docker-compose.yml and configs/; run that of a clone" in elsewhere.stderr
    assert elsewhere.stderr.count("\n") == 1
