import re
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from certs.issue import issue_all
from client.cli import main
from client.doctor import connection as connection_checks
from client.doctor import machine
from client.doctor.check import Check
from client.doctor.connection import check_superlink
from client.doctor.device import check_device
from client.doctor.machine import check_ca, check_key, check_scratch, check_software
from federation.versions import versions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certs") / "generated"
    issue_all(out, hosts=[], sites=["site-a"])
    return out


def _one(checks: list[Check], what: str) -> Check:
    found = [check for check in checks if check.what == what]
    assert len(found) == 1, checks
    return found[0]


def test_scratch_is_made_written_to_and_left_clean(tmp_path: Path) -> None:
    (check,) = check_scratch(tmp_path / "new" / "scratch")
    assert check.level in ("ok", "warning")  # a warning where the machine's disk is nearly full
    assert "GB free" in check.text
    assert list((tmp_path / "new" / "scratch").iterdir()) == []


def test_scratch_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (check,) = check_scratch(tmp_path / "file")
    assert check.level == "error"
    assert "cannot be written" in check.text


@pytest.mark.parametrize(("free_gb", "level"), [(0.5, "error"), (5, "warning"), (50, "ok")])
def test_little_room_is_told_before_it_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gb: float, level: str
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=int(free_gb * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert check_scratch(tmp_path)[0].level == level


def test_the_issued_key_and_ca_are_fine_and_nothing_of_the_key_is_shown(certs: Path) -> None:
    file = certs / "sites" / "site-a" / "node.key"
    (check,) = check_key(file)
    assert check == Check("ok", "key", f"{file}: ECDSA secp384r1, mode 600")
    (check,) = check_ca(certs / "sites" / "site-a" / "ca.crt")
    assert check.level == "ok"
    assert "3649 days left" in check.text


def test_a_key_that_cannot_serve_is_an_error_with_the_reason(certs: Path, tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    assert "missing" in check_key(file)[0].text
    file.write_text("no key")
    assert "no private key in OpenSSH form" in check_key(file)[0].text
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    file.write_bytes(other)
    assert "must be on an elliptic curve" in check_key(file)[0].text
    shutil.copy(certs / "sites" / "site-a" / "node.key", file)
    file.chmod(0o644)
    assert f"mode 644, others can read it; chmod 600 {file}, or where" in check_key(file)[0].text


def test_a_ca_that_cannot_serve_is_an_error_with_the_reason(certs: Path, tmp_path: Path) -> None:
    ca = certs / "superlink" / "ca.crt"
    for now, level, text in (
        (timedelta(days=4000), "error", "expired on 20"),
        (timedelta(days=3645), "warning", "4 days left"),
        (timedelta(days=-1), "error", "set the clock"),
    ):
        (check,) = check_ca(ca, datetime.now(UTC) + now)
        assert check.level == level
        assert text in check.text
    assert "not the authority's" in check_ca(certs / "superlink" / "server.crt")[0].text
    assert "missing" in check_ca(tmp_path / "ca.crt")[0].text
    (tmp_path / "ca.crt").write_text("nothing")
    assert "is no certificate" in check_ca(tmp_path / "ca.crt")[0].text


@contextmanager
def _server(certs: Path | None, *answers: bytes, host: str = "127.0.0.1") -> Iterator[int]:
    """A server for one connection: TLS with `certs`, or plaintext. It sends `answers`, one a request."""
    listener = socket.create_server((host, 0))
    context = None
    if certs:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certs / "superlink" / "server.crt", certs / "superlink" / "server.key")

    def serve() -> None:
        try:
            connection, _ = listener.accept()
            connection.settimeout(10)
            with closing(
                context.wrap_socket(connection, server_side=True) if context else connection
            ) as peer:
                for answer in answers or (b"",):
                    peer.recv(4096)
                    peer.sendall(answer)
        except OSError:
            pass  # the client went away, as it should when it does not like the certificate

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
        thread.join(10)


def _health(date: datetime | None, status: str = "200 OK") -> bytes:
    header = f"Date: {format_datetime(date, usegmt=True)}\r\n" if date else ""
    return f"HTTP/1.1 {status}\r\n{header}Content-Length: 2\r\n\r\n{{}}".encode()


def test_a_healthy_superlink_passes_every_step(certs: Path, now: datetime) -> None:
    with _server(certs, _health(now)) as port:
        checks = check_superlink("localhost", port, certs / "superlink" / "ca.crt")
    assert [(check.level, check.what) for check in checks] == [
        ("ok", "connection"),
        ("ok", "TLS"),
        ("ok", "health"),
        ("ok", "clock"),
    ]
    assert "TLSv1.3, the server's certificate has 396 days left" in checks[1].text


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, "ok"), (4, "warning"), (20, "error"), (-60, "warning"), (-290, "error")]
)
def test_a_clock_that_is_off_is_told_before_signatures_fail(
    certs: Path, now: datetime, ahead: int, level: str
) -> None:
    answer = _health(now - timedelta(seconds=ahead))
    with _server(certs, answer, answer) as port:
        check = _one(check_superlink("127.0.0.1", port, certs / "superlink" / "ca.crt"), "clock")
    assert check.level == level
    if ahead:
        assert ("ahead of" if ahead > 0 else "behind") in check.text


