"""docker/prepare.sh, as `make certs` calls it: .env, the keys' owner, and which data is run on."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from certs.issue import issue_all
from server.cli import main
from tests import REPOSITORY

pytestmark = pytest.mark.slow

USER, OTHER = 1234, 10001
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
Prepare = Callable[..., subprocess.CompletedProcess[str]]


def _write_program(file: Path, body: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What an operator has after `make keys` and `make sample-data`."""
    folder = tmp_path / "checkout"
    (folder / "docker").mkdir(parents=True)
    for name in ("prepare.sh", "env.sh", "no-rules.toml", "prometheus", "grafana"):
        source = REPOSITORY / "docker" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / "docker" / name)
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    issue_all(folder / "certs" / "generated", hosts=[], sites=["site-a", "site-b"])
    for name in ("site-a", "site-b", "holdout"):
        (folder / "data" / "sample" / name).mkdir(parents=True)
    (folder / "own").mkdir()
    _write_program(folder / "bin" / "docker", "exit 1")  # without Compose, .env is read here
    return folder


@pytest.fixture
def prepare(checkout: Path) -> Prepare:
    """Run it in the checkout, as the user of this number, with these variables."""

    def run(user: int | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        for path in (checkout, *checkout.parents):  # pytest's own folders are closed to others
            if user is not None and path.stat().st_uid == 0 and len(path.parts) > 2:
                path.chmod(path.stat().st_mode | 0o711)
        path = f"{checkout / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(checkout)} | variables
        return subprocess.run(
            [str(checkout / "docker" / "prepare.sh")],
            env=environment,
            capture_output=True,
            text=True,
            user=user,
            group=user,
            timeout=60,
        )

    return run


def _give(folder: Path, user: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


def _owners(checkout: Path) -> set[int]:
    generated = checkout / "certs" / "generated"
    return {f.stat().st_uid for part in ("superlink", "sites") for f in (generated / part).rglob("*")}


def _env(checkout: Path) -> list[str]:
    return (checkout / ".env").read_text().splitlines()


def test_nobody_else_reads_env_which_may_hold_tokens(checkout: Path, prepare: Prepare) -> None:
    assert prepare().returncode == 0
    assert stat.S_IMODE((checkout / ".env").stat().st_mode) == 0o600
    (checkout / ".env").chmod(0o644)
    assert prepare().returncode == 0
    assert stat.S_IMODE((checkout / ".env").stat().st_mode) == 0o600


def test_a_line_without_an_end_stays_a_line_of_its_own(checkout: Path, prepare: Prepare) -> None:
    (checkout / ".env").write_text("CONFIG=configs/demo.toml")
    assert prepare().returncode == 0
    assert [line.split("=")[0] for line in _env(checkout)] == ["CONFIG", "FEDERATION_UID", "FEDERATION_GID"]


@pytest.mark.parametrize(
    "line",
    [
        "FEDERATION_UID=",
        " FEDERATION_UID = ",
        "#FEDERATION_UID=7",
        "MY_FEDERATION_UID=7",
        "A='FEDERATION_UID=7'",
    ],
)
def test_an_id_that_is_not_set_is_appended_and_wins(checkout: Path, prepare: Prepare, line: str) -> None:
    (checkout / ".env").write_text(line)
    assert prepare().returncode == 0
    assert _env(checkout)[0] == line
    assert [name.split("=")[0] for name in _env(checkout)[1:]] == ["FEDERATION_UID", "FEDERATION_GID"]


@root_only
@pytest.mark.parametrize(
    "line", ["export FEDERATION_UID=4321", "FEDERATION_UID: '4321'", "\ufeffFEDERATION_UID=4321"]
)
def test_an_id_that_is_set_stays(checkout: Path, prepare: Prepare, line: str) -> None:
    (checkout / ".env").write_text(line + "\r\n", newline="")
    assert prepare().returncode == 0
    assert [name.split("=")[0] for name in _env(checkout)[1:]] == ["FEDERATION_GID"]
    assert _owners(checkout) == {4321}


NAMES = ("SITE_A_DATA", "SITE_B_DATA", "EVALUATION_DATA")


def test_where_all_sites_are_elsewhere_the_held_out_data_is_all_that_is_here(
    checkout: Path, prepare: Prepare
) -> None:
    for name in ("site-a", "site-b", "holdout"):
        (checkout / "data" / "sample" / name).rmdir()
    lines = [
        "COMPOSE_FILE=docker-compose.yml:docker/compose.invited.yml",
        "CONFIG=configs/smolvla.toml",
        "EVALUATION_DATA=./own",
    ]
    (checkout / ".env").write_text("\n".join(lines))
    done = prepare()
    assert done.returncode == 0, done.stderr
    (checkout / ".env").write_text(lines[0])
    assert "CONFIG is not set: name in .env" in prepare().stderr
    (checkout / ".env").write_text("\n".join(lines[:2]))
    assert "EVALUATION_DATA: no folder ./data/sample/holdout" in prepare().stderr


@pytest.mark.parametrize("where", ["file", "environment"])
@pytest.mark.parametrize("given", [NAMES[:1], NAMES[1:2], NAMES[2:], NAMES[:2], NAMES[1:]])
def test_data_of_ones_own_is_named_everywhere_or_nowhere(
    checkout: Path, prepare: Prepare, given: tuple[str, ...], where: str
) -> None:
    own = dict.fromkeys(given, "./own")
    if where == "file":
        (checkout / ".env").write_text("".join(f"{name}={folder}\n" for name, folder in own.items()))
    result = prepare(**(own if where == "environment" else {}))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    missing = " ".join(name for name in NAMES if name not in given)
    assert f"{' '.join(given)} is set and {missing} is not" in result.stderr


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "SITE_A_DATA=\n",
        "SITE_A_DATA=./own\nSITE_B_DATA=./own\nEVALUATION_DATA=./own\n",
        "SITE_A_DATA='./own'\r\nSITE_B_DATA=\"./own\"\r\nEVALUATION_DATA=~/own\r\n",
        "SITE_A_DATA='./own' # mine\nSITE_B_DATA=./own # mine\nEVALUATION_DATA=./own \n",
        "SITE_A_DATA=./none\nSITE_A_DATA=./own\nSITE_B_DATA=${HOME}/own\nEVALUATION_DATA=./own",
    ],
)
def test_all_three_or_none_are_taken_as_compose_takes_them(
    checkout: Path, prepare: Prepare, lines: str
) -> None:
    (checkout / ".env").write_text(lines, newline="")
    result = prepare()
    assert (result.returncode, result.stderr) == (0, "")


