import contextlib
import gc
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import httpx
import psutil
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker

from certs.issue import issue_all
from client.supernode import wrapper
from federation import logs

BIN = Path(wrapper.__file__).parent / "bin"


@contextlib.contextmanager
def _answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a port that takes one connection and does this with it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def _error(url: str, patience: float = 60.0) -> httpx.HTTPError:
    with pytest.raises(httpx.HTTPError) as raised:
        httpx.get(url, timeout=patience)
    return raised.value


def _gives_up(error: httpx.HTTPError) -> tuple[bool, bool]:
    """Whether Flower gives up at once at this error, and whether ours does."""
    flowers = make_simple_http_retry_invoker().should_giveup
    assert flowers
    return flowers(error), wrapper.gives_up_on(flowers)(error)


def test_a_handshake_that_nobody_answers_is_tried_again() -> None:
    with _answering(lambda connection: time.sleep(1)) as url:
        assert _gives_up(_error(url, patience=0.5)) == (True, False)


def test_a_handshake_that_is_broken_off_is_tried_again() -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(65536)

    with _answering(break_off) as url:
        assert _gives_up(_error(url)) == (True, False)


def test_a_wrong_certificate_is_not_tried_again(tmp_path: Path) -> None:
    issue_all(tmp_path, hosts=[], sites=[])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "superlink" / "server.crt", tmp_path / "superlink" / "server.key")

    def shake_hands(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1)

    with _answering(shake_hands) as url:
        assert _gives_up(_error(url)) == (True, True)


@pytest.mark.parametrize(
    ("ahead", "says"),
    [
        (600, r"the clock here is \+[56]\d\d s off SuperLink's; turn on time synchronisation"),
        (-600, r"the clock here is -[56]\d\d s off SuperLink's; turn on time synchronisation"),
        (0, "its key is not registered, or was revoked; ask the operator"),
        (None, "its key is not registered, or was revoked; ask the operator"),
    ],
)
def test_a_refused_signature_is_said_with_its_reason(
    ahead: float | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = {} if ahead is None else {"date": formatdate(time.time() - ahead, usegmt=True)}
    request = httpx.Request("POST", "https://superlink/v1/fleet/activate-node")
    error = httpx.HTTPStatusError(
        "401", request=request, response=httpx.Response(401, headers=headers, request=request)
    )
    logs.configure()
    assert wrapper.gives_up_on(lambda _: True)(error)
    assert re.search(f"SuperLink refuses this site's signature: {says}", capsys.readouterr().err)


def test_a_supernode_that_has_given_up_ends_with_an_error() -> None:
    # In a process of its own, which Flower's exit takes with it.
    gives_up = "from flwr.supernode import cli; cli.flower_supernode = lambda: None; "
    code = gives_up + "from client.supernode.wrapper import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=BIN.parents[2], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "The SuperNode has given up" in ended.stdout + ended.stderr


def test_a_supernode_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    """That program is killed, so it can end nobody; what the SuperNode started ends too."""
    node = (
        "import os, subprocess, sys; from client.supernode.wrapper import end_with;"
        "child = subprocess.Popen(['sleep', '600']);"
        "print(os.getpid(), child.pid, file=open(sys.argv[1], 'w'), flush=True); end_with(int(sys.argv[2]))"
    )
    start = (
        "import os, subprocess, sys; command = [sys.executable, '-c', sys.argv[2], sys.argv[1]];"
        "subprocess.Popen([*command, str(os.getpid())], start_new_session=True).wait()"
    )
    file = tmp_path / "pids"
    runner = subprocess.Popen([sys.executable, "-c", start, str(file), node], cwd=BIN.parents[2])
    give_up_at = time.monotonic() + 240
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    processes = [psutil.Process(int(pid)) for pid in file.read_text().split()]
    runner.kill()
    runner.wait()
    _, alive = psutil.wait_procs(processes, timeout=240)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_what_refers_only_to_itself_is_freed_though_python_would_wait() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.myself = self

    cycle = Cycle()
    freed = weakref.ref(cycle)
    ended = threading.Event()
    collector = threading.Thread(target=wrapper.collect, args=(0.01, ended))
    gc.disable()
    collector.start()
    try:
        del cycle
        give_up_at = time.monotonic() + 240
        while freed() is not None:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
    finally:
        gc.enable()
        ended.set()
        collector.join()


def test_a_site_finds_it_under_the_name_of_flowers_program() -> None:
    assert shutil.which("flower-supernode", path=str(BIN)) == str(BIN / "flower-supernode")


def test_a_superlink_that_fails_is_asked_again() -> None:
    error = httpx.HTTPStatusError(
        "500", request=httpx.Request("POST", "https://superlink"), response=httpx.Response(500)
    )
    assert not wrapper.gives_up_on(lambda _: True)(error)
