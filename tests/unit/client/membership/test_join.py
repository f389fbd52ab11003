"""so100-site join: what is accepted, what is kept of it, and what the doctor is asked."""

import io
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from client.cli import main
from client.membership import join
from client.membership.folder import SiteFolder
from client.membership.join import accept, write_settings
from client.membership.key import print_key
from client.membership.supernode import supernode_command, supernode_environment
from client.recordings.sources import Source, parse_sources
from client.rules.owner import RULES_VARIABLE
from federation.errors import CertificateError, ConfigError
from federation.invitation import Invitation, spell_authority


class _StartedError(Exception):
    """In the place of another program."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that this process would have become."""
    calls: list[Any] = []

    def become(*arguments: Any) -> None:
        calls.append(arguments)
        raise _StartedError

    monkeypatch.setattr(join.os, "execve", become)
    return calls


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "my data" / "meta").mkdir(parents=True)
    return tmp_path / "my data"


def _join(site: SiteFolder, *arguments: object) -> int:
    return main(["join", *map(str, arguments), "--folder", str(site.path)])


def test_an_invitation_is_kept_with_its_authority(
    site: SiteFolder, file: Path, invitation: Invitation
) -> None:
    assert accept(site, file) == invitation
    file.unlink()
    assert accept(site, None) == invitation
    assert site.authority.read_text() == invitation.authority
    assert stat.S_IMODE(site.scratch.stat().st_mode) == 0o700