def test_a_folder_that_is_missing_is_named(checkout: Path, prepare: Prepare) -> None:
    result = prepare(**dict.fromkeys(NAMES, "./nowhere"))
    assert (result.returncode, result.stderr) == (
        2,
        "error: SITE_A_DATA: no folder ./nowhere; set it in .env, or run make sample-data\n",
    )


def _closed(folder: Path) -> None:
    """What a clone or a copy under umask 077 is like."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def test_what_prometheus_and_grafana_read_is_opened_in_a_clone_under_a_strict_umask(
    checkout: Path, prepare: Prepare
) -> None:
    folders = [checkout / "docker" / "prometheus", checkout / "docker" / "grafana", checkout / "configs"]
    for folder in folders:
        _closed(folder)
    assert prepare().returncode == 0
    for path in (file for folder in folders for file in (folder, *folder.rglob("*"))):
        assert path.stat().st_mode & 0o004, path
        assert path.is_file() or path.stat().st_mode & 0o001, path
    assert stat.S_IMODE((checkout / "certs" / "generated" / "ca" / "ca.key").stat().st_mode) == 0o600


def test_the_rules_of_the_sites_can_be_read_by_their_containers(checkout: Path, prepare: Prepare) -> None:
    (checkout / "docker" / "no-rules.toml").chmod(0o600)
    assert prepare().returncode == 0
    assert (checkout / "docker" / "no-rules.toml").stat().st_mode & 0o004
    result = prepare(SITE_B_RULES="own/rules.toml")
    assert (result.returncode, result.stderr) == (
        2,
        "error: SITE_B_RULES: no file own/rules.toml; set it in .env\n",
    )
    (checkout / "own" / "rules.toml").touch()
    assert prepare(SITE_B_RULES="own/rules.toml").returncode == 0


@root_only
def test_rules_of_ones_own_that_the_containers_could_not_read_are_named(
    checkout: Path, prepare: Prepare
) -> None:
    (checkout / "own" / "rules.toml").touch(0o600)
    result = prepare(SITE_A_RULES="own/rules.toml")
    assert f"SITE_A_RULES: own/rules.toml cannot be read by user {OTHER}" in result.stderr
    assert stat.S_IMODE((checkout / "own" / "rules.toml").stat().st_mode) == 0o600


@pytest.mark.parametrize("left", ["node.key.pub", ""])
def test_a_key_that_compose_names_and_is_missing_is_named_with_the_way_to_have_it(
    checkout: Path, prepare: Prepare, left: str
) -> None:
    site = checkout / "certs" / "generated" / "sites" / "site-b"
    if left:
        (site / left).unlink()
    else:
        shutil.rmtree(site.parent)
    result = prepare()
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "node.key.pub is missing" in result.stderr
    assert "into sites in configs/certs.toml and run make certs again" in result.stderr


@root_only
def test_files_that_cannot_be_opened_are_named_with_the_command(checkout: Path, prepare: Prepare) -> None:
    _closed(checkout / "configs")
    _write_program(checkout / "bin" / "chmod", 'test "$1" = -R || exec /bin/chmod "$@"')
    result = prepare()
    assert (result.returncode, result.stderr) == (
        2,
        "error: configs cannot be read by the containers; run sudo chmod -R a+rX configs\n",
    )


@root_only
def test_data_that_the_containers_could_not_read_is_named_with_the_command(
    checkout: Path, prepare: Prepare
) -> None:
    video = checkout / "own" / "videos" / "file-000.mp4"
    video.parent.mkdir()
    video.touch(0o600)
    own = dict.fromkeys(NAMES, "own")
    result = prepare(**own)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"SITE_A_DATA: {video.relative_to(checkout)} cannot be read by user {OTHER}" in result.stderr
    command = result.stderr.partition("run chmod")[2].strip()
    subprocess.run(f"chmod {command}", shell=True, cwd=checkout, check=True)
    assert prepare(**own).returncode == 0


def test_sample_data_that_was_recorded_under_a_strict_umask_is_opened(
    checkout: Path, prepare: Prepare
) -> None:
    (checkout / "data" / "sample" / "site-b" / "info.json").touch(0o600)
    _closed(checkout / "data" / "sample")
    assert prepare().returncode == 0
    assert (checkout / "data" / "sample" / "site-b" / "info.json").stat().st_mode & 0o004


@root_only
def test_a_users_own_data_need_not_be_open_to_others(checkout: Path, prepare: Prepare) -> None:
    _give(checkout, USER)
    _closed(checkout / "data")
    assert prepare(USER).returncode == 0


def test_folders_without_the_label_that_selinux_wants_are_named(checkout: Path, prepare: Prepare) -> None:
    _write_program(checkout / "bin" / "getenforce", "echo Enforcing")
    assert prepare().returncode == 0  # an engine without SELinux
    _write_program(checkout / "bin" / "docker", "test $1 = info && echo ' Security Options:\n  selinux'")
    result = prepare()
    assert result.returncode == 2
    assert 'run sudo chcon -R -t container_file_t "certs/generated/superlink"' in result.stderr
    _write_program(
        checkout / "bin" / "ls",
        'test "$1" != -Zd || exec echo system_u:object_r:container_file_t:s0 "$2"\nexec /bin/ls "$@"',
    )
    assert prepare().returncode == 0


def _value_of(folder: Path, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("A", "B")} | variables
    command = [str(folder / "docker" / "env.sh"), name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("A=x", "x"),
        ("A=x\r\n", "x"),
        ("A='x y' # mine\n", "x y"),
        ('A="x # y"\n', "x # y"),
        ("A=x#y # z \n", "x#y"),
        ("A=x\t# z\n", "x\t# z"),
        ("A= # z\n", "# z"),
        ("A=~/x y\n", "~/x y"),
        ("A=x\nA=y\n", "y"),
        ("A=x\nA=\n", ""),
        ("A=x\nA=", ""),
        ("export A=x\nAB=y\n#A=z\n", "x"),
        (" A : x\n", "x"),
        ("\ufeffA=x\n", "x"),
    ],
)
def test_env_is_read_by_composes_rules_without_it(checkout: Path, content: str, value: str) -> None:
    (checkout / ".env").write_text(content, newline="")
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    assert _value_of(checkout, "A", PATH=path).stdout == f"{value}\n"
    assert _value_of(checkout, "A", PATH=path, A="").stdout == "\n"  # the environment wins, also if empty


@root_only
def test_roots_keys_go_to_an_id_of_the_containers_own(checkout: Path, prepare: Prepare) -> None:
    for _ in range(2):
        assert prepare().returncode == 0
        assert _owners(checkout) == {OTHER}
    assert f"FEDERATION_UID={OTHER}" in _env(checkout)
    assert (checkout / "certs" / "generated" / "ca" / "ca.key").stat().st_uid == 0


@root_only
@pytest.mark.parametrize("first", ["user", "root"])
def test_root_in_a_users_checkout_leaves_what_the_user_and_the_containers_can_read(
    checkout: Path, prepare: Prepare, first: str
) -> None:
    _give(checkout, USER)
    for user in (USER, None) if first == "user" else (None, USER):
        result = prepare(user)
        assert (result.returncode, result.stderr) == (0, "")
    issue_all(checkout / "certs" / "generated", hosts=[], sites=["site-a", "site-b", "lab-c"])  # as root
    assert prepare(USER).returncode == 0
    assert _owners(checkout) == {USER}
    assert (checkout / ".env").stat().st_uid == USER
    assert f"FEDERATION_UID={USER}" in _env(checkout)


@root_only
def test_keys_that_the_containers_could_not_read_are_refused_with_what_to_do(
    checkout: Path, prepare: Prepare
) -> None:
    _give(checkout, USER)
    (checkout / ".env").write_text(f"FEDERATION_UID={OTHER}\nFEDERATION_GID={OTHER}\n")
    os.chown(checkout / ".env", USER, USER)
    result = prepare(USER)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"run as user {OTHER}" in result.stderr
    assert f"belong to user {USER}" in result.stderr
    assert f"put FEDERATION_UID={USER} and FEDERATION_GID={USER} into .env" in result.stderr
    assert prepare().returncode == 0  # sudo make certs
    assert _owners(checkout) == {OTHER}


@root_only
def test_a_user_who_may_not_see_roots_keys_is_told_the_way(checkout: Path, prepare: Prepare) -> None:
    (checkout / "docker" / "prepare.sh").chmod(0o755)
    result = prepare(USER)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_keys_that_may_not_be_read_are_named_with_the_command_that_gives_them_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "certs/generated/superlink/server.key")

    monkeypatch.setattr("certs.issue.issue_all", closed)
    assert main(["keys"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: certs/generated/superlink/server.key: ")
    assert f"sudo chown -R {os.getuid()}:{os.getgid()} certs/generated" in error


_NO_RUNTIME = (
    "error: GPUs are asked for, and Docker has no NVIDIA runtime: install NVIDIA's container toolkit"
)


@pytest.mark.parametrize("asked", ["variable", "file", "nobody"])
def test_gpus_without_nvidias_runtime_are_one_line(checkout: Path, prepare: Prepare, asked: str) -> None:
    if asked == "file":
        (checkout / ".env").write_text("COMPOSE_FILE=docker-compose.yml:docker/compose.gpu.yml\n")
    result = prepare(**({"GPU": "1"} if asked == "variable" else {}))
    assert result.returncode == (0 if asked == "nobody" else 2), result.stderr
    assert result.stderr.startswith(_NO_RUNTIME) == (asked != "nobody")
    assert len(result.stderr.splitlines()) == (asked != "nobody")


@pytest.mark.parametrize("program", ["docker", "nvidia-ctk"])
def test_gpus_with_nvidias_runtime_pass(checkout: Path, prepare: Prepare, program: str) -> None:
    body = {"docker": '[ "$1" = info ] && echo " Runtimes: nvidia runc"', "nvidia-ctk": "exit 0"}[program]
    _write_program(checkout / "bin" / program, body)
    assert prepare(GPU="1").returncode == 0


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "docker-compose.yml"),
        ("COMPOSE_FILE=a.yml:b.yml\n", "a.yml:b.yml"),
        ("COMPOSE_FILE=a.yml\nexport COMPOSE_FILE = 'my a.yml:b.yml' # mine\r\n", "my a.yml:b.yml"),
    ],
)
def test_what_up_is_asked_for_is_asked_of_every_later_compose(
    checkout: Path, prepare: Prepare, lines: str, expected: str
) -> None:
    _write_program(checkout / "bin" / "nvidia-ctk", "exit 0")
    (checkout / ".env").write_text(lines, newline="")
    for _ in range(2):
        assert prepare(GPU="1", CONFIG="configs/smolvla.toml").returncode == 0
    added = _env(checkout)[len(lines.splitlines()) :]
    assert [line for line in added if not line.startswith("FEDERATION_")] == [
        f"COMPOSE_FILE={expected}:docker/compose.gpu.yml",
        "CONFIG=configs/smolvla.toml",
    ]
    assert prepare().returncode == 0
    assert _env(checkout)[len(lines.splitlines()) :] == added


@root_only
@pytest.mark.parametrize(
    ("says", "user"),
    [
        ("Security Options:\n  seccomp\n  rootless\n  cgroupns", 0),
        ("    rootless: true", 0),  # Podman under Docker's name
        ("    rootless: false", USER),
        ("Security Options:\n  seccomp", USER),
    ],
)
def test_under_a_rootless_engine_the_containers_run_as_its_user(
    checkout: Path, prepare: Prepare, says: str, user: int
) -> None:
    _give(checkout, USER)
    _write_program(checkout / "bin" / "docker", f"[ \"$1\" = info ] && printf '%s\\n' '{says}'")
    result = prepare(USER)
    assert result.returncode == 0, result.stderr
    assert {f"FEDERATION_UID={user}", f"FEDERATION_GID={user}"} <= set(_env(checkout))
