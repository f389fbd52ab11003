"""A run's events folded into totals, one event at a time: memory grows with nodes, never with rounds.

`RunFollower` reads `events.jsonl` from where it stopped the last time. The file is only ever appended to, so
reading it again from the start, as a restarted exporter does, gives the same totals.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.config import RunConfig, flatten
from federation.errors import RejectionCode
from federation.logs import get_logger
from server.run.phases import PHASES, round_phases
from server.run.recorded import EVENTS_FILE, parse_event
from server.run.round_record import RoundRecord

__all__ = ["NodeTotals", "RunFollower", "RunTotals"]

_log = get_logger("server.monitoring.totals")


@dataclass
class NodeTotals:
    """What is known of one node: sums over the run, and `newest`, the metrics of its newest update."""

    facts: dict[str, Any]
    newest: dict[str, float] = field(default_factory=dict)
    round: int = 0
    updates: int = 0
    examples: int = 0
    skipped_frames: int = 0
    bytes: dict[str, int] = field(default_factory=lambda: {"down": 0, "up": 0})
    timed_out_replies: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: {code.label: 0 for code in RejectionCode})
    absent_rounds: int = 0
    suspended: bool = False
    until_round: int = 0  # in which it is tried again, if it is suspended
    last_seen: float = 0.0

    @property
    def id(self) -> str:
        """Return Flower's id of it, under which a denied join is recorded."""
        return str(self.facts.get("node_id", ""))


