import json
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from certs.issue import issue_all
from client import doctor
from client.doctor import Check, check_ca, check_dataset, check_key, check_scratch, check_superlink, main
from tests.synthetic import record_dataset

CAMERAS = ("top", "wrist")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certs") / "generated"
    issue_all(out, hosts=[], sites=["site-a"])
    return out


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A data set of this test alone, to be damaged."""
    return Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))


def _one(checks: list[Check], what: str) -> Check:
    found = [check for check in checks if check.what == what]
    assert len(found) == 1, checks
    return found[0]


def _rewrite(root: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change columns of the data set's table in place."""
    (file,) = (root / "data").glob("*/*.parquet")
    table = pq.read_table(file)
    columns = {name: np.array(table[name].to_pylist()) for name in ("timestamp", "action")}
    change(columns)
    for name, values in columns.items():
        index = table.column_names.index(name)
        column = pa.array(values.tolist(), table.schema.field(name).type)
        table = table.set_column(index, table.schema.field(name), column)
    pq.write_table(table, file)


def test_a_good_data_set_passes_every_check(data: Path) -> None:
    checks = check_dataset(data / "site-a", CAMERAS)
    assert {check.level for check in checks} == {"ok"}
    assert [check.what for check in checks] == [
        *("data set", "cameras", "timestamps", "state", "action", "video top", "video wrist")
    ]
    assert "3 episodes, 120 frames, 30 fps" in checks[0].text


def test_a_folder_that_is_no_data_set_is_one_error(tmp_path: Path) -> None:
    (check,) = check_dataset(tmp_path, CAMERAS)
    assert check.level == "error"
    assert "no meta/info.json there" in check.text


def test_a_missing_camera_is_named_with_those_there_are(data: Path) -> None:
    check = _one(check_dataset(data / "site-a", ("top", "front")), "cameras")
    assert check.level == "warning"
    assert "top, front=none (recorded: top, wrist); only a run with policy.empty_cameras = 1" in check.text
    check = _one(check_dataset(data / "site-a", ("side", "front")), "cameras")
    assert check.level == "error"
    assert "lacks the camera side, front (it has top, wrist)" in check.text


def test_a_site_may_say_which_camera_is_which(data: Path) -> None:
    check = _one(check_dataset(data / "site-a", ("side", "wrist"), {"side": "top"}), "cameras")
    assert check.level == "ok"
    assert "side=top, wrist (recorded: top, wrist)" in check.text


def test_an_episode_with_nan_is_left_out_and_named(tmp_path: Path) -> None:
    root = record_dataset(tmp_path / "site", episodes=5)
    _rewrite(root, lambda columns: columns["action"].__setitem__((45, 2), np.nan))
    checks = check_dataset(root, CAMERAS)
    assert "nan" not in _one(checks, "action").text
    check = _one(checks, "episodes")
    assert check.level == "warning"
    assert "1 episodes are left out, they hold NaN: 1; delete" in check.text


def test_too_many_episodes_with_nan_are_an_error(copy: Path) -> None:
    _rewrite(copy, lambda columns: columns["action"].__setitem__((45, 2), np.nan))
    check = _one(check_dataset(copy, CAMERAS), "data set")
    assert check.level == "error"
    assert "1 of 3 episodes hold a state or action that is NaN or infinite, the first is 1" in check.text


@pytest.mark.parametrize(
    ("factor", "level", "text"),
    [
        (20, "error", "-1200.0 to 1200.0: no joint"),
        (1 / 60, "warning", "radians"),
        (0, "warning", "did not move"),
    ],
)
def test_actions_no_arm_can_do_are_told(copy: Path, factor: float, level: str, text: str) -> None:
    _rewrite(copy, lambda columns: columns["action"].__imul__(factor))
    check = _one(check_dataset(copy, CAMERAS), "action")
    assert check.level == level
    assert text in check.text


