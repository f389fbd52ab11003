"""A local federation whose processes can be taken away and brought back, and runs that this is done to."""

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from client.recordings.held import judge_recordings
from client.recordings.sources import Source
from federation.config import RunConfig
from federation.settings import PolicyConfig
from server.deploy.local_cluster import LocalCluster
from server.run.recorded import EVENTS_FILE
from server.superlink.control import PROJECT, ControlError, run_status, submit_run
from tests.integration.faults.network import Network
from tests.integration.superlink import with_database
from tests.supervised import SupervisedRun

_PATIENCE_SECONDS = 600.0  # on a busy machine a round takes a minute and a half
_APPS = {"serverapp": "flwr-serverapp", "clientapp": "flwr-clientapp"}


class FaultyCluster(LocalCluster):
    """A `LocalCluster` on a database that outlives its SuperLink, with kills and restarts.

    With a `network`, which is its owner's to start and stop, its sites reach SuperLink through that.
    """

    def __init__(self, *arguments: Any, network: Network | None = None) -> None:
        super().__init__(*arguments)
        self.network = network

    @property
    def outputs(self) -> Path:
        """Where runs are recorded."""
        return self._outputs

    @property
    def database(self) -> Path:
        """SuperLink's."""
        return self._state / "superlink.db"

    def start_rogues(
        self, dataset: Path, plans: Mapping[str, Mapping[str, str]], policy: PolicyConfig
    ) -> None:
        """Start sites that answer by their plans, see `rogue.py`, under registered keys: name -> plan.

        All have the same dataset, which is judged here, once, for runs with `policy`.
        """
        with ThreadPoolExecutor(len(plans)) as pool:
            list(pool.map(self._register, plans))
        judged = self._scratch / "judged"
        judge_recordings([Source(str(dataset.resolve()))], policy, judged)
        for name, plan in plans.items():
            scratch = self._scratch / name
            shutil.copytree(judged, scratch, dirs_exist_ok=True)
            scratch.chmod(0o700)
            node_config = {"name": name, "dataset": str(dataset.resolve()), "scratch": str(scratch)}
            command = [sys.executable, "-m", "tests.integration.faults.rogue"]
            command += ["--port", str(self._port + len(self._processes)), "--target", str(self._port)]
            command += ["--keys", str(self._certs / "sites" / name)]
            command += ["--node-config", json.dumps(node_config), "--plan", json.dumps(plan)]
            self._start(name, command, {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"})

    def finish(self, config: RunConfig) -> str:
        """Submit a run that nobody sees through; return how it ended."""
        run_id, status = submit_run(self.superlink, config), ""
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while not status.startswith("finished"):
            assert time.monotonic() < give_up_at, events(self._outputs / config.run.name)[-5:]
            time.sleep(1)
            with contextlib.suppress(ControlError):  # SuperLink is busy
                status = run_status(self.superlink, run_id)
        return status

    def _start(self, name: str, command: list[str], *others: Any, **more: Any) -> None:
        if name == "superlink":
            command = with_database(command, self.database)
        if self.network and "--superlink" in command:
            address = command.index("--superlink") + 1
            command = [*command[:address], f"127.0.0.1:{self.network.port}", *command[address + 1 :]]
        self._commands = {**getattr(self, "_commands", {}), name: (command, others, more)}
        super()._start(name, command, *others, **more)

    def _stop(self) -> None:
        shutil.copytree(self.logs, self._scratch.parent / "logs", dirs_exist_ok=True)  # beside the scratch
        super()._stop()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process, and to nothing it started; wait until it has gone."""
        self._processes[name].send_signal(number)
        self._processes[name].wait(240)

    def wait_for_end(self, name: str, seconds: float) -> None:
        """Return once a process that something else ends has gone."""
        self._processes[name].wait(seconds)

    def start_again(self, name: str) -> None:
        """Start what has gone with the same command; its log begins anew."""
        log = self.logs / f"{name}.log"
        log.replace(log.with_name(f"{name}-{time.time():.0f}.log"))
        command, others, more = self._commands[name]
        LocalCluster._start(self, name, command, *others, **more)

    def start_again_when_let_in(self, name: str, seconds: float) -> None:
        """As `restart: always`: SuperLink lets a killed SuperNode back in once its lease is over."""
        give_up_at = time.monotonic() + seconds
        while time.monotonic() < give_up_at:
            self.start_again(name)
            while self._processes[name].poll() is None:  # one that is refused ends
                if "SuperNode ID" in (self.logs / f"{name}.log").read_text(errors="replace"):
                    return
                time.sleep(0.2)
        raise AssertionError(f"{name} was not let in within {seconds:.0f} s")

    def app(self, kind: str, parent: str) -> psutil.Process:
        """The ServerApp of `superexec`, or the ClientApp of a site, that is running now."""
        give_up_at = time.monotonic() + 240
        while time.monotonic() < give_up_at:
            for process in psutil.Process(self.process_id(parent)).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    # A fork has the command line of its fork server, and the program's name.
                    if any(_APPS[kind] in part for part in (process.name(), *process.cmdline())):
                        return process
            time.sleep(0.1)
        raise AssertionError(f"{parent} runs no {kind}")

    def fork_server(self, site: str) -> psutil.Process:
        """What the ClientApps of a site are forks of; one that was killed is a zombie until the next fork."""
        (starter,) = _children(psutil.Process(self.process_id(site)), "flower-superexec")
        give_up_at = time.monotonic() + 240
        while not (servers := _children(starter, "multiprocessing.forkserver")):
            assert time.monotonic() < give_up_at, f"{site} has no fork server"
            time.sleep(0.1)
        return servers[0]


def _children(parent: psutil.Process, part: str) -> list[psutil.Process]:
    """Return the living children of `parent` with `part` in their command lines."""
    found = []
    for child in parent.children():
        with contextlib.suppress(psutil.Error):
            if part in " ".join(child.cmdline()):
                found.append(child)
    return found


@dataclass(frozen=True)
class Fault:
    """What is done to a federation in the middle of a round."""

    name: str
    moment: str
    strikes_at: Callable[[dict], bool]  # the event of the round after which it happens
    # Returns once everything is back, with the Unix time of its first try to return if that was before.
    strike: Callable[[FaultyCluster, Path], float | None]
    node: str = ""  # whose next update shows that it has recovered; anybody's if not named


@dataclass(frozen=True)
class Outcome:
    """What a fault did."""

    fault: Fault
    completed_rounds_lost: int
    # From the return of what was away to the next sign of progress; None: it stays away while this lasts.
    seconds_to_recover: float | None
    operator_sees: str


def run_with_faults(
    cluster: FaultyCluster, outputs: Path, config: RunConfig, faults: Mapping[int, Fault]
) -> list[Outcome]:
    """Have the supervisor see a run through while `faults[round]` happen to it; 0 is before the first."""
    said: list[tuple[float, str]] = []
    folder = outputs / config.run.name

    def say(line: str) -> None:
        print(line)  # pytest shows it should the run fail
        said.append((time.time(), line))

    run = SupervisedRun(cluster, outputs, config, say)
    moments: dict[int, tuple[float, float]] = {}
    for round_, fault in faults.items():
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while not any(
            event.get("round", 0) == round_ and fault.strikes_at(event) for event in events(folder)
        ):
            run.check()
            assert time.monotonic() < give_up_at, (said, events(folder)[-5:])
            time.sleep(0.1)
        struck = time.time()
        tried = fault.strike(cluster, folder)
        moments[round_] = struck, tried or time.time()
    run.finish(_PATIENCE_SECONDS)
    return [_outcome(events(folder), said, round_, faults[round_], *moments[round_]) for round_ in faults]


def events(folder: Path) -> list[dict]:
    """The events of a run so far."""
    file = folder / EVENTS_FILE
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for(folder: Path, condition: Callable[[list[dict]], bool]) -> None:
    """Return once the events of a run fulfil `condition`."""
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while not condition(events(folder)):
        assert time.monotonic() < give_up_at, events(folder)[-5:]
        time.sleep(0.1)


def _outcome(
    happened: list[dict], said: list[tuple[float, str]], round_: int, fault: Fault, struck: float, back: float
) -> Outcome:
    progress = {"update_received", "round_finished"} if round_ else {"node_joined", "update_received"}
    recovered = next(
        event["time"]
        for event in happened
        if event["event"] in progress
        and event["time"] > back
        and (not fault.node or event.get("node") == fault.node)
    )
    complete = {e["round"] for e in happened if e["event"] == "round_finished" and e["time"] < struck}
    lost = [e for e in happened if e["event"] == "round_finished" and e["time"] > struck]
    kinds = {
        "reply_timed_out": "no reply from {node}: {reason}",
        "update_rejected": "the update of {node} is rejected: {reason}",
        "join_denied": "the join of {node} is denied: {reason}",
        "node_suspended": "{node} is suspended until round {until_round}: {reason}",
        "waiting_for_nodes": "the run waits: {joined} of {min_nodes} nodes have joined",
        "run_failed": "the run failed: {reason}",
        "run_resumed": "the run goes on after round {after_round}",
    }
    lines = [(e["time"], kinds[e["event"]].format(**e)) for e in happened if e["event"] in kinds]
    seen = [line for when, line in sorted([*lines, *said]) if struck < when < recovered + 1.0]
    return Outcome(
        fault,
        sum(event["round"] in complete for event in lost),
        recovered - back,
        "; ".join(dict.fromkeys(seen)) or "the round takes longer",
    )
