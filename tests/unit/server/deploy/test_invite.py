"""Inviting and revoking sites elsewhere: no secret comes here, and none leaves."""

import errno
import os
import re
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from certs.invited import record_key, registered_key, retire_site
from certs.issue import issue_all
from federation.errors import CertificateError
from federation.invitation import read_invitation, spell_authority
from federation.site_key import new_key, public_key
from federation.versions import versions
from server.cli import main
from server.deploy import register
from server.deploy.invite import revoke_key, write_invitation
from server.superlink.control import ControlError
from tests import REPOSITORY

pytestmark = pytest.mark.slow

SUPERLINK = "fed.example.org:443"
KEY = public_key(new_key())
CONFIG = Path("configs/demo.toml")


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certs") / "generated"
    issue_all(out, hosts=["fed.example.org", "2001:db8::7"], sites=["site-a"])
    return out


@pytest.fixture
def certs(issued: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(issued, tmp_path / "generated"))


def _invite(certs: Path, name: str = "lab-b", superlink: str = SUPERLINK, key: str = KEY.spell()) -> int:
    """`so100-server invite`, where SuperLink does not run."""
    line = ["invite", name, "--key", key, "--superlink", superlink]
    return main([*line, "--certs", str(certs), "--control", "127.0.0.1:9"])


def _invitation(certs: Path, name: str = "lab-b") -> Path:
    return certs / "invited" / name / f"{name}.invitation.json"