@dataclass
class RunTotals:
    """The state of a run after the events folded in so far. Times are Unix seconds."""

    config: dict[str, Any]
    status: str = "running"
    started: float = 0.0
    last_event: float = 0.0
    round_started: float = 0.0
    round_in_progress: int = 0
    waits_for_replies: bool = False  # of the round under way; else it is aggregated, evaluated and saved
    waiting_for: int = 0  # nodes that must still join before the run goes on, as last reported
    sampled: int = 0
    round: int = 0  # the newest complete one
    rounds: int = 0  # how many were completed, those done again included
    rounds_aggregated: int = 0
    joins_denied: int = 0
    # Flower's ids of nodes that may not join -> the names that their keys are registered under, if any
    denied_names: dict[str, str] = field(default_factory=dict)
    evaluations: int = 0
    reverts: int = 0  # rounds after which the weights went back to the best round
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    baseline: float | None = None
    best: float | None = None
    evaluation: dict[str, Any] | None = None
    newest: RoundRecord | None = None  # complete round
    nodes: dict[str, NodeTotals] = field(default_factory=dict)

    def fold(self, event: dict[str, Any]) -> None:
        """Take one event of `events.jsonl` in; events of unknown names change nothing but `last_event`."""
        self.last_event = event["time"]
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    @property
    def denied(self) -> int:
        """Return the nodes that were denied or suspended and have not joined again; one may be both."""
        suspended = {node.id or name for name, node in self.nodes.items() if node.suspended}
        return len(self.denied_names.keys() | suspended)

    def _on_run_started(self, event: dict[str, Any]) -> None:
        self.started, self.status, self.round_in_progress = event["time"], "running", 0

    def _on_run_reopened(self, event: dict[str, Any]) -> None:
        # A new ServerApp goes on with it, and asks every node anew before it does.
        self.started, self.status, self.round_in_progress = event["time"], "running", 0
        self.denied_names.clear()
        for node in self.nodes.values():
            node.suspended, node.until_round = False, 0

    def _on_run_resumed(self, event: dict[str, Any]) -> None:
        self.started, self.status, self.round_in_progress = event["time"], "running", 0
        self.waiting_for = 0
        self.round = event["after_round"]

    def _on_waiting_for_nodes(self, event: dict[str, Any]) -> None:
        self.waiting_for = event["min_nodes"] - event["joined"]

    def _on_waiting_ended(self, _: dict[str, Any]) -> None:
        self.waiting_for = 0

    def _on_rolled_back(self, event: dict[str, Any]) -> None:
        self.status, self.round_in_progress, self.round = "failed", 0, event["to_round"]

    def _on_run_finished(self, _: dict[str, Any]) -> None:
        self.status, self.round_in_progress = "finished", 0

    def _on_run_failed(self, _: dict[str, Any]) -> None:
        self.status, self.round_in_progress, self.waiting_for = "failed", 0, 0

    def _on_node_joined(self, event: dict[str, Any]) -> None:
        _ = event["episodes"], event["frames"]  # a line without them is none: it raises KeyError
        node = self.nodes.setdefault(event["node"], NodeTotals(event))
        node.facts, node.last_seen, node.absent_rounds = event, event["time"], 0
        node.suspended, node.until_round = False, 0
        # It may have come back under a new key, whose id is another.
        denied = self.denied_names.items()
        self.denied_names = {id_: name for id_, name in denied if id_ != node.id and name != event["node"]}

    def _on_node_changed(self, event: dict[str, Any]) -> None:
        if node := self.nodes.get(event["node"]):
            node.facts = node.facts | {key: event[key] for key in ("episodes", "frames")}

    def _on_join_denied(self, event: dict[str, Any]) -> None:
        self.denied_names[event["node_id"]] = event.get("node", "")
        self.joins_denied += 1

    def _on_node_suspended(self, event: dict[str, Any]) -> None:
        if node := self.nodes.get(event["node"]):
            node.suspended, node.until_round = True, event.get("until_round", 0)

    def _on_round_started(self, event: dict[str, Any]) -> None:
        self.round_started, self.round_in_progress = event["time"], event["round"]
        self.sampled, self.waits_for_replies = len(event["nodes"]), True

    def _on_replies_collected(self, _: dict[str, Any]) -> None:
        self.waits_for_replies = False

    def _on_update_received(self, event: dict[str, Any]) -> None:
        if node := self.nodes.get(event["node"]):
            node.last_seen = event["time"]

    def _on_reply_timed_out(self, event: dict[str, Any]) -> None:
        if node := self.nodes.get(event["node"]):
            node.timed_out_replies += 1

    def _on_update_rejected(self, event: dict[str, Any]) -> None:
        if node := self.nodes.get(event["node"]):
            node.rejected[event["code"]] += 1

    def _on_evaluations_dropped(self, _: dict[str, Any]) -> None:
        self.evaluation = self.baseline = self.best = None  # measured on something else; new ones follow

    def _on_evaluated(self, event: dict[str, Any]) -> None:
        self.evaluation = event
        self.evaluations += 1
        loss = event["policy_loss"]
        if event["round"] == 0:
            self.baseline = loss
        if self.best is None or loss < self.best:
            self.best = loss

    def _on_round_finished(self, event: dict[str, Any]) -> None:
        entry = RoundRecord.from_json(event)
        self.newest, self.round, self.round_in_progress = entry, entry.round, 0
        self.rounds += 1
        self.rounds_aggregated += bool(entry.aggregated)
        self.reverts += entry.reverted_to is not None
        for phase, seconds in round_phases(entry).items():
            self.phase_seconds[phase] += seconds
        everyone_is_asked = self.config.get("federation.fraction_fit", 1.0) == 1.0
        for name, node in self.nodes.items():
            if name in entry.clients:
                self._add_update(node, entry.clients[name], entry.round)
            answered = name in entry.clients or name in entry.rejected
            if answered:
                node.absent_rounds = 0
            elif name in entry.missing or everyone_is_asked:
                node.absent_rounds += 1

    def _add_update(self, node: NodeTotals, metrics: dict[str, float], round_: int) -> None:
        node.newest, node.round = metrics, round_
        node.updates += 1
        node.examples += int(metrics["num_examples"])
        node.skipped_frames += int(metrics["skipped_frames"])
        node.bytes["down"] += int(metrics.get("download_bytes", 0))
        node.bytes["up"] += int(metrics.get("update_bytes", 0))


class RunFollower:
    """Keeps the totals of the run in `folder` up to date.

    Raises:
        OSError, ValueError: the run's `config.json` cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events = folder / EVENTS_FILE
        self._inode, self._position = self._events.stat().st_ino, 0
        self.totals = RunTotals(self._config())

    def is_current(self) -> bool:
        """Return whether the followed file is still there: a moved one may have a successor of its name."""
        file = self._events.stat()
        return file.st_ino == self._inode and file.st_size >= self._position

    def catch_up(self) -> RunTotals:
        """Fold in what was appended since the last call.

        Raises:
            OSError: the event file cannot be read.
        """
        for line in self._new_lines():
            try:
                event = parse_event(line)
                self.totals.fold(event)
                if event["event"] == "run_resumed":  # it may have other settings
                    self.totals.config = self._config()
            except (ValueError, KeyError, TypeError) as error:
                # A server killed while it wrote leaves half a line; what a resumed one writes is whole again.
                _log.warning("%s: a line is skipped (%r)", self._events, error)
        return self.totals

    def _config(self) -> dict[str, Any]:
        """Return the run's configuration; a key that an older release did not know yet has its default."""
        recorded = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return flatten(RunConfig()) | dict(recorded)

    def _new_lines(self) -> Iterator[bytes]:
        with self._events.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._position += len(line)
                yield line
