"""Keeps the SuperNode of a site's folder running until its owner pauses it or leaves.

`so100-site join` ends here. A SuperNode that ends is started again, after a wait that grows while it keeps
ending: SuperLink may be away for a night. What the owner wants is a file in the folder, so that `pause`,
`resume` and `leave` work from another terminal and last through a reboot.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from client.membership.folder import SiteFolder
from client.membership.supernode import supernode_command, supernode_environment
from client.rules.check import why_off
from client.supernode.refusal import read_refusal
from client.supernode.wrapper import RUNNER_VARIABLE
from federation.errors import FederationError
from federation.files import write_json
from federation.logs import configure, get_logger

__all__ = ["END_IT", "LEFT", "PAUSED", "is_running", "keep_running", "wish_of"]

PAUSED, LEFT = "paused", "left"
END_IT = "end it first: Ctrl-C in its terminal, systemctl --user stop for its unit, or docker compose stop"
_KEPT_OFF = "off by the owner's rules"
_POLL_SECONDS = 0.5
_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 5.0, 120.0
_STABLE_SECONDS = 300.0  # a SuperNode that ran so long is started again at once
_FAILED_START_SECONDS = 20.0
_STOP_SECONDS = 25.0
_LOCK_ATTEMPTS, _LOCK_RETRY_SECONDS = 3, 0.1
_log = get_logger("client.membership.runner")


def keep_running(site: SiteFolder, superlink: str) -> int:
    """Run the SuperNode until SIGTERM, Ctrl-C, the terminal's end or the owner's `leave`; return 0.

    Raises:
        FederationError: the site of this folder runs already.
    """
    configure()
    stop = threading.Event()
    hangs_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # else it is to outlast its terminal (nohup)
    for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hangs_up else [])):
        signal.signal(number, lambda *_: stop.set())
    environment, wait, restarts = supernode_environment(site, os.environ), _FIRST_WAIT_SECONDS, 0
    environment[RUNNER_VARIABLE] = str(os.getpid())
    with _only_one(site):
        while not stop.is_set() and (reason := _reason_to_be_off(site)) != LEFT:
            site.refusal.unlink(missing_ok=True)
            if reason == PAUSED:
                _log.info("paused; so100-site resume takes part again")
                _note(site, PAUSED, restarts)
            elif reason:
                _log.info("off: %s", reason)
                _note(site, _KEPT_OFF, restarts, reason)
            if reason:
                _sleep(site, stop, float("inf"), reason)
                continue
            started = time.monotonic()
            command = supernode_command(site, superlink, environment)
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            _note(site, "running", restarts)
            code = _watch(process, site, stop)
            if code is None:
                continue
            restarts += 1
            lasted = time.monotonic() - started
            wait = _FIRST_WAIT_SECONDS if lasted > _STABLE_SECONDS else wait
            _log.warning("the SuperNode ended with code %d; it is started again in %.0f s", code, wait)
            why = f"the SuperNode ended with code {code}"
            if lasted < _FAILED_START_SECONDS:  # Flower says only that it failed to activate
                why += " at once: its key is not registered, was revoked, or still counts as connected"
            _note(site, "restarting", restarts, why)
            _sleep(site, stop, wait, "")
            wait = min(2 * wait, _MAX_WAIT_SECONDS)
        _note(site, "off", restarts)
    return 0


def wish_of(site: SiteFolder) -> str:
    """Return what the owner wants: `PAUSED`, `LEFT`, or "" to take part."""
    try:
        return site.wish.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _reason_to_be_off(site: SiteFolder) -> str:
    """Return what the owner wants or which of the owner's rules keeps the site off; "" to take part."""
    return wish_of(site) or why_off(site.rules, site.scratch)


def is_running(site: SiteFolder) -> bool:
    """Return whether `keep_running` is at work on this folder."""
    if not site.path.is_dir():
        return False
    try:
        with _only_one(site):
            return False
    except FederationError:
        return True


@contextlib.contextmanager
def _only_one(site: SiteFolder) -> Iterator[None]:
    with site.lock.open("a") as file:
        for _ in range(_LOCK_ATTEMPTS):  # `is_running` holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(_LOCK_RETRY_SECONDS)
        else:
            raise FederationError(f"the site in {site.path} runs already; {END_IT}")
        yield


def _watch(process: "subprocess.Popen[bytes]", site: SiteFolder, stop: threading.Event) -> int | None:
    """Wait for the SuperNode and return its exit code; None if it was to end."""
    while process.poll() is None and not stop.is_set() and not _reason_to_be_off(site):
        stop.wait(_POLL_SECONDS)
    code = process.poll()
    if code is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # what it started, and itself if it did not end
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return code


def _sleep(site: SiteFolder, stop: threading.Event, seconds: float, reason: str) -> None:
    """Wait so long, but no longer than the reason to be off stays as it is."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and _reason_to_be_off(site) == reason and not stop.is_set():
        stop.wait(_POLL_SECONDS)


def _note(site: SiteFolder, state: str, restarts: int, why: str = "") -> None:
    """Write down for `so100-site status` what this process is at."""
    content: dict[str, Any] = {
        "state": state,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "restarts": restarts,
        "why": read_refusal(site.refusal) or why,
    }
    with contextlib.suppress(OSError):  # a full disk ends nothing
        write_json(site.state, content, durable=False)