def test_a_timestamp_off_its_frame_is_found(copy: Path) -> None:
    _rewrite(copy, lambda columns: columns["timestamp"].__setitem__(50, 9.0))
    check = _one(check_dataset(copy, CAMERAS), "timestamps")
    assert check.level == "error"
    assert (
        "1 of 120 frames are not at frame / 30 fps, the first is frame 10 of episode 1 at 9.0" in check.text
    )


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_video_is_named(copy: Path, damage: str) -> None:
    file = copy / "videos" / "observation.images.wrist" / "chunk-000" / "file-000.mp4"
    content = file.read_bytes()
    noise = np.random.default_rng(0).bytes(len(content))
    file.write_bytes({"cut": content[: len(content) // 2], "noise": noise, "empty": b""}[damage])
    checks = check_dataset(copy, CAMERAS)
    check = _one(checks, "video wrist")
    assert check.level == "error"
    assert re.search(r"file-000.mp4: episode \d cannot be decoded", check.text)
    assert _one(checks, "video top").level == "ok"


def test_a_damaged_table_is_an_error_not_a_traceback(copy: Path) -> None:
    (file,) = (copy / "data").glob("*/*.parquet")
    file.write_bytes(file.read_bytes()[:-40])
    assert "cannot be read" in _one(check_dataset(copy, CAMERAS), "data set").text


def test_a_shortened_table_does_not_match_its_description(copy: Path) -> None:
    (file,) = (copy / "data").glob("*/*.parquet")
    pq.write_table(pq.read_table(file).slice(0, 100), file)
    assert "100 rows in data/, 120 frames in meta" in _one(check_dataset(copy, CAMERAS), "frames").text


def test_images_instead_of_video_are_slow_but_no_error(copy: Path) -> None:
    info = json.loads((copy / "meta" / "info.json").read_text())
    info["features"]["observation.images.wrist"]["dtype"] = "image"
    (copy / "meta" / "info.json").write_text(json.dumps(info))
    check = _one(check_dataset(copy, CAMERAS), "video wrist")
    assert check.level == "warning"
    assert "prefer video" in check.text


def test_a_data_set_this_user_may_not_read_is_told_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(root: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "describe_dataset", denied)
    (check,) = check_dataset(data / "site-a", CAMERAS)
    assert check.level == "error"
    assert "Permission denied" in check.text
    assert "SITE_UID" in check.text


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
    assert f"mode 644, others can read it; chmod 600 {file}" in check_key(file)[0].text


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
def _server(certs: Path | None, answer: bytes = b"", host: str = "127.0.0.1") -> Iterator[int]:
    """A server for one connection: TLS with `certs`, or plaintext. It answers any request with `answer`."""
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


def test_a_healthy_superlink_passes_every_step(certs: Path) -> None:
    with _server(certs, _health(datetime.now(UTC))) as port:
        checks = check_superlink("localhost", port, certs / "superlink" / "ca.crt")
    assert [(check.level, check.what) for check in checks] == [
        ("ok", "connection"),
        ("ok", "TLS"),
        ("ok", "health"),
        ("ok", "clock"),
    ]
    assert "TLSv1.3, the server's certificate has 396 days left" in checks[1].text


@pytest.mark.parametrize(("ahead", "level"), [(0, "ok"), (60, "warning"), (-60, "warning"), (290, "error")])
def test_a_clock_that_is_off_is_told_before_signatures_fail(certs: Path, ahead: int, level: str) -> None:
    with _server(certs, _health(datetime.now(UTC) - timedelta(seconds=ahead))) as port:
        check = _one(check_superlink("127.0.0.1", port, certs / "superlink" / "ca.crt"), "clock")
    assert check.level == level
    if ahead:
        assert ("ahead of" if ahead > 0 else "behind") in check.text


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

    monkeypatch.setattr(doctor, "_CONNECT_SECONDS", 0.3)
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
    assert "hosts in configs/certs.toml and runs make certs ROTATE=1" in text


def test_a_port_that_drops_packets_is_told_as_a_timeout(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(address: object, timeout: float) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", never)
    assert "no answer in 5 s; a firewall" in _last("192.0.2.1", 443, certs / "superlink" / "ca.crt")


def test_the_device_is_named_or_the_cpu_warned_of() -> None:
    (check,) = doctor.check_device()
    assert check.level in ("ok", "warning")
    assert "GB free" in check.text or "CPU cores" in check.text or "MPS" in check.text


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["doctor", *arguments])
    return main()


def test_a_ready_site_exits_0_and_a_broken_one_1_with_everything_in_the_table(
    certs: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "_WARN_FREE_GB", 0)
    monkeypatch.setattr(doctor, "_MIN_FREE_GB", 0)
    keys = certs / "sites" / "site-a"
    site = ["--scratch", str(tmp_path), "--key", str(keys / "node.key"), "--ca", str(keys / "ca.crt")]
    with _server(certs, _health(datetime.now(UTC))) as port:
        site += ["--superlink", f"localhost:{port}"]
        assert _run(monkeypatch, "--dataset", str(data / "site-a"), *site) == 0
    printed = capsys.readouterr().out
    for what in (
        "data set",
        "cameras",
        "scratch",
        "key",
        "CA",
        "connection",
        "TLS",
        "health",
        "clock",
        "device",
    ):
        assert re.search(rf"^(ok|warning) +{what} ", printed, re.MULTILINE), what
    assert "this site is ready" in printed
    assert "PRIVATE" not in printed
    assert _run(monkeypatch, "--dataset", str(tmp_path), *site) == 1  # no data set, and the server is gone
    printed = capsys.readouterr().out
    assert len(re.findall(r"^error ", printed, re.MULTILINE)) == 2
    assert "this site is not ready" in printed


def test_the_environment_of_a_sites_container_is_enough(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDERATION_DATASET", str(data))
    monkeypatch.setenv("FEDERATION_CAMERAS", "top")
    assert _run(monkeypatch) == 0
    assert capsys.readouterr().out.count("data set") == 3  # every data set of the folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset is missing"),
        (["--dataset", "d", "--superlink", "fed.example.org"], "must be HOST:PORT"),
        (["--dataset", "d", "--superlink", "fed.example.org:443"], "--superlink needs --ca"),
    ],
)
def test_bad_arguments_are_named_with_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        _run(monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
