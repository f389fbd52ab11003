"""What a run leaves in `outputs/<run>/`, written as it happens.

config.json               every setting of the run
events.jsonl              one line an event, only ever appended to: progress displays and exporters follow it
privacy_ledger.jsonl      with privacy.mode, what was asked of which site, on disk before it was sent
federated_metrics.json    the whole run so far: nodes, rounds, clients, evaluations
server_eval_round_N.json  the evaluation after round N; 0 is before training
sim_eval_round_N.json     the closed-loop evaluation after round N, if there was one
deliveries.json           which site got the exported policy (server/run/deliveries.py)
server.log                the ServerApp's log
"""

import fcntl
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from federation.config import RunConfig, flatten
from federation.errors import ConfigError, FederationError
from federation.files import write_json
from federation.release_ledger import LEDGER_FILE
from server.run.accountant import check_ledger
from server.run.environment import describe_environment
from server.run.recorded import EVENTS_FILE, LOCK_FILE, METRICS_FILE, read_record, recorded_config
from server.run.round_record import (
    RoundRecord,
    held_out_losses,
    last_update_of,
    recorded_rounds,
    reverts_in_row,
    reverts_of,
    undone_rounds,
)

__all__ = ["RunRecord", "new_run_name"]

_LOCK_SECONDS = 90.0  # a ServerApp that lost SuperLink notices within 60 s
_READER_SECONDS = 2.0  # `is_being_written` holds the lock for a moment
_POLL_INTERVAL_SECONDS = 0.1
# What a continuation must share with the rounds before it; anything else may be changed for it.
# Privacy too: what was spent is computed from one noise for all rounds.
_FIXED = ("run.name", "run.seed", "policy.", "aggregation.strategy", "privacy.", "evaluation.ema_decay")


