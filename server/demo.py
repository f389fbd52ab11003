"""`make demo`: a whole federated run on this machine, and a display of it.

    python -m server.demo --config configs/demo.toml --data data/sample
    python -m server.demo --resume demo-20261123-184002

Starts SuperLink, SuperExec and a SuperNode for each `site-*` dataset in `--data` over TLS, submits the run,
follows its events, and ends with a table and the report. Whatever is wrong is said before anything starts.
A run that is resumed goes on with the configuration and the data it had, which `outputs/<run>/demo.json`
names, unless `--config` or `--data` is given.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from federation.config import RunConfig, load_run_config
from federation.dataset_description import check_fits, describe_dataset, find_datasets
from federation.errors import DatasetError, FederationError
from federation.files import write_json
from federation.simulated import check_one_kind
from server.cluster import LocalCluster
from server.control import run_status, submit_run
from server.records import EVENTS_FILE, new_run_name, read_metrics
from server.supervisor import config_to_resume

__all__ = ["main", "run_demo"]

_DEMO_FILE = "demo.json"  # in the run's folder, beside what the ServerApp records there
_DEFAULT_CONFIG = Path("configs/demo.toml")
_DEFAULT_DATA = Path("data/sample")
_MOST_ROWS = 30  # of the table at the end
_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_BETWEEN_STATUS_CHECKS = 30.0  # each starts a process, 1.5 s of a core


def main() -> int:
    """Run the demo; exit code 0 if the run finished, 1 if it failed, 2 for bad input, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run a whole federation on this machine.")
    parser.add_argument("--config", type=Path, help=f"{_DEFAULT_CONFIG}, or that of the run to resume")
    parser.add_argument(
        "--data",
        type=Path,
        help=f"site-* and holdout datasets; {_DEFAULT_DATA}, or those of the run to resume",
    )
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--certs", type=Path, default=Path("certs/generated"))
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as cleanly as on Ctrl-C
    console = Console()
    data = arguments.data
    try:
        if arguments.resume:
            folder = arguments.outputs / arguments.resume
            config = config_to_resume(folder, arguments.config)
            data = data or _data_of(folder)
        else:
            file = arguments.config or _DEFAULT_CONFIG
            config = load_run_config(file, {"run.name": new_run_name(file.stem)})
        data = data or _DEFAULT_DATA
        return run_demo(config, data, arguments.outputs, arguments.certs, arguments.port, console)
    except FederationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing is left running", file=sys.stderr)
        return 130


def run_demo(config: RunConfig, data: Path, outputs: Path, certs: Path, port: int, console: Console) -> int:
    """Run `config` on local processes and show it; return 0 if it finished, 1 if it failed.

    Raises:
        FederationError: something is wrong with the input, a certificate or the port. Nothing was started.
    """
    sites, evaluation = _check_data(config, data)
    started = time.monotonic()
    folder = outputs / config.run.name
    cluster = LocalCluster(sites, evaluation, outputs, certs, port, scratch=outputs / ".scratch")
    try:
        with cluster:
            console.print(
                f"SuperLink on https://127.0.0.1:{port} (TLS, SuperNode keys), {len(sites)} SuperNodes"
            )
            with _logs_kept(cluster, folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / _DEMO_FILE, {"data": str(data.absolute())})
                run_id = submit_run(cluster.flwr_home, config)
                console.print(f"run [bold]{config.run.name}[/] submitted")
                failure = _show(cluster, run_id, folder, sites, config, console, started)
    finally:
        console.show_cursor(True)
    if failure:
        console.print(
            f"[red]the run failed: {escape(failure)}[/]\nlogs: {folder / 'logs'}\n"
            f"go on after its last complete round: make resume RUN={config.run.name}",
            soft_wrap=True,
        )
        return 1
    _print_summary(folder, console)
    return 0


def _data_of(folder: Path) -> Path | None:
    """The data that the run in `folder` had the last time; None if an older release ran it, or no demo."""
    try:
        return Path(json.loads((folder / _DEMO_FILE).read_text(encoding="utf-8"))["data"])
    except FileNotFoundError:
        return None


def _check_data(config: RunConfig, data: Path) -> tuple[dict[str, Path], Path]:
    """The training sites and the evaluation folder in `data`, each checked."""
    try:
        found = find_datasets(data)
    except DatasetError as error:
        raise DatasetError(f"{error}; make sample-data records the demo's") from None
    sites = {name: root for name, root in found.items() if name.startswith("site-")}
    if not sites or "holdout" not in found:
        raise DatasetError(f"{data}: needs datasets site-* and holdout; make sample-data records them")
    simulated: dict[str, bool] = {}
    for name, root in (sites | {"holdout": found["holdout"]}).items():
        description = describe_dataset(root)
        check_fits(description, config.policy, str(root))
        simulated[name] = description.simulated
    check_one_kind(simulated, {"holdout": simulated.pop("holdout")})
    return sites, found["holdout"]