def test_one_old_date_of_a_busy_server_is_no_wrong_clock(certs: Path, now: datetime) -> None:
    old, new = _health(now - timedelta(seconds=20)), _health(now)
    ca = certs / "superlink" / "ca.crt"
    with _server(certs, old, new) as port:
        assert _one(check_superlink("127.0.0.1", port, ca), "clock").level == "ok"
    with _server(certs, old) as port:  # it answers once
        assert _one(check_superlink("127.0.0.1", port, ca), "clock").level == "error"


def test_a_server_without_a_date_or_a_health_is_told(certs: Path) -> None:
    ca = certs / "superlink" / "ca.crt"
    with _server(certs, _health(None)) as port:
        assert _one(check_superlink("127.0.0.1", port, ca), "clock").level == "warning"
    with _server(certs, _health(None, "404 Not Found")) as port:
        assert "status 404, must be 200" in check_superlink("127.0.0.1", port, ca)[-1].text
    with _server(certs, b"SSH-2.0\r\n") as port:
        assert "no HTTP answer" in check_superlink("127.0.0.1", port, ca)[-1].text


def _last(host: str, port: int, ca: Path) -> str:
    check = check_superlink(host, port, ca)[-1]
    assert check.level == "error"
    return f"{check.what}: {check.text}"


