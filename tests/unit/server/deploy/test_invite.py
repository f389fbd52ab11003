import re
import shutil
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import yaml

from certs.authority import CertificateError
from certs.issue import issue_all
from client.doctor.connection import check_superlink
from server.cli import main
from server.deploy import invite, register
from server.deploy.invite import make_bundle, retire_site, revoke_key
from server.deploy.local_cluster import LocalCluster
from server.superlink.control import ControlError
from tests import REPOSITORY

SUPERLINK = "fed.example.org:443"


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certs") / "generated"
    issue_all(out, hosts=["fed.example.org", "2001:db8::7"], sites=["site-a"])
    return out


@pytest.fixture
def certs(issued: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(issued, tmp_path / "generated"))


@pytest.fixture
def unpacked(certs: Path, tmp_path: Path) -> Path:
    """The folder a site's owner gets."""
    with tarfile.open(make_bundle(certs, "lab-b", SUPERLINK)) as archive:
        archive.extractall(tmp_path / "site", filter="data")
    return tmp_path / "site" / "so100-lab-b"


def _settings(unpacked: Path) -> dict[str, str]:
    lines = (unpacked / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_archive_has_what_a_site_needs_and_no_more(certs: Path, unpacked: Path) -> None:
    assert sorted(path.name for path in unpacked.iterdir()) == [
        *(
            ".env",
            "README.md",
            "ca.crt",
            "docker-compose.gpu.yml",
            "docker-compose.yml",
            "node.key",
            "scratch",
        )
    ]
    assert (unpacked / "ca.crt").read_bytes() == (certs / "superlink" / "ca.crt").read_bytes()
    assert (unpacked / "node.key").read_bytes() == (certs / "sites" / "lab-b" / "node.key").read_bytes()
    assert not any(
        (certs / "ca" / "ca.key").read_bytes() in file.read_bytes() for file in unpacked.glob("*.*")
    )


def test_the_archive_and_the_key_in_it_are_for_their_owner_alone(certs: Path, unpacked: Path) -> None:
    bundle = certs / "bundles" / "lab-b.tar.gz"
    for path, mode in ((bundle, 0o600), (bundle.parent, 0o700), (unpacked / "node.key", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    with tarfile.open(bundle) as archive:
        assert archive.getmember("so100-lab-b/scratch").mode == 0o700


def test_the_same_site_gives_the_same_archive_again_with_the_same_key(certs: Path) -> None:
    first = make_bundle(certs, "lab-b", SUPERLINK).read_bytes()
    assert make_bundle(certs, "lab-b", SUPERLINK).read_bytes() == first
    assert make_bundle(certs, "lab-c", SUPERLINK).read_bytes() != first


def test_only_the_data_set_is_left_to_fill_in(unpacked: Path) -> None:
    settings = _settings(unpacked)
    assert settings["DATASET"] == ""
    assert settings["SITE"] == "lab-b"
    assert settings["SUPERLINK"] == SUPERLINK
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    assert settings["IMAGE"] == compose["services"]["supernode-a"]["image"]
    assert settings["FEDERATION_ALLOW_APP"] == ""
    used = set(re.findall(r"\$\{(\w+)", (unpacked / "docker-compose.yml").read_text()))
    assert used - settings.keys() == {"PULL_POLICY"}


def test_the_readme_is_short_and_says_what_leaves_and_how_to_leave(unpacked: Path) -> None:
    text = (unpacked / "README.md").read_text()
    assert len([line for line in text.splitlines() if line]) <= 16
    for words in (
        "lab-b",
        SUPERLINK,
        "doctor",
        "docker compose up -d",
        "logs -f",
        "What leaves",
        "site-revoke",
    ):
        assert words in text
    assert "$" not in text


def test_the_container_is_locked_down_and_opens_no_port(unpacked: Path) -> None:
    (service,) = yaml.safe_load((unpacked / "docker-compose.yml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "always"
    assert service["pull_policy"] == "${PULL_POLICY:-never}"
    assert "ports" not in service
    assert "privileged" not in service
    writable = [volume["target"] for volume in service["volumes"] if not volume.get("read_only")]
    assert writable == ["/scratch"]


def test_the_gpu_is_a_second_file_for_the_same_service(unpacked: Path) -> None:
    cpu, gpu = (
        yaml.safe_load((unpacked / name).read_text())["services"]
        for name in ("docker-compose.yml", "docker-compose.gpu.yml")
    )
    assert cpu.keys() == gpu.keys()
    devices = gpu["supernode"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


@pytest.mark.parametrize(
    ("name", "superlink", "message"),
    [
        ("lab-b", "other.example.org:443", "is not valid for other.example.org but for .*add it to hosts in"),
        ("lab-b", "fed.example.org", "must be host:port"),
        ("lab-b", "https://fed.example.org:443", "must be a DNS name or an IP address"),
        ("lab-b", ":443", "must be host:port"),
        ("lab-b", "fed.example.org:99999", "must be host:port"),
        ("Lab B", SUPERLINK, "site name 'Lab B'"),
        ("../x", SUPERLINK, "site name"),
        ("", SUPERLINK, "site name ''"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_key(
    name: str, superlink: str, message: str, certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["invite", name, superlink, "--certs", str(certs)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{message}", line)
    assert [folder.name for folder in (certs / "sites").iterdir()] == ["site-a"]


def test_a_host_counts_in_any_spelling(certs: Path) -> None:
    make_bundle(certs, "lab-b", "FED.example.org:443")
    make_bundle(certs, "lab-b", "[2001:DB8:0::7]:443")


def test_an_expired_certificate_is_told_before_a_site_gets_it(tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=400)
    issue_all(tmp_path / "old", hosts=["fed.example.org"], sites=[], now=past)
    with pytest.raises(CertificateError, match="expired"):
        make_bundle(tmp_path / "old", "lab-b", SUPERLINK)


def test_without_superlink_the_archive_is_made_and_the_operator_told(
    certs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["invite", "lab-b", SUPERLINK, "--certs", str(certs), "--control", "127.0.0.1:9"]) == 0
    printed = capsys.readouterr().out
    assert f"made {certs / 'bundles' / 'lab-b.tar.gz'}" in printed
    assert "hand it over privately" in printed
    assert "lab-b cannot join yet: SuperLink was not told" in printed
    assert "PRIVATE" not in printed


def test_a_retired_sites_key_is_kept_apart_and_its_archive_removed(certs: Path) -> None:
    bundle = make_bundle(certs, "lab-b", SUPERLINK)
    key = (certs / "sites" / "lab-b" / "node.key").read_bytes()
    target = retire_site(certs, "lab-b", datetime(2026, 11, 23, 9, 5, tzinfo=UTC))
    assert target == certs / "revoked" / "lab-b-20261123-090500"
    assert (target / "node.key").read_bytes() == key
    assert not bundle.exists()
    assert not (certs / "sites" / "lab-b").exists()
    make_bundle(certs, "lab-b", SUPERLINK)  # a new key, for the same people or others
    assert (certs / "sites" / "lab-b" / "node.key").read_bytes() != key


def test_a_site_stays_where_it_is_if_superlink_could_not_be_told(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else its key would be gone from here and still let in there."""
    assert main(["revoke", "site-a", "--certs", str(certs), "--control", "127.0.0.1:9"]) == 2
    assert "SuperLink was not told" in capsys.readouterr().err
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
    with pytest.raises(ControlError, match=r"docker cannot be started here .* CONTROL=host:port"):
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


def test_every_template_of_the_bundle_is_used() -> None:
    names = {file.name for file in (REPOSITORY / "docker" / "site").iterdir()}
    assert names == {"README.md", "env", "docker-compose.yml", "docker-compose.gpu.yml"}
    assert invite._version()


@pytest.mark.integration
def test_a_site_joins_after_make_site_and_never_again_after_make_site_revoke(
    certs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = min(int(probe.getsockname()[1]), 60000)
    operator = ["--certs", str(certs), "--control", f"127.0.0.1:{port}"]
    sites = {"site-a": data / "site-a"}
    with LocalCluster(sites, data / "holdout", tmp_path, certs, port, tmp_path / "scratch") as cluster:
        log = cluster.logs / "lab-b.log"
        assert main(["invite", "lab-b", f"localhost:{port}", *operator]) == 0
        assert "SuperLink: lab-b may join" in capsys.readouterr().out

        checks = check_superlink("localhost", port, certs / "sites" / "lab-b" / "ca.crt")
        assert [(check.level, check.what) for check in checks] == [
            *(("ok", what) for what in ("connection", "TLS", "health", "clock"))
        ]
        cluster.start_supernode("lab-b", data / "site-b")
        _wait_for(lambda: "SuperNode ID" in log.read_text())

        assert main(["revoke", "lab-b", *operator]) == 0
        assert "SuperLink: lab-b is revoked" in capsys.readouterr().out
        node = psutil.Process(cluster.process_id("lab-b"))
        _wait_for(lambda: node.status() == psutil.STATUS_ZOMBIE)  # SuperLink sent it away

        (revoked,) = (certs / "revoked").iterdir()
        shutil.copytree(revoked, certs / "sites" / "lab-b")
        cluster.start_supernode("lab-b", data / "site-b")
        _wait_for(lambda: "Failed to activate SuperNode" in log.read_text())
        assert "SuperNode ID" not in log.read_text()


def _wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.2)
