"""Supervises a run to its end: whenever it ends unfinished, a continuation is submitted.

Flower 1.42 resumes nothing: a run whose ServerApp dies, or whose SuperLink is away for a minute, is failed
for good. A continuation is a new run for Flower and the same one for us: it takes the record and the newest
checkpoint of `outputs/<run>` and goes on with the next round. `server/deploy/submit.py` calls this in the
`run` container. It reads the record, which only the ServerApp writes, and SuperLink's state; it knows
nothing of policies or nodes.
"""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from federation.config import RunConfig
from federation.errors import FederationError
from server.run.recorded import (
    METRICS_FILE,
    as_continuation,
    is_being_written,
    is_finished,
    read_events,
    read_record,
    recorded_config,
    recorded_runs,
)
from server.superlink.control import (
    ControlError,
    RefusedError,
    SuperLink,
    active_run,
    only_delivers,
    run_status,
    stop_run,
    submit_run,
)

__all__ = ["RunGivenUpError", "find_active_run", "supervise_run"]

_MAX_ATTEMPTS_WITHOUT_PROGRESS = 5
_POLL_INTERVAL_SECONDS = 2.0
_STATUS_INTERVAL_SECONDS = 5.0
_SECONDS_BEFORE_CONTINUATION = 3.0
_RECORD_SECONDS = 60.0  # a ServerApp starts within it


class RunGivenUpError(FederationError):
    """A run was stopped by its operator, or failed again and again without one more round."""


def supervise_run(superlink: SuperLink, outputs: Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """Submit `config`, or follow the run that is active instead, until it has finished.

    Args:
        outputs: where the ServerApp records runs, to be read only.
        config: of the run; with `run.resume` its first submission is a continuation already.
        say: takes lines for the operator.

    Raises:
        RunGivenUpError: the run was stopped, or `_MAX_ATTEMPTS_WITHOUT_PROGRESS` brought no further round.
        ControlError: SuperLink refuses a submission or cannot be reached for the first one.
    """
    active = find_active_run(superlink, outputs, say)
    if active is None:
        run_id = submit_run(superlink, config)
        say(f"run {config.run.name} submitted as {run_id}; it is recorded in {outputs / config.run.name}")
    else:
        run_id, config = active
        say(f"run {config.run.name} is active as {run_id} and is followed")
    folder = outputs / config.run.name
    failures, newest, reported_waits = 0, _complete_rounds(folder), 0
    while True:
        status = _wait_for_end(superlink, folder, run_id, say)
        if is_finished(folder, run_id):
            reason = _reason(folder)
            say(f"run {config.run.name} has finished{f', early, {reason}' if reason else ''}")
            return
        rounds, reason = _complete_rounds(folder), _reason(folder)
        if status == "finished:stopped":
            raise RunGivenUpError(
                f"run {config.run.name} was stopped after round {rounds}; it can be resumed"
            )
        if rounds > newest:
            failures, newest = 0, rounds
        elif not any(_waits(folder)[reported_waits:]):  # sites may be away for days
            failures += 1
        reported_waits = len(_waits(folder))
        if failures == _MAX_ATTEMPTS_WITHOUT_PROGRESS:
            raise RunGivenUpError(
                f"run {config.run.name}: {failures} attempts brought no round after {rounds}: "
                f"{reason or status}"
            )
        say(f"run {config.run.name} ended after round {rounds}: {reason or status}")
        time.sleep(_SECONDS_BEFORE_CONTINUATION)
        # Before its record begins a run has nothing to continue, and the name is still free.
        again = as_continuation(config) if _has_record(folder) else config
        # Asked first each time: a submission that seemed to fail may have come through.
        run_id = _when_reachable(say, partial(_active_or_submitted, superlink, again))
        say(f"run {config.run.name} goes on after round {rounds} as {run_id}")


def find_active_run(
    superlink: SuperLink, outputs: Path, say: Callable[[str], None]
) -> tuple[str, RunConfig] | None:
    """Return Flower's id of the active run and its configuration; None if there is none, or soon.

    For a moment a run is active without a record, while its ServerApp starts, and after its record was
    finished, while its ServerApp ends. One that only delivers has no record, and its end is waited for.

    Args:
        say: takes lines for the operator.

    Raises:
        RunGivenUpError: there is one, and no record of it.
    """
    delivery = ""
    give_up_at = time.monotonic() + _RECORD_SECONDS
    while (run_id := active_run(superlink)) is not None:
        for folder in recorded_runs(outputs):
            if _is_record_of(folder, run_id) and not is_finished(folder):
                return run_id, recorded_config(folder)
        if run_id != delivery and only_delivers(superlink, run_id):
            delivery = run_id
            say(f"run {run_id} delivers a policy, and its end is waited for")
        if run_id != delivery and time.monotonic() > give_up_at:
            raise RunGivenUpError(
                f"run {run_id} is active, and {outputs} has no record of it: docker compose run --rm run "
                "--stop ends it"
            )
        time.sleep(_POLL_INTERVAL_SECONDS)
    return None


def _is_record_of(folder: Path, run_id: str) -> bool:
    try:
        return run_id in read_record(folder).get("flower_runs", [])
    except FederationError:  # another run's, damaged
        return False


def _wait_for_end(superlink: SuperLink, folder: Path, run_id: str, say: Callable[[str], None]) -> str:
    """How the run ended, once it is over; a finished record is enough."""
    check_at = time.monotonic()
    was_written = False
    while not is_finished(folder, run_id):
        # By the run's own ServerApp: that of a run that was stopped may take its time to end.
        is_written = is_being_written(folder) and _is_record_of(folder, run_id)
        has_gone, was_written = was_written and not is_written, is_written
        if has_gone or time.monotonic() >= check_at:
            status = _when_reachable(say, lambda: run_status(superlink, run_id))
            if status == "unknown" or status.startswith("finished"):
                return status
            check_at = time.monotonic() + _STATUS_INTERVAL_SECONDS
        if has_gone and not is_finished(folder, run_id):
            # SuperLink takes a minute to notice; until it does, the run is active and no other may begin.
            with contextlib.suppress(ControlError):
                stop_run(superlink, run_id)
            return "its ServerApp died"
        time.sleep(_POLL_INTERVAL_SECONDS)
    return "finished:completed"


def _active_or_submitted(superlink: SuperLink, config: RunConfig) -> str:
    return active_run(superlink) or submit_run(superlink, config)


def _when_reachable[T](say: Callable[[str], None], ask: Callable[[], T]) -> T:
    """Return what `ask` returns, however long SuperLink is away.

    Raises:
        RefusedError: SuperLink answers, and refuses.
    """
    is_reported = False
    while True:
        try:
            return ask()
        except RefusedError:
            raise
        except ControlError as error:
            if not is_reported:
                say(f"waiting for SuperLink: {error}")
            is_reported = True
            time.sleep(_POLL_INTERVAL_SECONDS)


def _waits(folder: Path) -> list[bool]:
    """For each time that the run reported too few nodes, whether it still waited when it was last written."""
    waits: list[bool] = []
    for event in read_events(folder, ("waiting_for_nodes", "waiting_ended")):
        if event["event"] == "waiting_for_nodes":
            waits.append(True)
        else:
            waits = [False] * len(waits)
    return waits


def _has_record(folder: Path) -> bool:
    return (folder / METRICS_FILE).exists()


def _complete_rounds(folder: Path) -> int:
    rounds = read_record(folder)["rounds"] if _has_record(folder) else []
    return int(rounds[-1]["round"]) if rounds else 0


def _reason(folder: Path) -> str:
    return str(read_record(folder)["reason"]) if _has_record(folder) else ""