def test_each_way_not_to_reach_superlink_has_its_own_message(
    certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = certs / "superlink" / "ca.crt"
    issue_all(tmp_path / "other", hosts=[], sites=[])
    issue_all(tmp_path / "old", hosts=[], sites=[], now=datetime.now(UTC) - timedelta(days=400))
    issue_all(tmp_path / "future", hosts=[], sites=[], now=datetime.now(UTC) + timedelta(days=2))

    assert "the name nowhere.invalid is not known" in _last("nowhere.invalid", 443, ca)
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    assert "refused" in _last("127.0.0.1", port, ca)
    with _server(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "speaks plaintext, not TLS" in _last("127.0.0.1", port, ca)
    with _server(certs) as port:
        assert "not signed by" in _last("127.0.0.1", port, tmp_path / "other" / "superlink" / "ca.crt")
    with _server(certs, host="127.0.0.2") as port:
        assert "not valid for 127.0.0.2" in _last("127.0.0.2", port, ca)
    with _server(tmp_path / "old") as port:
        assert "expired" in _last("127.0.0.1", port, tmp_path / "old" / "superlink" / "ca.crt")
    with _server(tmp_path / "future") as port:
        assert "not valid yet" in _last("127.0.0.1", port, tmp_path / "future" / "superlink" / "ca.crt")

    monkeypatch.setattr(connection_checks, "_CONNECT_SECONDS", 0.3)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        assert "no TLS answer in 0 s" in _last("127.0.0.1", silent.getsockname()[1], ca)


def test_a_name_the_certificate_lacks_is_told_with_the_operators_fix(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda address, timeout: connect(("127.0.0.1", address[1]), timeout)
    )
    with _server(certs) as port:
        text = _last("fed.example.org", port, certs / "superlink" / "ca.crt")
    assert "not valid for fed.example.org" in text
    assert "hosts in configs/certs.toml, runs make certs ROTATE=1 and restarts SuperLink and gateway" in text


def test_a_port_that_drops_packets_is_told_as_a_timeout(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(address: object, timeout: float) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", never)
    assert "no answer in 5 s; a firewall" in _last("192.0.2.1", 443, certs / "superlink" / "ca.crt")


def test_the_device_is_named_or_the_cpu_warned_of() -> None:
    (check,) = check_device()
    assert check.level in ("ok", "warning")
    assert "GB free" in check.text or "CPU cores" in check.text or "MPS" in check.text


def test_another_release_of_a_package_than_the_app_wants_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = check_software()
    assert check.level == "ok"
    assert check.text.startswith(f"app {versions()['app']}, flwr 1.")
    installed = machine.versions()
    for changes, level in (
        ({"flwr": installed["flwr"].rpartition(".")[0] + ".99"}, "ok"),
        ({"flwr": "1.3.0"}, "error"),
        ({"lerobot": "0.1.0"}, "error"),
    ):
        monkeypatch.setattr(machine, "versions", lambda changes=changes: installed | changes)
        (check,) = check_software()
        assert check.level == level
        assert "uv tool install --reinstall" in check.text or level == "ok"


def test_another_release_than_the_operator_had_is_a_warning_with_the_command() -> None:
    (check,) = check_software("0123456789abcdef")
    assert check.level == "warning"
    assert f"app {versions()['app']} is installed, the operator had 0123456789abcdef" in check.text
    assert "uv tool install --reinstall" in check.text
    (check,) = check_software(versions()["app"])
    assert check.level == "ok"


def test_the_sessions_of_a_name_that_lerobot_stamped_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    (tmp_path / "ann" / "pick_20261101_101500" / "meta").mkdir(parents=True)
    assert _run("--data", "ann/pick") == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " dataset " in line)
    assert "ann/pick: no folder of that name; LeRobot adds date and time to each session" in line
    assert "it has ann/pick_20261101_101500: name these" in line


def _run(*arguments: str) -> int:
    return main(["doctor", *arguments])


def test_a_ready_site_exits_0_and_a_broken_one_1_with_everything_in_the_table(
    certs: Path,
    now: datetime,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "_WARN_FREE_GB", 0)
    monkeypatch.setattr(machine, "_MIN_FREE_GB", 0)
    monkeypatch.setattr("client.doctor.main.check_samples", lambda *_: [Check("ok", "samples", "fine")])
    keys = certs / "sites" / "site-a"
    site = ["--scratch", str(tmp_path), "--key", str(keys / "node.key"), "--ca", str(keys / "ca.crt")]
    with _server(certs, _health(now)) as port:
        site += ["--superlink", f"localhost:{port}"]
        assert _run("--dataset", str(data / "site-a"), *site) == 0
    printed = capsys.readouterr().out
    for what in (
        "dataset",
        "cameras",
        "samples",
        "scratch",
        "key",
        "CA",
        "connection",
        "TLS",
        "health",
        "clock",
        "software",
        "device",
    ):
        assert re.search(rf"^(ok|warning) +{what} ", printed, re.MULTILINE), what
    assert "this site is ready" in printed
    assert "PRIVATE" not in printed
    assert _run("--dataset", str(tmp_path), *site) == 1  # no dataset, and the server is gone
    printed = capsys.readouterr().out
    assert len(re.findall(r"^error ", printed, re.MULTILINE)) == 2
    assert "this site is not ready" in printed


def test_the_environment_of_a_sites_container_is_enough(
    data: Path, looks: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDERATION_DATASET", str(data))
    monkeypatch.setenv("FEDERATION_CAMERAS", "top")
    assert _run() == 0
    printed = capsys.readouterr().out
    assert printed.count("ok       dataset") == printed.count("ok       samples") == 3  # all in the folder
    assert len(looks) == 1  # and LeRobot imported once for all of them


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--data' (env var: 'FEDERATION_DATASET')"),
        (["--dataset", "d", "--superlink", "fed.example.org"], "must be HOST:PORT"),
        (["--dataset", "d", "--superlink", "fed.example.org:443"], "--superlink needs --ca"),
    ],
)
def test_bad_arguments_are_named_with_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # no site of whoever runs the tests
    assert _run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