def test_the_invitation_has_what_a_site_needs_and_no_secret(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _invite(certs) == 0
    printed = capsys.readouterr().out
    found = read_invitation(_invitation(certs))
    assert (found.site, found.superlink, found.key) == ("lab-b", SUPERLINK, KEY.fingerprint)
    assert found.authority == (certs / "superlink" / "ca.crt").read_text()
    assert f"made {_invitation(certs)}; it holds no secret" in printed
    assert spell_authority(found.authority) in printed
    assert found.expects.spell() in printed
    content = _invitation(certs).read_text()
    for secret in (*certs.rglob("*.key"), *certs.rglob("*.secret")):
        assert not any(line in content for line in secret.read_text().splitlines() if len(line) > 30)
    assert "PRIVATE" not in content + printed


def test_the_bytes_of_a_round_are_those_of_the_demos_policy(certs: Path) -> None:
    invitation, _ = write_invitation(certs, "lab-b", KEY.spell(), SUPERLINK, CONFIG)
    assert invitation.expects.model_dump() == {
        "cameras": "top,wrist",
        "empty_cameras": 0,
        "joint_units": "degrees",
        "fps": 30,
        "policy": "tiny",
        "app": versions()["app"],
        "download_bytes": 207_296,
        "upload_bytes": 107_712,
        "gpu_bytes": None,
    }


def test_a_policy_that_cannot_be_had_leaves_the_bytes_out(certs: Path) -> None:
    config = Path("configs/smolvla.toml")  # the tests' Hub is offline
    invitation, _ = write_invitation(certs, "lab-b", KEY.spell(), SUPERLINK, config)
    assert invitation.expects.policy == "lerobot/smolvla_base"
    assert invitation.expects.upload_bytes is None
    assert invitation.expects.gpu_bytes == pytest.approx(6e9, rel=0.1)  # an estimate all the same


def test_where_superlink_does_not_run_the_key_is_recorded_for_the_run_service(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _invite(certs) == 0
    assert "lab-b cannot join yet: SuperLink at " in capsys.readouterr().out
    folder = certs / "invited" / "lab-b"
    assert (folder / "node.key.pub").read_text() == KEY.spell("lab-b") + "\n"
    assert sorted(path.name for path in folder.iterdir()) == ["lab-b.invitation.json", "node.key.pub"]
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["run"]
    invited, revoked = (volume for volume in compose["volumes"] if isinstance(volume, dict))
    assert (invited["source"], invited["read_only"]) == ("./certs/generated/invited", True)
    assert f"--invited={invited['target']}" in compose["entrypoint"]
    assert (revoked["source"], revoked["read_only"]) == ("./certs/generated/revoked", True)
    assert Path(revoked["target"]) == Path(invited["target"]).with_name("revoked")


def test_the_same_key_gives_the_same_invitation_and_nothing_is_open_to_others(certs: Path) -> None:
    assert _invite(certs) == 0
    first = _invitation(certs).read_bytes()
    assert _invite(certs, key="> " + KEY.line + "\n>  Ann's\n") == 0
    assert _invitation(certs).read_bytes() == first
    for path, mode in ((_invitation(certs), 0o600), (_invitation(certs).parent, 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert main(["keys", "--check", "--out", str(certs)]) == 0


@pytest.mark.parametrize(
    ("name", "superlink", "message"),
    [
        ("lab-b", "other.example.org:443", "is not valid for other.example.org but for .*add it to hosts in"),
        ("lab-b", "fed.example.org", "must be HOST:PORT"),
        ("lab-b", "https://fed.example.org:443", "must be a DNS name or an IP address"),
        ("lab-b", ":443", "must be HOST:PORT"),
        ("lab-b", "fed.example.org:99999", "must be HOST:PORT"),
        ("Lab B", SUPERLINK, "site name 'Lab B'"),
        ("../x", SUPERLINK, "site name"),
        ("", SUPERLINK, "site name ''"),
        ("site-a", SUPERLINK, "site-a has the key SHA256:.*revoke site-a first"),
    ],
)
def test_bad_input_is_one_line_and_records_nothing(
    name: str, superlink: str, message: str, certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _invite(certs, name, superlink) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{message}", line)
    assert list((certs / "invited").iterdir()) == []


def test_a_key_is_that_of_one_site_and_a_site_has_one_key(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _invite(certs) == 0
    assert _invite(certs, "lab-c") == 2
    assert "this key is the one of lab-b" in capsys.readouterr().err
    assert _invite(certs, key=public_key(new_key()).spell()) == 2
    assert "so100-server revoke lab-b first" in capsys.readouterr().err
    assert _invite(certs, "lab-c", key="no key") == 2
    assert "so100-site key" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_revocation_by_root_leaves_the_key_to_the_owner_of_the_folder(certs: Path) -> None:
    (certs / "revoked").rmdir()
    os.chown(certs, 1234, 1234)
    target = retire_site(certs, "site-a")
    assert target.parent.stat().st_uid == 1234


def test_a_folder_of_revoked_keys_that_may_not_be_read_is_not_passed_over(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = registered_key(certs, "site-a")

    def denied(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(PermissionError):
        record_key(certs, "lab-c", key)


def test_a_revoked_key_is_kept_apart_and_never_invited_again(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _invite(certs) == 0
    target = retire_site(certs, "lab-b", datetime(2026, 11, 23, 9, 5, tzinfo=UTC))
    assert target == certs / "revoked" / "lab-b-20261123-090500"
    assert (target / "node.key.pub").read_text() == KEY.spell("lab-b") + "\n"
    assert not (certs / "invited" / "lab-b").exists()
    for name in ("lab-b", "lab-c"):
        assert _invite(certs, name) == 2
        assert "this key was revoked (lab-b-20261123-090500)" in capsys.readouterr().err
    assert _invite(certs, key=public_key(new_key()).spell()) == 0


def test_a_site_of_this_machine_is_retired_with_its_key(certs: Path) -> None:
    key = (certs / "sites" / "site-a" / "node.key").read_bytes()
    target = retire_site(certs, "site-a")
    assert (target / "node.key").read_bytes() == key
    assert not (certs / "sites" / "site-a").exists()


def test_a_host_counts_in_any_spelling(certs: Path) -> None:
    for superlink in ("FED.example.org:443", "[2001:DB8:0::7]:443"):
        write_invitation(certs, "lab-b", KEY.spell(), superlink, CONFIG)


def test_an_expired_certificate_is_told_before_a_site_gets_it(tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=400)
    issue_all(tmp_path / "old", hosts=["fed.example.org"], sites=[], now=past)
    with pytest.raises(CertificateError, match="expired"):
        write_invitation(tmp_path / "old", "lab-b", KEY.spell(), SUPERLINK, CONFIG)


def test_a_site_stays_where_it_is_if_superlink_could_not_be_told(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else its key would be gone from here and still let in there."""
    assert main(["revoke", "site-a", "--certs", str(certs), "--control", "127.0.0.1:9"]) == 2
    assert "cannot be reached to list nodes" in capsys.readouterr().err
    assert (certs / "sites" / "site-a" / "node.key").is_file()


def test_revoking_an_unknown_site_names_those_there_are(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["revoke", "lab-z", "--certs", str(certs)]) == 2
    assert "no site lab-z; there are site-a" in capsys.readouterr().err


def test_superlink_is_told_in_the_network_of_the_containers(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 0, "site-a is revoked\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert revoke_key(certs, "site-a", None) == "site-a is revoked"
    (command,) = seen
    assert command[:6] == ["docker", "compose", "run", "--rm", "--no-deps", "-T"]
    # Not the service's own program.
    assert command[6:12] == ["--entrypoint", "python", "run", "-m", "server.cli", "register"]
    assert "--revoke" in command
    assert command[command.index("--key") + 1].startswith("ecdsa-sha2-nistp384 ")
    assert not any("PRIVATE" in part for part in command)


def test_a_machine_without_docker_is_told_the_other_way(
    certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ControlError, match=r"docker cannot be started here .* --control host:port"):
        revoke_key(certs, "site-a", None)


@pytest.mark.parametrize(
    ("known", "revoke", "said"),
    [
        (True, False, "lab-b may join"),
        (True, True, "lab-b is revoked"),
        (False, True, "lab-b was not registered"),
    ],
)
def test_admission_says_what_it_did(
    known: bool,
    revoke: bool,
    said: str,
    certs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys: list[str] = []
    monkeypatch.setattr(register, "register_supernode", lambda superlink, key, name: keys.append(key))
    monkeypatch.setattr(register, "unregister_supernode", lambda superlink, key: keys.append(key) or known)
    arguments = ["--superlink", "superlink:8000", "--ca", str(certs / "superlink" / "ca.crt")]
    arguments += ["--name", "lab-b", "--key", "ecdsa-sha2-nistp384 AAAA", *(["--revoke"] if revoke else [])]
    assert main(["register", *arguments]) == 0
    assert capsys.readouterr().out == f"{said}\n"
    assert keys == ["ecdsa-sha2-nistp384 AAAA"]


def test_admission_without_a_certificate_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--superlink", "s:1", "--ca", str(tmp_path / "ca.crt"), "--name", "n", "--key", "k"]
    assert main(["register", *arguments]) == 2
    assert "ca.crt is missing; run make certs" in capsys.readouterr().err
