"""What `make demo` shows: a line an event and bars while a run goes on, a table at its end.

`server/deploy/demo.py` calls it with the events of a run. Everything stays whole in a terminal of 80 columns,
with two sites or with fifty: where a bar or a column for each site has no room, one stands for all of them.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from server.run.recorded import read_metrics
from server.run.round_record import RoundRecord, recorded_rounds

__all__ = ["RunDisplay", "print_summary"]

_MAX_BARS = 8  # of sites; with more, one bar for all
_MAX_ROWS = 30  # of the table at the end
_NAME_CHARACTERS, _BAR_CHARACTERS = 12, 12  # beside the rest of a line they leave room for the loss


class RunDisplay:
    """The bars of a run, and the lines above them; use it as a context manager.

    Args:
        sites: names of the sites.
        progress_file: where a site's ClientApp writes how far it is.
        num_rounds: of the run.
        local_steps: of a site in a round, until it names its own number.
        baseline: policy loss before training, if the run goes on with one that has it.
        started: `time.monotonic()` when the command began.
    """

    def __init__(
        self,
        console: Console,
        sites: Sequence[str],
        progress_file: Callable[[str], Path],
        num_rounds: int,
        local_steps: int,
        baseline: float | None,
        started: float,
    ) -> None:
        self._console, self._baseline, self._started = console, baseline, started
        self._files = {site: progress_file(site) for site in sites}
        name = Column(no_wrap=True, overflow="ellipsis", max_width=_NAME_CHARACTERS, justify="right")
        self._progress = Progress(
            TextColumn("{task.description}", table_column=name, markup=False),
            BarColumn(bar_width=_BAR_CHARACTERS),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            TimeElapsedColumn(),
            console=console,
        )
        self._rounds = self._progress.add_task("round", total=num_rounds, note="waiting for nodes")
        bars = sites if len(sites) <= _MAX_BARS else ["all sites"]
        total = local_steps * max(1, len(sites) // len(bars)) if bars else 0
        self._bars = [self._progress.add_task(name, total=total, note="") for name in bars]
        self._local_steps = local_steps

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show_progress(self) -> None:
        """Move the bars of the sites to where their ClientApps are."""
        states = [_read_state(file) for file in self._files.values()]
        if len(self._bars) == len(states):
            for bar, state in zip(self._bars, states, strict=True):
                if state:
                    self._move(bar, [state], state["local_steps"], "")
            return
        training = [state for state in states if state]
        if training:
            newest = max(state["round"] for state in training)
            current = [state for state in training if state["round"] == newest]
            unknown = (len(states) - len(current)) * self._local_steps
            total = sum(state["local_steps"] for state in current) + unknown
            self._move(self._bars[0], current, total, "mean ")

    def _move(self, bar: TaskID, states: Sequence[Mapping[str, Any]], total: int, which: str) -> None:
        loss = mean(state["policy_loss"] for state in states)
        note = f"round {states[0]['round']}, {which}policy loss {loss:.3f}"
        self._progress.update(bar, completed=sum(state["step"] for state in states), total=total, note=note)

    def show_event(self, event: Mapping[str, Any]) -> None:
        """Print the line of an event, if it has one, and move the bar of the rounds."""
        if event["event"] == "evaluated":
            self._show_evaluation(event)
        elif event["event"] == "round_started" and event["round"] == 1:
            self._print(f"first round begins after {time.monotonic() - self._started:.0f} s")
        elif line := _line(event):
            self._print(line)
        match event["event"]:
            case "round_started":
                self._progress.update(self._rounds, note=f"round {event['round']} training")
            case "update_received":
                self._progress.update(self._rounds, note=f"update of {event['node']}")
            case "run_resumed":
                self._progress.update(self._rounds, completed=event["after_round"])
            case "round_finished":
                self._progress.update(self._rounds, completed=event["round"], note="")

    def _show_evaluation(self, event: Mapping[str, Any]) -> None:
        loss = event["policy_loss"]
        if event["round"] == 0 or not self._baseline:
            self._baseline = loss
        self._print(
            f"round {event['round']}: held-out policy loss [bold]{loss:.4f}[/] "
            f"({100 * (loss / self._baseline - 1):+.1f} %), action MSE {event['action_mse']:.1f}"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


def _line(event: Mapping[str, Any]) -> str:
    """Return an event as one line of rich's markup; empty if it moves a bar only."""
    match event["event"]:
        case "node_joined":
            return f"{event['node']} joined: {event['episodes']} episodes, {event['frames']} frames"
        case "join_denied":
            return f"[red]a join was denied: {escape(event['reason'])}[/]"
        case "node_suspended":
            until = event["until_round"]
            return f"[red]{event['node']} is suspended until round {until}: {escape(event['reason'])}[/]"
        case "waiting_for_nodes":
            return f"[yellow]{event['joined']} of {event['min_nodes']} nodes have joined[/]"
        case "update_rejected" | "reply_timed_out":
            where = f"round {event['round']}: {event['node']}"
            return f"[yellow]{where}: {escape(event['reason'])}[/]"
        case "run_resumed":
            return f"goes on after round {event['after_round']}"
    return ""


