"""A local federation whose processes can be taken away and brought back."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from federation.config import RunConfig
from server.cluster import LocalCluster
from server.records import EVENTS_FILE
from server.supervisor import see_through

_APPS = {"serverapp": "flwr-serverapp", "clientapp": "flwr-clientapp"}


class FaultyCluster(LocalCluster):
    """A `LocalCluster` on a database that outlives its SuperLink, with kills and restarts."""

    def _start(self, name: str, command: list[str], extra: Mapping[str, str] | None = None) -> None:
        if name == "superlink":
            command = [*command, "--database", str(self._state / "superlink.db")]
        self._commands = {**getattr(self, "_commands", {}), name: (command, extra)}
        super()._start(name, command, extra)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process, and to nothing it started; wait until it has gone."""
        self._processes[name].send_signal(number)
        self._processes[name].wait(30)

    def kill_group(self, name: str) -> None:
        """SIGKILL to a process and all it started, as when a container is killed."""
        os.killpg(self._processes[name].pid, signal.SIGKILL)
        self._processes[name].wait(30)

    def start_again(self, name: str) -> None:
        """Start what has gone with the same command; its log begins anew."""
        log = self.logs / f"{name}.log"
        log.replace(log.with_name(f"{name}-{time.time():.0f}.log"))
        command, extra = self._commands[name]
        LocalCluster._start(self, name, command, extra)

    def start_again_when_let_in(self, name: str, seconds: float) -> None:
        """As `restart: always`: SuperLink lets a killed SuperNode back in once its lease is over."""
        give_up_at = time.monotonic() + seconds
        while time.monotonic() < give_up_at:
            self.start_again(name)
            for _ in range(8):
                if "SuperNode ID" in (self.logs / f"{name}.log").read_text(errors="replace"):
                    return
                time.sleep(0.5)
            with contextlib.suppress(ProcessLookupError):
                self.kill(name)
        raise AssertionError(f"{name} was not let in within {seconds:.0f} s")

    def app(self, kind: str, parent: str) -> psutil.Process:
        """The ServerApp of `superexec`, or the ClientApp of a site, that is running now."""
        give_up_at = time.monotonic() + 60
        while time.monotonic() < give_up_at:
            for process in psutil.Process(self.process_id(parent)).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(_APPS[kind] in part for part in process.cmdline()):
                        return process
            time.sleep(0.1)
        raise AssertionError(f"{parent} runs no {kind}")


@contextlib.contextmanager
def seen_through(cluster: LocalCluster, outputs: Path, config: RunConfig) -> Iterator[list[str]]:
    """Have the supervisor see a run through meanwhile; yields what it says, and ends when the run has."""
    said: list[str] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            see_through(cluster.flwr_home, outputs, config, said.append)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield said
    thread.join(900)
    assert not thread.is_alive(), said
    assert not failures, (failures, said)


def events(folder: Path) -> list[dict]:
    """The events of a run so far."""
    file = folder / EVENTS_FILE
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for(folder: Path, seen: Callable[[dict], bool], seconds: float = 400) -> dict:
    """The first event for which `seen` is true, as soon as it is there."""
    give_up_at = time.monotonic() + seconds
    while time.monotonic() < give_up_at:
        for event in events(folder):
            if seen(event):
                return event
        time.sleep(0.1)
    raise AssertionError(f"not seen in {seconds:.0f} s: {events(folder)[-5:]}")


def round_started(number: int) -> Callable[[dict], bool]:
    """For `wait_for`: round `number` has been sent out."""
    return lambda event: event["event"] == "round_started" and event["round"] == number
