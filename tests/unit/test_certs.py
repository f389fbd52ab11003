import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supercore.auth import load_superexec_auth_secret
from hypothesis import given
from hypothesis import strategies as st

from certs.authority import CertificateError, server_names
from certs.check import check, days_left, verify_server_certificate
from certs.issue import add_site, issue_all, main, rotate

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    issue_all(tmp_path / "generated", ["fed.example.org", "192.0.2.7"], ["site-a"])
    return tmp_path / "generated"


def _content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _run(monkeypatch, out: Path, tmp_path: Path, *arguments: str, config: str = "") -> int:
    (tmp_path / "certs.toml").write_text(config)
    monkeypatch.setattr(
        "sys.argv", ["issue", "--out", str(out), "--config", str(tmp_path / "certs.toml"), *arguments]
    )
    return main()


def test_private_files_are_0600_and_folders_0700(out: Path) -> None:
    for path in (out, *out.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path.suffix in (".key", ".secret"):
            assert mode == 0o600, path


def test_a_second_run_changes_nothing(out: Path) -> None:
    before = _content(out)
    assert issue_all(out, ["fed.example.org", "192.0.2.7"], ["site-a"]) == []
    assert _content(out) == before


def test_the_certificate_is_valid_for_services_localhost_and_the_configured_hosts(out: Path) -> None:
    names = server_names(out / "superlink" / "server.crt")
    assert {"superlink", "gateway", "localhost", "127.0.0.1", "::1", "fed.example.org", "192.0.2.7"} <= set(
        names
    )


def test_a_host_that_the_certificate_lacks_asks_for_rotation(out: Path) -> None:
    with pytest.raises(CertificateError, match=r"not valid for other\.org; run make certs ROTATE=1"):
        issue_all(out, ["other.org"], [])
    rotate(out, ["other.org"], 30)
    assert issue_all(out, ["other.org"], ["site-a"]) == []


def test_rotation_renews_the_server_and_nothing_else(out: Path) -> None:
    before = _content(out)
    rotate(out, [], 30)
    after = _content(out)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"superlink/server.key", "superlink/server.crt"}
    assert before.keys() == after.keys()
    verify_server_certificate(out)
    assert 29 < days_left(out / "superlink" / "server.crt") <= 30


def test_a_new_site_gets_a_key_and_never_a_second_one(out: Path) -> None:
    add_site(out, "lab-b")
    before = _content(out)
    with pytest.raises(CertificateError, match="lab-b: has a key already"):
        add_site(out, "lab-b")
    assert _content(out) == before


def test_an_interrupted_site_is_completed(out: Path) -> None:
    (out / "sites" / "site-a" / "node.key").unlink()
    issue_all(out, ["fed.example.org", "192.0.2.7"], ["site-a"])
    assert (out / "sites" / "site-a" / "node.key").is_file()