def new_run_name(prefix: str) -> str:
    """Return a folder name that sorts by time, e.g. `demo-20261123-184002`; of "my demo" `my-demo-...`."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in prefix.lstrip("."))
    return f"{plain}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


class RunRecord:
    """The folder of one run.

    A new run needs a new folder: a record is never written over. With `run.resume` the run that is there is
    continued; call `resume_after` next.

    Args:
        outputs: where runs are kept.
        flower_run: Flower's id of the run that writes this record; None: no run does, as in a rollback.

    Raises:
        FederationError: the folder exists, cannot be made or, to resume, is not there, still being written or
            without the ledger that counts its releases.
        ConfigError: a continuation would change what it must share with the rounds before it.
    """

    def __init__(self, outputs: Path, name: str, config: RunConfig, flower_run: str | None = None) -> None:
        self.name, self.folder, self._flower_run = name, outputs / name, flower_run
        self._continued: dict[str, Any] = {}  # the settings of a continuation
        self._changed: dict[str, Any] = {}  # those of them that it changes
        self._rounds: list[RoundRecord] = []
        if config.run.resume:
            self._reopen(config)
        else:
            self._create(config)

    def _create(self, config: RunConfig) -> None:
        if (self.folder / METRICS_FILE).exists():
            raise FederationError(f"{self.folder} exists: choose another run.name or move it away")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # a ServerApp may have died with nothing in it
        except OSError as error:
            raise FederationError(f"{self.folder}: {error.strerror}; check the owner of its folder") from None
        self._open(_READER_SECONDS)
        self._metrics: dict[str, Any] = {
            "run": self.name,
            "status": "running",
            "reason": "",
            "started": _now(),
            "finished": None,
            "config": flatten(config),
            "environment": describe_environment(),
            "nodes": {},
            "baseline": None,
            "resumed": [],
            "flower_runs": [self._flower_run] if self._flower_run else [],
        }
        write_json(self.folder / "config.json", self._metrics["config"])
        if config.privacy.mode != "none":
            (self.folder / LEDGER_FILE).touch()
        self._save()

    def _reopen(self, config: RunConfig) -> None:
        if not self.folder.is_dir():
            raise FederationError(f"{self.folder} does not exist: there is no such run to resume")
        # SuperLink gives a run up before its ServerApp knows: that one may still be writing.
        self._open(_LOCK_SECONDS)
        self._metrics = read_record(self.folder)
        self._rounds = recorded_rounds(self._metrics)
        old, new = flatten(recorded_config(self.folder)), flatten(config) | {"run.resume": False}
        self._changed = {key: new[key] for key in new if new[key] != old[key]}
        for key in self._changed:
            if key.startswith(_FIXED):
                raise ConfigError(
                    f"{key} = {new[key]!r}: the run began with {old[key]!r}; resume it with the same value"
                )
        check_ledger(config.privacy, self.folder)
        self._continued = new
        self._metrics |= {"status": "running", "reason": "", "finished": None}
        if self._flower_run:
            self._metrics.setdefault("flower_runs", []).append(self._flower_run)
            self._save()  # the nodes may be long in coming; who follows the run looks for it here
            self.event("run_reopened")  # and what watches it must not take it for failed

    def resume_after(self, round_: int | None, entry: RoundRecord | None) -> None:
        """Go on after `round_`, None for the very beginning: later rounds will be done again.

        Args:
            entry: of `round_`, from its checkpoint: the record may have been cut off before it.
        """
        after = 0 if round_ is None else round_
        again = [entry.round for entry in self._rounds if entry.round > after]
        self._rounds = [entry for entry in self._rounds if entry.round <= after]
        if entry is not None and entry.round not in [kept.round for kept in self._rounds]:
            self._rounds.append(entry)
        self._drop_simulations(lambda simulated: simulated > (-1 if round_ is None else round_))
        self._metrics["config"] = self._continued  # not before: the nodes may be long in coming
        self._metrics.setdefault("resumed", []).append(
            {"time": _now(), "after_round": after, "changed": sorted(self._changed)}
        )
        write_json(self.folder / "config.json", self._metrics["config"])
        self._save()
        self.event("run_resumed", after_round=after, rounds_done_again=again, changed=self._changed)

    def event(self, event: str, **fields: Any) -> None:
        """Append `{"time": unix seconds, "event": event, ...fields}` to the event file."""
        line = {"time": round(time.time(), 3), "event": event, **fields}
        self._events.write(json.dumps(line, allow_nan=False) + "\n")
        self._events.flush()

    def node_joined(self, name: str, facts: dict[str, Any]) -> None:
        """Record that node `name` takes part."""
        self._metrics["nodes"][name] = facts
        self.event("node_joined", node=name, **facts)

    def node_changed(self, name: str, facts: dict[str, Any]) -> None:
        """Record that other facts hold of node `name` than when it joined."""
        self._metrics["nodes"][name] = self._metrics["nodes"].get(name, {}) | facts
        self.event("node_changed", node=name, **facts)

    def evaluated(self, round_: int, evaluation: dict[str, Any]) -> None:
        """Write `server_eval_round_<round_>.json`; that of round 0 is the run's baseline, on disk too."""
        write_json(self.folder / f"server_eval_round_{round_}.json", {"round": round_, **evaluation})
        if round_ == 0:
            self._metrics["baseline"] = evaluation
            self._save()  # before checkpoint 0 is there: after it nobody evaluates it again
        self.event("evaluated", round=round_, **evaluation)

    def evaluated_anew(
        self, baseline: dict[str, Any], round_: int, evaluation: dict[str, Any], *, changed: str
    ) -> None:
        """Replace the figures of a resumed run, which `changed` makes say nothing of those that come.

        The weights before training and those of `round_`, the best, have been evaluated again. The other
        rounds lose their evaluations; the events keep them.
        """
        dropped = [entry.round for entry in self._rounds if entry.evaluation]
        for entry in self._rounds:
            entry.evaluation = evaluation if entry.round == round_ else None
        self._metrics["resumed"][-1]["evaluated_anew"] = changed
        self.event("evaluations_dropped", rounds=[0, *dropped], reason=changed)
        self.evaluated(0, baseline)
        if round_:
            self.evaluated(round_, evaluation)

    def is_simulated(self, round_: int) -> bool:
        """Return whether the record has the closed-loop evaluation after `round_`."""
        return any(entry["round"] == round_ for entry in self._metrics.get("simulated", []))

    def simulated(self, round_: int, result: dict[str, Any]) -> None:
        """Write `sim_eval_round_<round_>.json`; its figures without the episodes go into the record."""
        write_json(self.folder / f"sim_eval_round_{round_}.json", {"round": round_, **result})
        kept = ("success_rate", "interval", "mean_return", "episodes", "expert_success_rate")
        figures = {"round": round_, **{key: result[key] for key in kept}}
        others = [entry for entry in self._metrics.get("simulated", []) if entry["round"] != round_]
        self._metrics["simulated"] = sorted([*others, figures], key=lambda entry: entry["round"])
        self._drop_simulations(self._is_gone)
        self._save()
        self.event("simulated", **figures)

    def round_finished(self, round_: RoundRecord) -> None:
        """Add a complete round; from here on its record is on disk; its checkpoint is, where one was due."""
        self._rounds.append(round_)
        self._drop_simulations(self._is_gone)
        self._save()
        self.event("round_finished", **round_.to_json())

    def last_update_of(self, node: str) -> str:
        """Return what became of the last update of `node`, in words for its owner."""
        return last_update_of(self._rounds, node)

    def roll_back(self, round_: int) -> None:
        """Drop what came after `round_` and leave the run to be resumed; the events keep all of it."""
        later = [entry.round for entry in self._rounds if entry.round > round_]
        lost = range(round_ + 1, max(later, default=round_) + 2)  # and the one that it was in
        self._metrics["rolled_back"] = sorted({*self._metrics.get("rolled_back", []), *lost})
        self._rounds = [entry for entry in self._rounds if entry.round <= round_]
        self._drop_simulations(lambda simulated: simulated > round_)
        self.event("rolled_back", to_round=round_, rounds_dropped=later)
        self.close("failed", f"rolled back to round {round_} by the operator: resume it")

    @property
    def rounds(self) -> Sequence[RoundRecord]:
        """Return the complete rounds, in their order."""
        return self._rounds

    @property
    def entry_behind(self) -> RoundRecord | None:
        """Return the round that today's weights come from; None: they are those before training."""
        entries = {entry.round: entry for entry in self._rounds}
        entry = entries.get(max(entries, default=0))
        while entry is not None and entry.reverted_to is not None:
            entry = entries.get(entry.reverted_to)
        return entry

    @property
    def held_out_losses(self) -> list[float]:
        """Return the policy losses of all evaluations that are comparable with today's, in their order."""
        return held_out_losses(self._metrics["baseline"], self._rounds)

    @property
    def reverts_in_row(self) -> int:
        """Return how many evaluations in a row took the weights back since settings or measure changed."""
        resumed = self._metrics.get("resumed", [])
        changed = [r["after_round"] for r in resumed if r.get("changed") or r.get("evaluated_anew")]
        return reverts_in_row(self._rounds, max(changed, default=0))

    def _is_gone(self, round_: int) -> bool:
        """Whether nothing of the weights after `round_` is in today's. After a revert they are the best's."""
        return any(best < round_ < spike for best, spike in reverts_of(self._rounds))

    def _drop_simulations(self, is_gone: Callable[[int], bool]) -> None:
        if "simulated" in self._metrics:
            self._metrics["simulated"] = [s for s in self._metrics["simulated"] if not is_gone(s["round"])]

    def undone_rounds(self, node: str) -> list[int]:
        """Return the rounds that `node` may have trained and of which nothing is in today's weights."""
        return undone_rounds(self._rounds, self._metrics.get("rolled_back", []), node)

    def close(self, status: str, reason: str = "") -> None:
        """Save how the run ended: `finished`, early for `reason` if there is one, or `failed` for it."""
        self._metrics |= {"status": status, "reason": reason, "finished": _now()}
        self._save()

    def write_final_event(self) -> None:
        """Append the last event, `run_finished` or `run_failed`: nothing is written after it."""
        self.event(f"run_{self._metrics['status']}", reason=self._metrics["reason"])
        self._events.close()

    def _open(self, wait_seconds: float) -> None:
        """Take the record for this process alone, and open its events behind the last whole line."""
        self._lock: IO[str] = (self.folder / LOCK_FILE).open("a")
        give_up_at = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it when we end
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise FederationError(
                        f"{self.folder} is being written by another ServerApp: stop that run first"
                    ) from None
                time.sleep(_POLL_INTERVAL_SECONDS)
        path = self.folder / EVENTS_FILE
        path.touch()
        with path.open("rb+") as events:
            events.truncate(events.read().rfind(b"\n") + 1)
        self._events = path.open("a", encoding="utf-8")

    def _save(self) -> None:
        rounds = [entry.to_json() for entry in self._rounds]
        write_json(self.folder / METRICS_FILE, self._metrics | {"rounds": rounds})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
