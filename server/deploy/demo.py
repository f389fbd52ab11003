"""`so100-server demo` and `resume`: a whole federated run on this machine, shown by `demo_display.py`.

Starts SuperLink, SuperExec and a SuperNode for each `site-*` dataset over TLS, submits the run, follows its
events, and ends with a table and the report. Whatever is wrong is reported before anything starts. A run that
is resumed goes on with the configuration and the data it had, which `outputs/<run>/demo.json` names, unless
others are given.
"""

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from certs.issue import CertificateError, add_site, verify_server_certificate
from federation.config import RunConfig, load_run_config
from federation.data.description import DatasetDescription, find_datasets
from federation.data.simulated import check_one_kind
from federation.errors import DatasetError
from federation.files import write_json
from federation.judgement.judge import DatasetUse, describe_fitting, judge_datasets
from federation.proxies import check_proxies
from server.deploy.demo_display import RunDisplay, print_summary
from server.deploy.local_cluster import LocalCluster, require_free_port
from server.run.base import locate_base
from server.run.recorded import EVENTS_FILE, config_to_resume, read_metrics
from server.run.records import new_run_name
from server.superlink.control import run_status, submit_run

__all__ = ["resume_demo", "run_demo", "start_demo"]

_DEMO_FILE = "demo.json"  # in the run's folder, beside what the ServerApp records there
_DEFAULT_DATA = Path("data/sample")
_POLL_INTERVAL_SECONDS = 0.25
_STATUS_INTERVAL_SECONDS = 5.0


def start_demo(file: Path, data: Path, outputs: Path, certs: Path, port: int) -> int:
    """Begin the run that the configuration `file` describes; the rest as `run_demo`, 130 after Ctrl-C."""
    config = load_run_config(file, {"run.name": new_run_name(file.stem)})
    return _run_until_stopped(config, data, outputs, certs, port)


def resume_demo(run: str, file: Path | None, data: Path | None, outputs: Path, certs: Path, port: int) -> int:
    """Go on with `run`, with the configuration and the data that it had (None); the rest as `start_demo`."""
    folder = outputs / run
    config = config_to_resume(folder, file)
    return _run_until_stopped(config, data or _data_of(folder) or _DEFAULT_DATA, outputs, certs, port)


def _run_until_stopped(config: RunConfig, data: Path, outputs: Path, certs: Path, port: int) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as cleanly as on Ctrl-C
    try:
        return run_demo(config, data, outputs, certs, port, Console())
    except KeyboardInterrupt:
        print("stopped; nothing is left running", file=sys.stderr)
        return 130


def run_demo(config: RunConfig, data: Path, outputs: Path, certs: Path, port: int, console: Console) -> int:
    """Run `config` on local processes and show it; return 0 if it finished, 1 if it failed.

    Raises:
        FederationError: something is wrong with the input, a certificate or the port. Nothing was started.
    """
    check_proxies()
    local = locate_base(config, outputs)
    sites, evaluation, descriptions = _check_data(local, data)
    _issue_missing_keys(certs, sites)
    verify_server_certificate(certs)
    require_free_port(port)
    scratch = outputs / ".scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    scratch.chmod(0o700)  # decoded frames and tables of the sites' recordings
    with console.status("looking at samples of the datasets; half a minute the first time"):
        warnings = _check_samples(local, {**sites, "server": evaluation}, descriptions, scratch)
    for warning in warnings:
        console.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)
    started = time.monotonic()
    folder = outputs / config.run.name
    cluster = LocalCluster(sites, evaluation, outputs, certs, port, scratch)
    try:
        with cluster:
            console.print(
                f"SuperLink on https://127.0.0.1:{port} (TLS, SuperNode keys), {len(sites)} SuperNodes"
            )
            with _logs_kept(cluster, folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / _DEMO_FILE, {"data": str(data.absolute())})
                run_id = submit_run(cluster.superlink, config)
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
    print_summary(folder, console)
    return 0


def _data_of(folder: Path) -> Path | None:
    """Return the data that the run in `folder` had last; None if an older release or no demo ran it."""
    try:
        return Path(json.loads((folder / _DEMO_FILE).read_text(encoding="utf-8"))["data"])
    except FileNotFoundError:
        return None


def _check_data(config: RunConfig, data: Path) -> tuple[dict[str, Path], Path, list[DatasetDescription]]:
    """Return the training sites and the hold-out in `data`, and a description of each, in that order."""
    try:
        found = find_datasets(data)
    except DatasetError as error:
        raise DatasetError(f"{error}; make sample-data records the demo's") from None
    sites = {name: root for name, root in found.items() if name.startswith("site-")}
    if not sites or "holdout" not in found:
        raise DatasetError(f"{data}: needs datasets site-* and holdout; make sample-data records them")
    described = {name: describe_fitting(found[name], config.policy) for name in [*sites, "holdout"]}
    simulated = {name: description.simulated for name, description in described.items()}
    check_one_kind(simulated, {"holdout": simulated.pop("holdout")})
    return sites, found["holdout"], list(described.values())


def _check_samples(
    config: RunConfig, folders: dict[str, Path], descriptions: list[DatasetDescription], scratch: Path
) -> list[str]:
    """Judge all datasets as the join does; return what their owner should know.

    The verdicts lie where the SuperNodes look for them.
    """
    uses = [DatasetUse(root, config.policy, scratch / name) for name, root in folders.items()]
    return [warning for judged in judge_datasets(uses, descriptions) for warning in judged.warnings]


def _issue_missing_keys(certs: Path, sites: Iterable[str]) -> None:
    """Make the keys of sites that have none: here all of them are this machine's own."""
    for site in sites:
        if (certs / "sites" / site / "node.key").is_file():
            continue
        try:
            add_site(certs, site)
        except OSError as error:
            raise CertificateError(
                f"{error.filename}: no key for {site} could be made ({error.strerror}); run this as the "
                f"owner of {certs}"
            ) from None


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
    position, baseline = 0, None
    if config.run.resume:
        # After those of the run so far; a torn line at their end is going to be cut off.
        position = (folder / EVENTS_FILE).read_bytes().rfind(b"\n") + 1
        baseline = (read_metrics(folder)["baseline"] or {}).get("policy_loss")
    rounds, steps = config.run.num_rounds, config.training.local_steps
    with RunDisplay(console, list(sites), cluster.progress_file, rounds, steps, baseline, started) as display:
        for event in _follow(folder / EVENTS_FILE, position, cluster, run_id):
            if not event:
                display.show_progress()
                continue
            display.show_event(event)
            if event["event"] == "run_finished":
                return ""
            if event["event"] == "run_failed":
                return str(event["reason"])
    raise AssertionError("the events of a run end with its end")


def _follow(events: Path, position: int, cluster: LocalCluster, run_id: str) -> Iterator[dict[str, Any]]:
    """Yield the run's events as they are written, and `{}` whenever there is nothing new.

    Args:
        position: byte in the file of events to begin at.
    """
    check_at, status = time.monotonic() + _STATUS_INTERVAL_SECONDS, ""
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
        if status.startswith("finished"):  # and nothing was written since: it died before it could say why
            yield {"event": "run_failed", "reason": f"the ServerApp ended as {status}"}
        cluster.check_processes()
        if time.monotonic() > check_at:
            check_at = time.monotonic() + _STATUS_INTERVAL_SECONDS
            status = run_status(cluster.superlink, run_id)
            continue
        time.sleep(_POLL_INTERVAL_SECONDS)