def test_an_invitation_for_another_key_changes_nothing(
    site: SiteFolder, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accept(site, file)
    print_key(site.path, new=True)
    with pytest.raises(CertificateError, match=r"is for the key SHA256:.* and this site's is SHA256:"):
        accept(site, file)
    assert not site.invitation.exists()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_the_owner_is_asked_about_a_new_authority_once(
    site: SiteFolder,
    file: Path,
    invitation: Invitation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal("no\n"))
    with pytest.raises(CertificateError, match="its authority is not accepted"):
        accept(site, file)
    assert spell_authority(invitation.authority) in capsys.readouterr().out
    assert not site.invitation.exists()
    assert not site.authority.exists()
    monkeypatch.setattr("sys.stdin", _Terminal("y\n"))
    assert accept(site, file) == invitation
    assert accept(site, file) == invitation  # a second question would find the end of the input


@pytest.mark.parametrize("missing", ["folder", "key", "invitation", "dataset"])
def test_what_is_missing_is_one_line_with_the_command(
    missing: str, site: SiteFolder, file: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[object] = [file, "--data", dataset]
    if missing == "folder":
        shutil.rmtree(site.path)
    elif missing == "key":
        site.key.unlink()
    elif missing == "invitation":
        arguments = ["--data", dataset]
    else:
        arguments = [file]
    assert _join(site, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    fix = {"invitation": "name the file", "dataset": "--data"}
    assert fix.get(missing, "so100-site key makes it") in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--camera-names", "top"], "must be POLICY_CAMERA=OWN_CAMERA"),
        (["--data", "nowhere"], "--data nowhere: no dataset there"),
        (["--sample-cache-gb", "inf"], "--sample-cache-gb inf: must be a number"),
    ],
)
def test_a_wrong_option_starts_nothing(
    option: list[str],
    message: str,
    site: SiteFolder,
    file: Path,
    dataset: Path,
    started: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _join(site, file, "--data", dataset, *option) == 2
    assert message in capsys.readouterr().err
    assert started == []
    assert not site.settings.exists()


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
        lambda name: name.isprintable() and "/" not in name and name not in (".", "..")
    )
)
def test_flower_reads_any_folder_and_option_as_they_were_given(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("s")
    site, dataset = SiteFolder(folder), folder / f"d{name}"
    (dataset / "meta").mkdir(parents=True)
    invited = Invitation.model_construct(site="lab-b")
    source = Source(str(dataset), {"top": "a"})
    write_settings(site, invited, [source], {"sample-cache-gb": 5.0})
    settings = parse_config_args([str(site.settings)])
    assert settings == {
        "name": "lab-b",
        "dataset": str(site.recordings),
        "scratch": str(site.scratch),
        "policy": str(site.policy),
        "sample-cache-gb": 5.0,
    }
    assert parse_sources(settings) == (Source(str(dataset.resolve()), {"top": "a"}),)


def test_a_choice_that_is_not_made_anew_stays(
    site: SiteFolder, file: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "keep_running", lambda *_: 0)
    monkeypatch.setenv("FEDERATION_SAMPLE_CACHE_GB", "")  # as Compose passes one that is not set
    assert _join(site, file, "--data", dataset, "--sample-cache-gb", "5", "--unchecked") == 0
    assert _join(site, "--unchecked") == 0
    settings = parse_config_args([str(site.settings)])
    assert settings["sample-cache-gb"] == 5.0
    assert parse_sources(settings) == (Source(str(dataset.resolve())),)
    assert _join(site, "--data", dataset, "--unchecked") == 0
    assert "sample-cache-gb" not in parse_config_args([str(site.settings)])


def test_a_rule_that_cannot_be_read_joins_nothing(
    site: SiteFolder, file: Path, dataset: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    site.rules.write_text("min-noise = 'much'")
    assert _join(site, file, "--data", dataset, "--unchecked") == 2
    assert f"{site.rules}: min-noise = 'much': must be a number above 0" in capsys.readouterr().err
    assert started == []


def test_a_path_with_a_line_break_is_refused(site: SiteFolder, invitation: Invitation) -> None:
    with pytest.raises(ConfigError, match="control character"):
        write_settings(site, invitation, [Source("a\nname = 'x'")], {})


def test_the_doctor_looks_with_what_the_invitation_says(
    site: SiteFolder,
    file: Path,
    dataset: Path,
    invitation: Invitation,
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Any] = []

    def examine(sources: Any, **options: Any) -> bool:
        seen.append((sources, options))
        return len(seen) > 1

    monkeypatch.setattr(join, "examine_site", examine)
    names = ["--camera-names", "top=phone"]
    assert _join(site, file, "--data", dataset, *names) == 1
    captured = capsys.readouterr()
    assert spell_authority(invitation.authority) in captured.out
    assert invitation.expects.spell() in captured.out
    assert "not joined" in captured.err
    assert started == []
    ((sources, options),) = seen
    assert sources == (Source(str(dataset), {"top": "phone"}),)
    assert options == {
        "policy": invitation.expects.as_policy(),
        "full": False,
        "scratch": site.scratch,
        "key": site.key,
        "ca": site.authority,
        "superlink": "localhost:9",
        "gpu_bytes": invitation.expects.gpu_bytes,
        "app": invitation.expects.app,
        "rules": site.rules,
        "round_bytes": invitation.expects.round_bytes,
    }
    monkeypatch.setenv("FEDERATION_DATASET", "/other")
    with pytest.raises(_StartedError):
        _join(site, "--data", dataset)
    ((program, command, environment),) = started
    assert "FEDERATION_DATASET" not in environment  # in the place of what was just chosen
    assert command[0] == program
    assert command[2:] == ["join", "--folder", str(site.path), "--unchecked"]
    assert Path(command[1]).name == "so100-site"


def test_the_doctor_looks_at_the_site_of_this_machine(
    site: SiteFolder, dataset: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = site.path.with_name("so100-federation")
    site.path.rename(home)
    site = SiteFolder(home)
    write_settings(site, accept(site, file), [Source(str(dataset))], {})
    seen: list[Any] = []
    monkeypatch.setattr(join, "examine_site", lambda sources, **_: seen.append(sources) or True)
    monkeypatch.setenv("XDG_DATA_HOME", str(home.parent))
    assert main(["doctor"]) == 0
    assert seen == [(Source(str(dataset)),)]


def test_the_supernode_gets_the_sites_files_and_programs(
    site: SiteFolder, file: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(join, "keep_running", lambda *arguments: kept.append(arguments) or 0)
    assert _join(site, file, "--data", dataset, "--unchecked") == 0
    assert kept == [(site, "localhost:9")]
    environment = supernode_environment(site, {"FLWR_HOME": "/tmp/flwr", "PATH": "/bin"})
    command = supernode_command(site, "localhost:9", environment)
    assert Path(command[1]).name == "flower-supernode"
    assert Path(command[1]).parent == Path(environment["PATH"].split(os.pathsep)[0])
    options = dict(zip(command[2::2], command[3::2], strict=True))
    port = options.pop("--port")
    assert 1024 <= int(port) < 65536
    assert options == {
        "--superlink": "localhost:9",
        "--root-certificates": str(site.authority),
        "--auth-supernode-private-key": str(site.key),
        "--node-config": str(site.settings),
        "--host": "127.0.0.1",
    }
    assert environment["FLWR_HOME"] == "/tmp/flwr"
    assert environment[RULES_VARIABLE] == str(site.rules)
    assert "127.0.0.1" in environment["NO_PROXY"]


def test_two_sites_of_one_machine_do_not_share_a_port(site: SiteFolder) -> None:
    environment = supernode_environment(site, {"PATH": ""})
    assert environment["FLWR_HOME"] == str(site.path / "flower")
    commands = [supernode_command(site, "s:1", environment) for _ in range(2)]
    assert all(command[-2] == "--port" for command in commands)