@contextmanager
def _logs_kept(cluster: LocalCluster, folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.copytree(cluster.logs, folder / "logs", dirs_exist_ok=True)


def _show(
    cluster: LocalCluster,
    run_id: str,
    folder: Path,
    sites: dict[str, Path],
    config: RunConfig,
    console: Console,
    started: float,
) -> str:
    """Follow the run to its end; return why it failed, or an empty string."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        rounds = progress.add_task("round", total=config.run.num_rounds, note="waiting for nodes")
        # Those of the run so far, if this goes on with one; a torn line at their end is going to be cut off.
        position = (folder / EVENTS_FILE).read_bytes().rfind(b"\n") + 1 if config.run.resume else 0
        steps = {site: progress.add_task(site, total=config.training.local_steps, note="") for site in sites}
        baseline = (read_metrics(folder)["baseline"] or {}).get("policy_loss") if config.run.resume else None
        for event in _follow(folder / EVENTS_FILE, position, cluster, run_id):
            kind = event["event"] if event else "tick"
            if kind == "tick":
                for site, task in steps.items():
                    _show_local_progress(cluster.progress_file(site), progress, task)
            elif kind == "node_joined":
                console.print(
                    f"{event['node']} joined: {event['episodes']} episodes, {event['frames']} frames"
                )
            elif kind == "node_refused":
                console.print(f"[red]a node was refused: {escape(event['reason'])}[/]", soft_wrap=True)
            elif kind == "waiting_for_nodes":
                console.print(f"[yellow]{event['joined']} of {event['min_nodes']} nodes have joined[/]")
            elif kind == "run_resumed":
                console.print(f"goes on after round {event['after_round']}")
                progress.update(rounds, completed=event["after_round"])
            elif kind == "node_left_out":
                console.print(
                    f"[red]{event['node']} is suspended until round {event['until_round']}: "
                    f"{escape(event['reason'])}[/]",
                    soft_wrap=True,
                )
            elif kind == "round_started":
                if event["round"] == 1:
                    console.print(f"first round begins after {time.monotonic() - started:.0f} s")
                progress.update(rounds, note=f"round {event['round']} training")
            elif kind == "update_received":
                progress.update(rounds, note=f"update of {event['node']}")
            elif kind in ("update_refused", "update_missing"):
                where = f"round {event['round']}: {event['node']}"
                console.print(f"[yellow]{where}: {escape(event['reason'])}[/]", soft_wrap=True)
            elif kind == "evaluated":
                baseline = event["policy_loss"] if event["round"] == 0 or not baseline else baseline
                change = 100 * (event["policy_loss"] / baseline - 1)
                console.print(
                    f"round {event['round']}: held-out policy loss [bold]{event['policy_loss']:.4f}[/] "
                    f"({change:+.1f} %), action MSE {event['action_mse']:.1f}"
                )
            elif kind == "round_finished":
                progress.update(rounds, completed=event["round"], note="")
            elif kind == "run_finished":
                return ""
            elif kind == "run_failed":
                return str(event["reason"])
    raise AssertionError("the events of a run end with its end")


def _show_local_progress(file: Path, progress: Progress, task: Any) -> None:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    progress.update(
        task,
        completed=state["step"],
        total=state["local_steps"],  # with training.local_epochs the site's own
        note=f"round {state['round']}, policy loss {state['policy_loss']:.3f}",
    )


def _follow(events: Path, position: int, cluster: LocalCluster, run_id: str) -> Iterator[dict[str, Any]]:
    """Yield the run's events as they are written, and `{}` whenever there is nothing new.

    Args:
        position: byte in the file of events to begin at.
    """
    check_at = time.monotonic() + _SECONDS_BETWEEN_STATUS_CHECKS
    while True:
        lines: list[str] = []
        if events.exists():
            with events.open(encoding="utf-8") as file:
                file.seek(position)
                lines = [line for line in file if line.endswith("\n")]
            position += sum(len(line.encode()) for line in lines)
        yield from (json.loads(line) for line in lines)
        if lines:
            continue
        yield {}
        cluster.check_processes()
        if time.monotonic() > check_at:
            check_at = time.monotonic() + _SECONDS_BETWEEN_STATUS_CHECKS
            status = run_status(cluster.flwr_home, run_id)
            if status.startswith("finished"):
                # Its last events may have come since we looked; without them it died before it could say.
                if events.exists() and events.stat().st_size > position:
                    continue
                yield {"event": "run_failed", "reason": f"the ServerApp ended as {status}"}
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _print_summary(folder: Path, console: Console) -> None:
    metrics = read_metrics(folder)
    table = Table(title=f"{metrics['run']}: policy loss by round")
    nodes = sorted(metrics["nodes"])
    for column in ("round", "held-out", "action MSE", *(f"{name} (training)" for name in nodes)):
        table.add_column(column, justify="right")
    baseline = metrics["baseline"]
    table.add_row("0", f"{baseline['policy_loss']:.4f}", f"{baseline['action_mse']:.1f}")
    rounds = metrics["rounds"]
    if len(rounds) > _MOST_ROWS:  # the report has them all
        rounds = [entry for entry in rounds if "evaluation" in entry]
    for entry in rounds:
        evaluation, clients = entry.get("evaluation"), entry["clients"]
        undone = " undone" if "rolled_back_to" in entry else ""
        table.add_row(
            str(entry["round"]),
            f"{evaluation['policy_loss']:.4f}{undone}" if evaluation else undone,
            f"{evaluation['action_mse']:.1f}" if evaluation else "",
            *(f"{clients[n]['policy_loss']:.4f}" if n in clients else "missing" for n in nodes),
        )
    console.print(table)
    for simulated in metrics.get("simulated", []):
        low, high = simulated["interval"]
        console.print(
            f"round {simulated['round']}: {simulated['success_rate']:.0%} of {simulated['episodes']} "
            f"simulated episodes succeed (95 % interval {low:.0%} to {high:.0%})"
        )
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