def _read_state(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def print_summary(folder: Path, console: Console) -> None:
    """Print the table of the rounds, what the simulated arm did, and where the report is."""
    metrics = read_metrics(folder)
    rounds = recorded_rounds(metrics)
    if len(rounds) > _MAX_ROWS:  # the report has them all
        rounds = [entry for entry in rounds if entry.evaluation]
    nodes = sorted(metrics["nodes"])
    start = _evaluation_cells(RoundRecord(0, evaluation=metrics["baseline"]))
    rows = [start, *([*_evaluation_cells(entry), *_site_cells(entry, nodes)] for entry in rounds)]
    table = _table(metrics["run"], [f"{name}\n(training)" for name in nodes], rows)
    if not _fits(table, console):
        rows = [start, *([*_evaluation_cells(entry), *_summary_cells(entry, len(nodes))] for entry in rounds)]
        table = _table(metrics["run"], ["training\nmean", "\nbest", "\nworst", "\nsites"], rows)
    console.print(table)
    for simulated in metrics.get("simulated", []):
        low, high = simulated["interval"]
        console.print(
            f"round {simulated['round']}: {simulated['success_rate']:.0%} of {simulated['episodes']} "
            f"simulated episodes succeed (95 % interval {low:.0%} to {high:.0%})",
            soft_wrap=True,
        )
    if metrics["status"] == "finished" and metrics["reason"]:
        console.print(f"the run ended early: {metrics['reason']}", soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def _table(run: str, training: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=f"{run}: policy loss by round")
    for column in ("round", "held-out", "action MSE", *training):
        # The held-out loss is what the table is for: where the terminal is narrower still, others are cut.
        width = max(len(row[1]) for row in rows) if column == "held-out" else None
        table.add_column(column, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*row)
    return table


def _fits(table: Table, console: Console) -> bool:
    wanted = console.measure(table, options=console.options.update(width=10_000)).maximum
    return wanted <= console.width


def _evaluation_cells(entry: RoundRecord) -> list[str]:
    evaluation = entry.evaluation
    reverted = "" if entry.reverted_to is None else " reverted"
    if not evaluation:
        return [str(entry.round), reverted, ""]
    return [
        str(entry.round),
        f"{evaluation['policy_loss']:.4f}{reverted}",
        f"{evaluation['action_mse']:.1f}",
    ]


def _site_cells(entry: RoundRecord, nodes: Sequence[str]) -> list[str]:
    clients = entry.clients
    return [f"{clients[name]['policy_loss']:.4f}" if name in clients else "missing" for name in nodes]


def _summary_cells(entry: RoundRecord, nodes: int) -> list[str]:
    """Mean, best and worst loss of the sites, and how many took part; a round without any has no losses."""
    losses = [client["policy_loss"] for client in entry.clients.values()]
    figures = [f"{loss:.4f}" for loss in (mean(losses), min(losses), max(losses))] if losses else [""] * 3
    return [*figures, f"{len(losses)} of {nodes}"]
