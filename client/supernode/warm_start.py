"""Flower's SuperExec at a site, whose ClientApps are forks of a process that has imported torch and LeRobot.

Flower starts a process for each message, and imports were most of a short round (docs/results.md).
`client/supernode/bin`, first on the PATH of a SuperNode, holds this module under the name `flower-superexec`.
It runs Flower's own program and replaces the one call that starts a process, `subprocess.Popen`, which Flower
neither waits for nor asks for an exit code. The standard library's fork server imports
`client/supernode/preload.py`; a fork of it runs `client/supernode/consent.py` with the arguments and the
environment that the process would have had.

A ClientApp starts cold, as Flower starts it, where a fork would be something else:

- `FEDERATION_WARM_START=0` asks for it, the system is not Linux, or the owner allows another app;
- the app or a package on disk is no longer what was imported: consent compares with what is on disk;
- the fork server fails. The next message has a new one.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from client.rules.owner import read_rules, rules_file
from client.supernode.consent import INSTALLED, PACKAGES, PROGRAM
from client.supernode.wrapper import SUPEREXEC_VARIABLE
from federation import logs
from federation.errors import ConfigError

__all__ = ["WARM_START", "installed_state", "main", "start_fork_server", "why_cold"]

WARM_START = "FEDERATION_WARM_START"
_PRELOAD = "client.supernode.preload"
_CONTEXT = multiprocessing.get_context("forkserver")
_log = logs.get_logger("client.supernode.warm_start")


def main() -> None:
    """Run Flower's `flower-superexec`, with warm ClientApps where that is possible."""
    logs.configure()
    secret = os.environ.pop(SUPEREXEC_VARIABLE, "")  # no ClientApp needs it
    reason = why_cold(os.environ)
    if reason:
        _log.info("each ClientApp imports torch and LeRobot anew: %s", reason)
    else:
        _start_forks()
    from flwr.supercore.cli import flower_superexec

    if secret:
        sys.argv += ["--superexec-auth-secret-file", _readable_once(secret)]
    flower_superexec()


def _readable_once(text: str) -> str:
    """Return the path of a pipe that holds `text`: Flower takes its secret from a file."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    return f"/dev/fd/{reading}"


def why_cold(environment: Mapping[str, str]) -> str:
    """Return why no ClientApp of this site may be a fork; "" if it may."""
    wanted = environment.get(WARM_START, "") or "1"
    if wanted != "1":
        return f"{WARM_START}={wanted}"
    if not sys.platform.startswith("linux"):
        return f"a fork after importing torch is not safe on {sys.platform}"
    return ""


def installed_state() -> dict[str, int]:
    """Return the time of change (ns) of each file of the installed app and of each installed package."""
    files = [file for package in PACKAGES for file in (INSTALLED / package).rglob("*.py")]
    packages = Path(sysconfig.get_path("purelib")).glob("*.dist-info")
    return {str(path): path.stat().st_mtime_ns for path in (*files, *packages)}


def start_fork_server() -> None:
    """Start the fork server, so that the first message finds it ready; it imports for some seconds."""
    # The fork server finds our packages by it: sys.path does not reach it.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INSTALLED), os.environ.get("PYTHONPATH")]))
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else to ask whether there is CUDA begins a context
    _CONTEXT.set_forkserver_preload([_PRELOAD])
    forkserver.ensure_running()
    atexit.register(_end_forks)  # runs before multiprocessing's own, which would wait for them


def _start_forks() -> None:
    """Have Flower's executor start forks."""
    from flwr.supercore.superexec.executor import subprocess_executor

    imported = installed_state()
    start_fork_server()

    def start(command: Sequence[str], **options: Any) -> None:
        """Start a ClientApp as a fork; anything else, and whatever is unusual, as Flower does."""
        if Path(command[0]).name != PROGRAM or options or not _fork(command, imported):
            subprocess.Popen(command, **options)

    subprocess_executor.subprocess = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)  # type: ignore


def _fork(command: Sequence[str], imported: Mapping[str, int]) -> bool:
    """Run `command` in a fork of the fork server; whether that was possible."""
    try:
        if installed_state() != imported:
            raise OSError("the app or a package has changed since; restart this SuperNode")
        if read_rules(rules_file()).allow_app:
            raise OSError("the rule allow-app lets another app run here")
        _CONTEXT.Process(target=_run_client_app, args=(list(command), dict(os.environ))).start()
    except (OSError, EOFError, ConfigError) as error:
        _log.warning("this ClientApp starts cold, it cannot be a fork: %s", str(error) or repr(error))
        return False
    return True


def _run_client_app(command: list[str], environment: dict[str, str]) -> None:
    """Be the process that `command` would have started, in a fork."""
    logs.configure()
    if _PRELOAD not in sys.modules:
        _log.warning("the fork server could not import %s; reinstall this site's client", _PRELOAD)
    import numpy as np

    from client.supernode import consent

    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    Path("/proc/self/comm").write_text(PROGRAM, encoding="utf-8")  # what `ps` and `top` show
    np.random.seed()  # else each fork would draw what the one before it drew
    sys.exit(consent.main())


def _end_forks() -> None:
    for process in multiprocessing.active_children():
        process.terminate()
