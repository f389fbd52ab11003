"""What is read of a run's folder: its record, its configuration, whether it still goes on."""

import fcntl
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from federation.config import RunConfig, load_run_config, parse_run_config
from federation.errors import FederationError
from server.run.accountant import privacy_spent
from server.run.deliveries import read_deliveries
from server.run.round_record import recorded_rounds

__all__ = [
    "EVENTS_FILE",
    "LOCK_FILE",
    "METRICS_FILE",
    "as_continuation",
    "config_to_resume",
    "evaluations_behind",
    "is_being_written",
    "is_finished",
    "joined_sites",
    "parse_event",
    "read_events",
    "read_metrics",
    "read_record",
    "recorded_config",
    "recorded_runs",
]

EVENTS_FILE = "events.jsonl"
METRICS_FILE = "federated_metrics.json"
LOCK_FILE = ".lock"
_FORMER_EVENTS = {  # as the first release named them
    "node_left_out": "node_suspended",
    "node_refused": "join_denied",
    "update_missing": "reply_timed_out",
    "update_refused": "update_rejected",
}


def parse_event(line: str | bytes) -> dict[str, Any]:
    """Return the event of one line of `events.jsonl`, whichever release wrote it.

    Raises:
        ValueError: the line is not whole.
        KeyError, TypeError: it is no event.
    """
    event: dict[str, Any] = json.loads(line)
    return event | {"event": _FORMER_EVENTS.get(event["event"], event["event"])}


def is_being_written(folder: Path) -> bool:
    """Return whether a living ServerApp holds the record in `folder`. Asking needs no permission to write.

    It takes the lock for a moment, so whoever wants the record waits for it for longer than that.
    """
    try:
        with (folder / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the record of the run in `folder` and what other files add to it.

    As `privacy`, what its ledger says now; as `delivered`, which sites have its policy.

    Raises:
        FederationError: a file is missing or damaged.
    """
    metrics = read_record(folder)
    # Not that of its newest round: rounds may have left the record, what they released has not come back.
    if privacy := privacy_spent(metrics["config"], folder):
        metrics["privacy"] = privacy
    return metrics | {"delivered": read_deliveries(folder)}


def read_record(folder: Path) -> dict[str, Any]:
    """Return the `federated_metrics.json` of the run in `folder`.

    Raises:
        FederationError: it is missing or damaged.
    """
    file = folder / METRICS_FILE
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FederationError(f"{file} cannot be read ({error}): name a run's folder") from None
    needed = {"config": dict, "rounds": list, "status": str, "reason": str}
    if not isinstance(metrics, dict) or any(
        type(metrics.get(key)) is not kind for key, kind in needed.items()
    ):
        raise FederationError(f"{file} is no record of a run: name a run's folder")
    for derived in ("privacy", "delivered"):  # which the first release wrote into resumed runs' records
        metrics.pop(derived, None)
    return metrics


def read_events(folder: Path, names: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of these `names` of the run in `folder`, in their order, but for damaged lines.

    None if there is no file that can be read.
    """
    try:
        text = (folder / EVENTS_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    former = [old for old, new in _FORMER_EVENTS.items() if new in names]
    marks = [f'"event": "{name}"' for name in (*names, *former)]
    for line in text[: text.rfind("\n") + 1].splitlines():  # a killed server leaves half a line
        if any(mark in line for mark in marks):  # those of rounds are long, and may be thousands
            try:
                event = parse_event(line)
            except (ValueError, KeyError, TypeError):
                continue
            yield event


def joined_sites(folder: Path) -> set[str]:
    """Return the sites of which the last that the events in `folder` tell is that they joined.

    One whose join was denied after that, or that is suspended, is not among them.

    Raises:
        FederationError: the run has no events.
    """
    if not (folder / EVENTS_FILE).exists():
        raise FederationError(f"{folder / EVENTS_FILE} is missing: which sites took part is not known")
    joined: set[str] = set()
    for event in read_events(folder, ("node_joined", "join_denied", "node_suspended")):
        if event["event"] == "node_joined":
            joined.add(event["node"])
        else:
            joined.discard(event.get("node", ""))
    return joined


def evaluations_behind(metrics: Mapping[str, Any], round_: int) -> dict[int, dict[str, Any]]:
    """Return round -> evaluation, of those that the weights after `round_` come from; 0: before training.

    Where the run went back to its best round, what lies between is left out: those weights are gone.
    """
    found = {0: metrics["baseline"]} if metrics.get("baseline") else {}
    for entry in recorded_rounds(metrics):
        if entry.round > round_:
            break
        if entry.reverted_to is not None:
            found = {n: evaluation for n, evaluation in found.items() if n <= entry.reverted_to}
        elif entry.evaluation:
            found[entry.round] = entry.evaluation
    return found


def recorded_config(folder: Path) -> RunConfig:
    """Return the configuration that the run in `folder` was started, or last resumed, with.

    Raises:
        FederationError: the record cannot be read.
        ConfigError: another version wrote it, with settings that this one has not.
    """
    return parse_run_config(read_record(folder)["config"], str(folder / METRICS_FILE))


def as_continuation(config: RunConfig) -> RunConfig:
    """Return `config` with `run.resume` set."""
    return replace(config, run=replace(config.run, resume=True))


def config_to_resume(folder: Path, file: Path | None = None) -> RunConfig:
    """Return what the run in `folder` goes on with: the configuration in `file`, or its own if that is None.

    Raises:
        ConfigError: `file` cannot be used.
        FederationError: there is no record in `folder`.
    """
    config = load_run_config(file, {"run.name": folder.name}) if file else recorded_config(folder)
    return as_continuation(config)


def recorded_runs(outputs: Path) -> list[Path]:
    """Return the folders of the runs in `outputs`, that which was written last at the end."""
    files = sorted(outputs.glob(f"*/{METRICS_FILE}"), key=lambda file: file.stat().st_mtime)
    return [file.parent for file in files]


def is_finished(folder: Path, run_id: str | None = None) -> bool:
    """Return whether the run in `folder` has finished; `run_id`: in Flower's run of this id, or later."""
    if not (folder / METRICS_FILE).exists():
        return False
    metrics = read_record(folder)
    # A finished run may be resumed, with more rounds; until that one has begun, the record says finished.
    has_begun = run_id is None or run_id in metrics.get("flower_runs", [])
    return has_begun and bool(metrics["status"] == "finished")
