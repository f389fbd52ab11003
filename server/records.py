"""What a run leaves in `outputs/<run>/`, written as it happens.

config.json               every setting of the run
events.jsonl              one line an event, only ever appended to: progress displays and exporters follow it
federated_metrics.json    the whole run so far: nodes, rounds, clients, evaluations
server_eval_round_N.json  the evaluation after round N; 0 is before training
server.log                the ServerApp's log
"""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federation.config import RunConfig, flatten
from federation.errors import FederationError
from server.environment import describe_environment
from server.files import write_json

__all__ = ["EVENTS_FILE", "METRICS_FILE", "RunRecord", "new_run_name"]

EVENTS_FILE = "events.jsonl"
METRICS_FILE = "federated_metrics.json"


def new_run_name(prefix: str) -> str:
    """A folder name that sorts by time, e.g. `demo-20261123-184002`."""
    return f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


class RunRecord:
    """The folder of one run.

    Args:
        outputs: where runs are kept.
        name: of the run; its folder must not exist yet, a record is never written over.

    Raises:
        FederationError: the folder exists or cannot be made.
    """

    def __init__(self, outputs: Path, name: str, config: RunConfig) -> None:
        self.name, self.folder = name, outputs / name
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise FederationError(f"{self.folder} exists: choose another run.name or move it away") from None
        except OSError as error:
            raise FederationError(
                f"{self.folder} cannot be made ({error.strerror}): check its owner"
            ) from None
        self._events = (self.folder / EVENTS_FILE).open("a", encoding="utf-8")
        self._metrics: dict[str, Any] = {
            "run": name,
            "status": "running",
            "reason": "",
            "started": _now(),
            "finished": None,
            "config": flatten(config),
            "environment": describe_environment(),
            "nodes": {},
            "baseline": None,
            "rounds": [],
        }
        write_json(self.folder / "config.json", self._metrics["config"])
        self._save()

    def event(self, event: str, **fields: Any) -> None:
        """Append `{"time": unix seconds, "event": event, ...fields}` to the event file."""
        line = {"time": round(time.time(), 3), "event": event, **fields}
        self._events.write(json.dumps(line, allow_nan=False) + "\n")
        self._events.flush()

    def node_joined(self, name: str, facts: dict[str, Any]) -> None:
        """Record that node `name` takes part."""
        self._metrics["nodes"][name] = facts
        self.event("node_joined", node=name, **facts)

    def evaluated(self, round_: int, evaluation: dict[str, Any]) -> None:
        """Write `server_eval_round_<round_>.json`; that of round 0 becomes the run's baseline."""
        write_json(self.folder / f"server_eval_round_{round_}.json", {"round": round_, **evaluation})
        if round_ == 0:
            self._metrics["baseline"] = evaluation
        self.event("evaluated", round=round_, **evaluation)

    def round_finished(self, round_: dict[str, Any]) -> None:
        """Add a complete round; from here on it is on disk."""
        self._metrics["rounds"].append(round_)
        self._save()
        self.event("round_finished", **round_)

    def close(self, status: str, reason: str = "") -> None:
        """Save how the run ended: `finished`, or `failed` for `reason`."""
        self._metrics |= {"status": status, "reason": reason, "finished": _now()}
        self._save()

    def announce_end(self) -> None:
        """Append the last event, `run_finished` or `run_failed`: nothing is written after it."""
        self.event(f"run_{self._metrics['status']}", reason=self._metrics["reason"])
        self._events.close()

    def _save(self) -> None:
        write_json(self.folder / METRICS_FILE, self._metrics)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