def test_flower_reads_the_keys_and_the_secret(out: Path) -> None:
    key = load_ssh_private_key((out / "sites" / "site-a" / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert len(load_superexec_auth_secret(str(out / "superlink" / "superexec.secret")) or b"") == 64


def test_the_ca_key_is_in_no_folder_that_a_container_mounts(out: Path) -> None:
    holders = [path.parent.name for path in out.rglob("ca.key")]
    assert holders == ["ca"]
    assert [path.name for path in (out / "ca").iterdir()] == ["ca.key"]


def _handshake(out: Path, authority: Path, hostname: str) -> str:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(out / "superlink" / "server.crt", out / "superlink" / "server.key")
    client = ssl.create_default_context(cafile=authority)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        try:
            server.wrap_socket(connection, server_side=True).close()
        except (ssl.SSLError, OSError):
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with (
            socket.create_connection(listener.getsockname()) as plain,
            client.wrap_socket(plain, server_hostname=hostname) as secure,
        ):
            return str(secure.version())
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1", "superlink", "fed.example.org"])
def test_a_tls_client_that_trusts_the_ca_connects(out: Path, hostname: str) -> None:
    assert _handshake(out, out / "sites" / "site-a" / "ca.crt", hostname) == "TLSv1.3"


def test_another_ca_is_not_trusted(out: Path, tmp_path: Path) -> None:
    issue_all(tmp_path / "other", [], [])
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(out, tmp_path / "other" / "superlink" / "ca.crt", "localhost")


def test_another_host_name_is_not_trusted(out: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(out, out / "superlink" / "ca.crt", "evil.example.org")


def test_an_expired_certificate_is_named_with_its_date_and_the_fix(tmp_path: Path) -> None:
    issue_all(tmp_path / "g", [], [], now=NOW - timedelta(days=400))
    with pytest.raises(CertificateError, match=r"server.crt expired on 2026-11-20; run make certs ROTATE=1"):
        verify_server_certificate(tmp_path / "g", NOW)
    with pytest.raises(CertificateError, match="is not valid before"):
        verify_server_certificate(tmp_path / "g", NOW - timedelta(days=500))


def test_an_expired_ca_cannot_be_rotated_away(tmp_path: Path) -> None:
    issue_all(tmp_path / "g", [], [], ca_days=10, now=NOW)
    with pytest.raises(CertificateError, match=r"ca.crt expired on .*; move .* away and run make certs"):
        verify_server_certificate(tmp_path / "g", NOW + timedelta(days=11))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda g, o: (g / "server.key").write_bytes((o / "server.key").read_bytes()), "is not the key of"),
        (lambda g, o: (g / "server.crt").write_bytes((o / "server.crt").read_bytes()), "is not signed by"),
        (lambda g, o: (g / "server.crt").write_text("x"), "cannot be read as a certificate"),
        (lambda g, o: (g / "server.key").write_text("x"), "cannot be read as a private key"),
        (lambda g, o: (g / "server.key").unlink(), "server.key is missing"),
        (lambda g, o: (g / "superexec.secret").unlink(), "superexec.secret is missing"),
    ],
)
def test_what_does_not_belong_together_is_found(out: Path, tmp_path: Path, damage, message: str) -> None:
    issue_all(tmp_path / "other", [], [])
    damage(out / "superlink", tmp_path / "other" / "superlink")
    with pytest.raises(CertificateError, match=message):
        verify_server_certificate(out)
    assert any(finding.level == "error" and message in finding.text for finding in check(out))


def test_the_check_of_a_healthy_folder_has_no_complaint(out: Path) -> None:
    findings = check(out)
    assert {finding.level for finding in findings} == {"ok"}
    assert any("fed.example.org" in finding.text for finding in findings)


def test_the_check_warns_before_the_end_and_sees_open_permissions(out: Path) -> None:
    soon = datetime.now(UTC) + timedelta(days=390)
    assert [f.file.name for f in check(out, soon) if f.level == "warning"] == ["server.crt"]
    (out / "superlink" / "server.key").chmod(0o644)
    assert any("chmod 600" in finding.text for finding in check(out) if finding.level == "error")


def test_a_lost_ca_key_is_not_replaced_silently(out: Path) -> None:
    (out / "ca" / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"ca\.key is missing but"):
        issue_all(out, [], [])


@given(st.text(max_size=70))
def test_a_site_name_is_a_dns_label_or_refused(name: str) -> None:
    allowed = "abcdefghijklmnopqrstuvwxyz0123456789-"
    valid = 1 <= len(name) <= 63 and all(c in allowed for c in name) and name.strip("-") == name
    try:
        add_site(Path("/nonexistent"), name)
    except CertificateError as error:
        assert ("site name" in str(error)) == (not valid)


def test_the_command_line_issues_adds_rotates_and_checks(monkeypatch, capsys, tmp_path: Path) -> None:
    out = tmp_path / "g"
    assert _run(monkeypatch, out, tmp_path, config="sites = ['one']\nhosts = ['a.b']\n") == 0
    assert (out / "sites" / "one" / "node.key").is_file()
    assert _run(monkeypatch, out, tmp_path, config="sites = ['one']\nhosts = ['a.b']\n") == 0
    assert "are complete" in capsys.readouterr().out
    assert _run(monkeypatch, out, tmp_path, "--site", "two") == 0
    assert _run(monkeypatch, out, tmp_path, "--rotate") == 0
    assert _run(monkeypatch, out, tmp_path, "--check") == 0
    assert "PRIVATE" not in capsys.readouterr().out
    (out / "superlink" / "server.crt").unlink()
    assert _run(monkeypatch, out, tmp_path, "--check") == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("host = []", "unknown key 'host'"),
        ("hosts = 'x'", "hosts = 'x': must be a list of names"),
        ("server_days = 0", "server_days = 0: must be a number of days"),
        ("hosts = ['https://x']", "host 'https://x': must be a DNS name or an IP address"),
        ("sites = ['A']", "site name 'A'"),
        ("[", "cannot be read as TOML"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(
    monkeypatch, capsys, tmp_path: Path, config: str, message: str
) -> None:
    assert _run(monkeypatch, tmp_path / "g", tmp_path, config=config) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
