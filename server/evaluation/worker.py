"""Closed-loop evaluations of a run, beside it: one process at a time, so that no round waits for one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from federation.errors import ConfigError, one_line
from federation.logs import get_logger
from federation.settings import EvaluationConfig

__all__ = ["INSTALLATION", "Simulations", "require_simulator"]

INSTALLATION = "FEDERATION_INSTALLATION"  # the environment variable that names its folder
_SIMULATOR = "server/evaluation/closed_loop.py"  # no part of the app that Flower unpacks for a run
_MAX_SECONDS = 3600.0
_RESULT_FILE = "result.json"
_log = get_logger("server.evaluation.worker")


def require_simulator(variants: str) -> None:
    """Raise ConfigError if this server cannot evaluate in closed loop, in scenes `variants` (a,b,...)."""
    folder = _installation()
    if not (folder / _SIMULATOR).is_file():
        raise ConfigError(
            f"evaluation.sim_frequency: {folder} holds no simulated arm; set {INSTALLATION} to the folder of "
            "the installed federation where SuperExec starts, or sim_frequency to 0"
        )
    ended = subprocess.run(
        [*_command(), "--check", "--scenes", variants],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = (ended.stderr.strip() or f"it ended with code {ended.returncode}").split("\n")[-1]
        last = last.removeprefix("error: ")
        raise ConfigError(f"evaluation.sim_frequency: {last}; set it to 0 to train without")


class Simulations:
    """Drives exported policies one after another; a failed one is logged and never fails the run.

    One waits at most, since each holds a whole export: where rounds are faster, the newest takes the place of
    the one that waits. What a killed server left behind is cleared.

    Args:
        folder: of the run; videos come to `folder/simulation/round_N/`.
        done: called with the round and its result, from `collect` and `wait` only.
    """

    def __init__(
        self, folder: Path, config: EvaluationConfig, done: Callable[[int, dict[str, Any]], None]
    ) -> None:
        self._folder, self._config, self._done = folder / "simulation", config, done
        self._waiting: int | None = None
        self._running: tuple[int, subprocess.Popen[bytes]] | None = None
        for left_behind in self._folder.glob("round_*/*policy*"):
            shutil.rmtree(left_behind, ignore_errors=True)

    def due(self, round_: int, *, last: bool = False) -> bool:
        """Return whether to simulate after `round_`: before training, each `sim_frequency` rounds, last."""
        every = self._config.sim_frequency
        return bool(every) and (last or round_ % every == 0)

    def start(self, round_: int, export: Callable[[Path], None]) -> None:
        """Evaluate the policy that `export` writes to the folder it is given, once the one before is done."""
        self.collect()
        if self._waiting is not None:
            _log.warning(
                "no simulation after round %d: that of an earlier round still runs, round %d is next",
                self._waiting,
                round_,
            )
            self._drop_waiting()
        folder = self._folder / f"round_{round_}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            export(folder / "policy")
        except Exception as error:  # of the disk, of safetensors, of LeRobot: the run goes on
            _log.error("no simulation after round %d: export failed: %s", round_, one_line(error))
            return
        self._waiting = round_
        self.collect()

    def collect(self) -> None:
        """Report what has ended and start what waits; returns at once."""
        if self._running is not None and self._running[1].poll() is not None:
            self._finish()
        if self._running is None and self._waiting is not None:
            try:
                self._running = self._waiting, self._begin(self._waiting)
                self._waiting = None
            except OSError as error:
                _log.error("no simulation after round %d: %s", self._waiting, one_line(error))
                self._drop_waiting()

    def wait(self) -> None:
        """Wait until every evaluation has ended; stop one that takes longer than an hour from now."""
        self.collect()
        while self._running is not None:
            try:
                self._running[1].wait(_MAX_SECONDS)
            except subprocess.TimeoutExpired:
                self._running[1].kill()
                self._running[1].wait()
            self.collect()

    def stop(self) -> None:
        """End the one that runs and drop the one that waits, as when the run fails."""
        self._drop_waiting()
        if self._running is not None:
            (round_, process), self._running = self._running, None
            process.terminate()
            process.communicate()
            self._remove_policy(round_)

    def _drop_waiting(self) -> None:
        if self._waiting is not None:
            self._remove_policy(self._waiting)
            self._waiting = None

    def _remove_policy(self, round_: int) -> None:
        """At full size it takes 1.8 GB."""
        shutil.rmtree(self._folder / f"round_{round_}" / "policy", ignore_errors=True)

    def _begin(self, round_: int) -> subprocess.Popen[bytes]:
        folder = self._folder / f"round_{round_}"
        command = [*_command(), "--policy", "policy", "--out", _RESULT_FILE, "--videos", "."]
        command += ["--episodes", str(self._config.sim_episodes), "--scenes", self._config.sim_variants]
        command += ["--end-with-stdin"]
        (folder / _RESULT_FILE).unlink(missing_ok=True)  # of a server before this one
        with (folder / "log.txt").open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.PIPE,  # closed by the kernel if this process is killed: it ends too
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _finish(self) -> None:
        assert self._running is not None
        (round_, process), self._running = self._running, None
        process.communicate()  # it has ended: closes the pipe
        folder = self._folder / f"round_{round_}"
        self._remove_policy(round_)
        try:
            result = json.loads((folder / _RESULT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no output")
            _log.error("simulation after round %d failed (%s): %s", round_, process.returncode, last)
            return
        self._done(round_, result)


def _installation() -> Path:
    return Path(os.environ.get(INSTALLATION) or Path.cwd())


def _command() -> list[str]:
    return [sys.executable, "-P", "-m", "server.cli", "simulate"]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(_installation())}
