import argparse
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication
from hypothesis import given
from hypothesis import strategies as st

import certs.issue
from certs.authority import CertificateError, canonical_host, load_certificate, server_names
from certs.check import check, days_left, verify_server_certificate
from certs.issue import add_site, issue_all, rotate
from federation import key_files
from server.cli import main

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 23, tzinfo=UTC)
HOSTS = ["fed.example.org", "192.0.2.7", "2001:DB8:0::1"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    issue_all(tmp_path / "generated", HOSTS, ["site-a"])
    return tmp_path / "generated"


def _content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _run(out: Path, tmp_path: Path, *arguments: str, config: str = "") -> int:
    (tmp_path / "certs.toml").write_text(config)
    return main(["keys", "--out", str(out), "--config", str(tmp_path / "certs.toml"), *arguments])


def _levels(out: Path, name: str, now: datetime | None = None) -> set[str]:
    return {finding.level for finding in check(out, now) if finding.file.name == name}


def _assert_modes(out: Path) -> None:
    for path in (out, *out.rglob("*")):
        expected = 0o700 if path.is_dir() else 0o644 if path.suffix in (".crt", ".pub") else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_are_the_same_under_every_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        issue_all(tmp_path / "generated", [], ["site-a"])
        rotate(tmp_path / "generated", [])
    finally:
        os.umask(before)
    _assert_modes(tmp_path / "generated")


def test_a_private_file_is_closed_to_others_from_its_first_byte(tmp_path: Path, monkeypatch) -> None:
    seen: dict[str, int] = {}

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        seen[path.name] = stat.S_IMODE(path.stat().st_mode)

    monkeypatch.setattr(key_files.os, "fchmod", lambda descriptor, mode: note(descriptor))
    before = os.umask(0)
    try:
        issue_all(tmp_path / "generated", [], ["site-a"])
    finally:
        os.umask(before)
    private = {name: mode for name, mode in seen.items() if name.endswith((".key", ".secret"))}
    assert len(private) == 5
    assert set(private.values()) == {0o600}


def test_a_second_run_changes_nothing(out: Path) -> None:
    before = _content(out)
    assert issue_all(out, HOSTS, ["site-a"]) == []
    assert _content(out) == before


def test_the_certificate_is_valid_for_services_localhost_and_the_configured_hosts(out: Path) -> None:
    names = {"superlink", "gateway", "server", "localhost", "127.0.0.1", "::1"}
    names |= {"fed.example.org", "192.0.2.7", "2001:db8::1"}
    assert set(server_names(out / "superlink" / "server.crt")) == names


def test_the_certificates_say_what_they_may_be_used_for(out: Path) -> None:
    authority = load_certificate(out / "superlink" / "ca.crt").extensions
    server = load_certificate(out / "superlink" / "server.crt").extensions
    constraints = authority.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    usage = authority.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert not server.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(server.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        x509.oid.ExtendedKeyUsageOID.SERVER_AUTH
    ]
    identifier = authority.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    for extensions in (authority, server):
        by = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert by.key_identifier == identifier


def test_another_spelling_of_a_host_is_the_same_host(out: Path) -> None:
    assert issue_all(out, ["FED.example.org", "2001:db8::0001"], []) == []


@pytest.mark.parametrize(
    "host",
    ["", "https://x", "x:8443", "a..b", "-x", "x.", "*", "999.1.1.1", "a b", "é.org", "x" * 64, "[::1]"],
)
def test_what_is_no_host_is_refused(out: Path, host: str) -> None:
    with pytest.raises(CertificateError, match="must be a DNS name or an IP address"):
        issue_all(out, [host], [])


@given(st.ip_addresses())
def test_an_address_has_one_canonical_form(address) -> None:
    assert canonical_host(address.exploded.upper()) == str(address)


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


class _PowerCutError(Exception):
    pass


def _cut_power_before(monkeypatch, module, function: str, name: str) -> None:
    """Let `module.function` fail when it is about to make the file `name`."""
    original = getattr(module, function)

    def fragile(*arguments, **options):
        if name in (path.name for path in arguments if isinstance(path, Path)):
            raise _PowerCutError
        return original(*arguments, **options)

    monkeypatch.setattr(module, function, fragile)


@pytest.mark.parametrize(
    "name", ["ca.key", "ca.crt", "server.key", "server.crt", "superexec.secret", "node.key", "node.key.pub"]
)
def test_an_interrupted_run_is_completed_by_the_next(tmp_path: Path, monkeypatch, name: str) -> None:
    out = tmp_path / "generated"
    with monkeypatch.context() as patch:
        _cut_power_before(patch, key_files, "move", name)
        _cut_power_before(patch, certs.issue, "move", name)
        with pytest.raises(_PowerCutError):
            issue_all(out, [], ["site-a"])
    kept = {file: content for file, content in _content(out).items() if file.endswith(".key")}
    issue_all(out, [], ["site-a"])
    assert kept.items() <= _content(out).items()
    assert {finding.level for finding in check(out)} == {"ok"}
    assert not list(out.rglob(".*"))


def test_a_rotation_cut_off_before_the_key_leaves_the_old_pair_in_use(out: Path, monkeypatch) -> None:
    before = _content(out)
    with monkeypatch.context() as patch:
        _cut_power_before(patch, key_files, "move", "server.key")
        with pytest.raises(_PowerCutError):
            rotate(out, HOSTS)
    verify_server_certificate(out)
    issue_all(out, HOSTS, ["site-a"])
    assert _content(out) == before


def test_a_rotation_cut_off_after_the_key_is_finished_by_the_next_run(out: Path, monkeypatch) -> None:
    old = (out / "superlink" / "server.crt").read_bytes()
    with monkeypatch.context() as patch:
        _cut_power_before(patch, certs.issue, "move", "server.crt")
        with pytest.raises(_PowerCutError):
            rotate(out, HOSTS)
    with pytest.raises(CertificateError, match="is not the key of"):
        verify_server_certificate(out)
    assert issue_all(out, HOSTS, ["site-a"]) == [out / "superlink" / "server.crt"]
    verify_server_certificate(out)
    assert (out / "superlink" / "server.crt").read_bytes() != old


def test_an_existing_key_is_never_overwritten(out: Path) -> None:
    key = out / "superlink" / "server.key"
    before = key.read_bytes()
    (out / "superlink" / "server.crt").unlink()
    assert issue_all(out, HOSTS, []) == [out / "superlink" / "server.crt"]
    assert key.read_bytes() == before
    verify_server_certificate(out)
    with pytest.raises(FileExistsError):
        key_files.write_new(key, b"other")
    assert key.read_bytes() == before


def test_a_lost_ca_certificate_is_made_again_from_its_key_and_old_certificates_stay_valid(out: Path) -> None:
    (out / "superlink" / "ca.crt").unlink()
    made = issue_all(out, HOSTS, ["site-a"])
    assert made == [out / "superlink" / "ca.crt", out / "sites" / "site-a" / "ca.crt"]
    assert {finding.level for finding in check(out)} == {"ok"}


def test_a_site_whose_private_key_has_moved_there_gets_no_second_one(out: Path) -> None:
    (out / "sites" / "site-a" / "node.key").unlink()
    assert issue_all(out, HOSTS, ["site-a"]) == []
    with pytest.raises(CertificateError, match="has a key already"):
        add_site(out, "site-a")
    assert _levels(out, "site-a") == {"ok"}


def test_two_runs_at_once_make_one_set_of_keys(tmp_path: Path) -> None:
    out = tmp_path / "generated"
    made: list[list[Path]] = []
    threads = [threading.Thread(target=lambda: made.append(issue_all(out, [], ["a"]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, made)) == [0, 0, 0, 9]
    assert {finding.level for finding in check(out)} == {"ok"}


def test_flower_reads_the_keys_and_the_secret(out: Path) -> None:
    site = out / "sites" / "site-a"
    key = load_ssh_private_key((site / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    options = argparse.Namespace(
        auth_supernode_private_key=str(site / "node.key"), auth_supernode_public_key=None
    )
    pair = _try_setup_client_authentication(options)
    assert pair is not None
    assert pair[1] == key.public_key()
    assert try_load_public_key(site / "node.key.pub")
    assert len(load_superexec_auth_secret(str(out / "superlink" / "superexec.secret")) or b"") == 64


def test_the_ca_key_is_in_no_folder_that_a_container_mounts(out: Path) -> None:
    holders = [path.parent.name for path in out.rglob("ca.key")]
    assert holders == ["ca"]
    assert [path.name for path in (out / "ca").iterdir()] == ["ca.key"]


def _handshake(out: Path, authority: Path, hostname: str) -> str:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(out / "superlink" / "server.crt", out / "superlink" / "server.key")
    client = ssl.create_default_context(cafile=authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
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


@pytest.mark.parametrize(
    "hostname", ["localhost", "127.0.0.1", "::1", "superlink", "fed.example.org", "2001:db8::1"]
)
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
    with pytest.raises(CertificateError, match=r"ca.crt expired on .*; move .* away and run make certs"):
        rotate(tmp_path / "g", [], now=NOW + timedelta(days=11))


def test_after_a_new_ca_the_sites_keep_their_keys_and_get_its_certificate(out: Path) -> None:
    key = (out / "sites" / "site-a" / "node.key").read_bytes()
    for folder in ("ca", "superlink"):
        (out / folder).rename(out.parent / folder)
    issue_all(out, HOSTS, [])
    assert (out / "sites" / "site-a" / "node.key").read_bytes() == key
    assert {finding.level for finding in check(out)} == {"ok"}


def test_a_server_certificate_does_not_outlive_its_ca(tmp_path: Path) -> None:
    issue_all(tmp_path / "g", [], [], ca_days=10, now=NOW)
    assert days_left(tmp_path / "g" / "superlink" / "server.crt", NOW) == 10


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda g, o: (g / "server.key").write_bytes((o / "server.key").read_bytes()), "is not the key of"),
        (lambda g, o: (g / "server.crt").write_bytes((o / "server.crt").read_bytes()), "is not signed by"),
        (lambda g, o: (g / "server.crt").write_text("x"), "cannot be read as a certificate"),
        (lambda g, o: (g / "server.key").write_text("x"), "cannot be read as a private key"),
        (lambda g, o: (g / "server.key").unlink(), "server.key is missing"),
        (lambda g, o: (g / "superexec.secret").unlink(), "superexec.secret is missing"),
        (lambda g, o: (g / "superexec.secret").write_text(""), "superexec.secret is empty"),
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
    assert any("fed.example.org" in finding.names for finding in findings)


def test_the_check_warns_before_the_end_and_fails_after_it(out: Path) -> None:
    assert _levels(out, "server.crt", datetime.now(UTC) + timedelta(days=390)) == {"warning"}
    assert _levels(out, "server.crt", datetime.now(UTC) + timedelta(days=398)) == {"error"}


@pytest.mark.parametrize(
    "name", ["superlink/server.key", "superlink", "sites/site-a/node.key", "copy-of-a-key"]
)
def test_the_check_sees_what_others_can_open(out: Path, name: str) -> None:
    (out / "copy-of-a-key").touch(0o600)
    (out / name).chmod(0o755)
    (finding,) = [finding for finding in check(out) if finding.level == "error"]
    assert finding.file == out / name
    assert f"chmod {'700' if finding.file.is_dir() else '600'}" in finding.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ca/ca.key", "is not the key of"),
        ("sites/site-a/node.key", "is not of"),
        ("sites/site-a/node.key.pub", "is not of"),
        ("sites/site-a/ca.crt", "differs from"),
    ],
)
def test_the_check_sees_a_file_of_another_federation(
    out: Path, tmp_path: Path, name: str, message: str
) -> None:
    issue_all(tmp_path / "other", [], ["site-a"])
    (out / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert [message in f.text for f in check(out) if f.level == "error"] == [True]


@pytest.mark.parametrize("name", ["ca/ca.key", "sites/site-a/node.key", "sites/site-a/node.key.pub"])
def test_the_check_sees_a_damaged_key(out: Path, name: str) -> None:
    (out / name).write_text("x")
    assert [finding.level for finding in check(out) if finding.level != "ok"] == ["error"]


def test_without_the_ca_key_all_works_but_signing(out: Path) -> None:
    (out / "ca" / "ca.key").unlink()
    assert issue_all(out, HOSTS, ["site-a", "site-b"]) != []
    assert {finding.level for finding in check(out)} == {"ok"}
    with pytest.raises(CertificateError, match=r"ca\.key is missing; bring it back"):
        rotate(out, HOSTS)


def test_the_key_of_another_ca_signs_nothing(out: Path, tmp_path: Path) -> None:
    issue_all(tmp_path / "other", [], [])
    (out / "ca" / "ca.key").write_bytes((tmp_path / "other" / "ca" / "ca.key").read_bytes())
    before = _content(out)
    with pytest.raises(CertificateError, match="is not the key of"):
        rotate(out, HOSTS)
    assert _content(out) == before


@given(st.text(max_size=70))
def test_a_site_name_is_a_dns_label_or_refused(name: str) -> None:
    allowed = "abcdefghijklmnopqrstuvwxyz0123456789-"
    valid = 1 <= len(name) <= 63 and all(c in allowed for c in name) and name.strip("-") == name
    try:
        add_site(Path("/nonexistent"), name)
    except CertificateError as error:
        assert ("site name" in str(error)) == (not valid)


def test_the_command_line_issues_adds_rotates_and_checks(capsys, tmp_path: Path) -> None:
    out, config = tmp_path / "g", "sites = ['one']\nhosts = ['a.b']\n"
    assert _run(out, tmp_path, "--host", "c.d", "--host", "192.0.2.9", config=config) == 0
    assert {"a.b", "c.d", "192.0.2.9"} <= set(server_names(out / "superlink" / "server.crt"))
    assert (out / "sites" / "one" / "node.key").is_file()
    assert _run(out, tmp_path, config=config) == 0
    assert "complete, nothing changed" in capsys.readouterr().out
    assert _run(out, tmp_path, "--site", "two", config=config) == 0
    assert _run(out, tmp_path, "--rotate", config=config) == 0
    assert "warning: no longer valid for c.d, 192.0.2.9" in capsys.readouterr().out
    assert _run(out, tmp_path, "--check") == 0
    captured = capsys.readouterr().out
    assert "superlink/server.crt" in captured
    assert "PRIVATE" not in captured
    (out / "superlink" / "server.crt").unlink()
    assert _run(out, tmp_path, "--check") == 1


def test_a_new_host_in_the_configuration_asks_for_rotation_and_changes_nothing(
    capsys, tmp_path: Path
) -> None:
    out = tmp_path / "g"
    _run(out, tmp_path, config="sites = ['one']")
    before = _content(out)
    assert _run(out, tmp_path, config="sites = ['one']\nhosts = ['new.org']") == 2
    assert "not valid for new.org; run make certs ROTATE=1" in capsys.readouterr().err
    assert _content(out) == before


def test_the_command_line_says_what_expires_and_what_has(capsys, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    issue_all(tmp_path / "soon", [], [], server_days=10, now=now)
    assert _run(tmp_path / "soon", tmp_path) == 0
    assert "warning: the server certificate expires in 10 days" in capsys.readouterr().out
    issue_all(tmp_path / "late", [], [], server_days=10, now=now - timedelta(days=11))
    assert _run(tmp_path / "late", tmp_path) == 2
    assert "run make certs ROTATE=1" in capsys.readouterr().err
    assert _run(tmp_path / "late", tmp_path, "--rotate") == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("host = []", "unknown key 'host'"),
        ("hosts = 'x'", "hosts = 'x': must be a list of names"),
        ("hosts = [1]", "hosts = [1]: must be a list of names"),
        ("server_days = 0", "server_days = 0: must be a number of days from 1"),
        ("ca_days = true", "ca_days = True: must be a number of days from 1"),
        (
            "hosts = ['https://x']",
            "hosts = ['https://x']: host 'https://x': must be a DNS name or an IP address",
        ),
        ("sites = ['A']", "sites = ['A']: site name 'A': use 1 to 63 lowercase letters"),
        ("[", "cannot be read as TOML"),
    ],
)
def test_a_bad_configuration_is_one_line_that_names_the_file(
    capsys, tmp_path: Path, config: str, message: str
) -> None:
    assert _run(tmp_path / "g", tmp_path, config=config) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'certs.toml'}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    "arguments", [["--site", ""], ["--site", "../x"], ["--host", "x:1"], ["--site", "new"]]
)
def test_a_bad_argument_is_one_line(capsys, tmp_path: Path, arguments: list[str]) -> None:
    assert _run(tmp_path / "g", tmp_path, *arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "g").exists()


def test_a_place_that_cannot_be_written_is_one_line(capsys, tmp_path: Path) -> None:
    (tmp_path / "g").touch()
    assert _run(tmp_path / "g", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_issuing_imports_nothing_heavy(tmp_path: Path) -> None:
    root = Path(certs.issue.__file__).parent.parent
    code = (
        "import sys, server.cli; code = server.cli.main(['keys', *sys.argv[1:]]); "
        "sys.exit(code or bool({'torch', 'flwr', 'lerobot', 'numpy'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code, "--out", tmp_path / "g"], cwd=root, check=True)


def test_where_modes_do_not_hold_no_key_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As under /mnt/c of WSL, where chmod does nothing and every file is open to all.
    stat_file = os.fstat

    def open_to_all(descriptor: int) -> os.stat_result:
        found = stat_file(descriptor)
        return os.stat_result((found.st_mode | 0o777, *found[1:]))

    monkeypatch.setattr(key_files.os, "fstat", open_to_all)
    (tmp_path / "certs.toml").write_text("hosts = []\n")
    assert main(["keys", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "certs.toml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ca.key: this file system keeps no permissions (mode 777 after chmod 600)" in error
    assert "under WSL" in error
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == []
