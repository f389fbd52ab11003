"""One federated round of the full-size SmolVLA (450 M parameters, random weights) on this machine.

    python -m tests.benchmarks.full_size_round [--adapter | --everything]

Two SuperNodes take two local steps each, over the real TLS SuperLink. With `--adapter` they train an adapter
over a base that is saved first, for two rounds; between them everything is stopped and the run resumed. With
`--everything` two cameras of 480 x 640 are trained on with all that is off by default: the server's momentum,
partial work, int4, an average over the rounds, an adapting mu, an end once nothing is gained.
Prints and writes (`full_size_round.json` and so on) the seconds of each phase of the last round and the peak
resident memory of each process. It has no peer to compare with; the JSON names the machine, and the figures
of two machines do not compare. Needs about 20 GB of memory and `make sample-data`.
"""

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from federation.config import parse_run_config
from federation.data.description import describe_dataset
from federation.policy.build import build_policy, build_processors
from federation.policy.folder import save_policy_folder
from federation.settings import PolicyConfig
from server.deploy import demo
from server.run.recorded import as_continuation, read_metrics
from tests.synthetic import record_dataset

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = {
    "run.name": "full-size",
    "run.num_rounds": 1,
    "policy.size": "smolvla",
    "training.local_steps": 2,
    "training.batch_size": 1,
    "training.warmup_steps": 0,
    "training.num_workers": 0,
    "evaluation.quick_episodes": 1,
    "evaluation.frame_stride": 60,
    "evaluation.batch_size": 1,
    "federation.round_deadline_seconds": 1200,
}
EVERYTHING: dict[str, Any] = {
    "run.num_rounds": 5,
    "aggregation.strategy": "fedavgm",
    "federation.partial_work": True,
    "wire.upload": "int4",
    "training.adapt_proximal_mu": True,
    "evaluation.ema_decay": 0.9,
    "evaluation.patience": 2,
    "evaluation.min_gain": 0.5,  # so much that the run ends early
}
_SAMPLE_SECONDS = 0.25


class MemoryWatch(threading.Thread):
    """Peak resident memory of every descendant of this process, by what it is."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes: dict[str, int] = {}
        self.peak_total_bytes = 0
        self._ended = threading.Event()

    def stop(self) -> None:
        """Sample no more."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._ended.wait(_SAMPLE_SECONDS):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    name, resident = _name(process), process.memory_info().rss
                except psutil.Error:
                    continue
                total += resident
                self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), resident)
            self.peak_total_bytes = max(self.peak_total_bytes, total)


def _name(process: psutil.Process) -> str:
    programs = (
        "flower-superlink",
        "flower-supernode",
        "flwr-serverapp",
        "flwr-clientapp",
        "flower-superexec",
        "multiprocessing.forkserver",
    )
    # A fork has the command line of its fork server, and the program's name.
    command = " ".join([process.name(), *process.cmdline()])
    program = next((program for program in programs if program in command), "other")
    if program in ("flwr-clientapp", "multiprocessing.forkserver") or (
        program == "flower-superexec" and "--parent-pid" in command
    ):
        program += " of " + _site(process.parents())
    return f"{program} {_site([process])}" if program == "flower-supernode" else program


def _site(processes: list[psutil.Process]) -> str:
    for process in processes:
        for argument in process.cmdline():
            if argument.startswith('name="'):
                return argument.split('"')[1]
    return "?"


def main() -> None:
    """Run the rounds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--adapter", action="store_true", help="over a saved base; resumed after a round")
    kinds.add_argument("--everything", action="store_true", help="all that is off by default")
    parser.add_argument("--out", type=Path, help="(beside this file)")
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--certs", type=Path, default=Path("certs/generated"))
    parser.add_argument("--port", type=int, default=8543)
    arguments = parser.parse_args()
    kind = "adapter" if arguments.adapter else "everything" if arguments.everything else "round"
    out, data = arguments.out or HERE / f"full_size_{kind}.json", arguments.data
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        outputs, settings = Path(name), dict(SETTINGS)
        if arguments.adapter:
            base = _save_base(outputs / "base", data / "site-a")
            settings |= {
                "policy.size": "pretrained",
                "policy.pretrained": str(base),
                "policy.adapter": "lora",
            }
        if arguments.everything:
            settings, data = settings | EVERYTHING, _record_large(outputs / "data")
        watch = MemoryWatch()
        watch.start()
        started = time.monotonic()
        for rounds in (1, 2) if arguments.adapter else (settings["run.num_rounds"],):
            config = parse_run_config(settings | {"run.num_rounds": rounds}, "benchmark")
            if (outputs / "full-size").exists():
                config = as_continuation(config)
            code = demo.run_demo(config, data, outputs, arguments.certs, arguments.port, console)
            if code:
                raise SystemExit(code)
        watch.stop()
        run = read_metrics(outputs / "full-size")
    result = _result(run, watch, time.monotonic() - started, settings)
    table = Table("process", "peak resident memory (GB)")
    for name, peak in result["peak_memory_gb"].items():
        table.add_row(name, f"{peak:.2f}")
    console.print(table)
    console.print(result["seconds"])
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {out}")


def _save_base(folder: Path, dataset: Path) -> Path:
    """Return the folder of a full-size policy that nobody trained."""
    policy = build_policy(
        PolicyConfig(size="smolvla"), seed=0, device=torch.device("cpu"), cache=folder.with_name("cache")
    )
    processors = build_processors(policy, describe_dataset(dataset).statistics)
    save_policy_folder(folder, policy, processors, "Random weights.\n")
    return folder


def _record_large(data: Path) -> Path:
    """Return a folder with the recordings of two sites and the server, of two large cameras each."""
    for seed, name in enumerate(("site-a", "site-b", "holdout")):
        record_dataset(data / name, episodes=1, frames=60, seed=seed, codec="h264", size=(480, 640))
    return data


def _memory_gb() -> float:
    return psutil.virtual_memory().total / 1e9


def _result(
    run: dict[str, Any], watch: MemoryWatch, seconds: float, settings: dict[str, Any]
) -> dict[str, Any]:
    entry = run["rounds"][-1]
    gigabytes = {name: round(peak / 1e9, 2) for name, peak in sorted(watch.peak_bytes.items())}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {_memory_gb():.0f} GB, {platform.machine()}",
        "settings": {name: run["config"][name] for name in settings if name != "policy.pretrained"},
        "reason": run["reason"],
        "rounds": len(run["rounds"]),
        "resumed_after": [resumed["after_round"] for resumed in run.get("resumed", ())],
        "bytes_of_the_last_round": entry["bytes"],
        "peak_memory_gb": gigabytes,
        "peak_memory_total_gb": round(watch.peak_total_bytes / 1e9, 2),
        "seconds": {
            **{f"round.{phase}": round(s, 1) for phase, s in entry["seconds"].items()},
            **{
                f"{name}.{phase}": round(client[f"{phase}_seconds"], 1)
                for name, client in entry["clients"].items()
                for phase in ("setup", "train", "reply")
            },
            "evaluation.baseline": round(run["baseline"]["seconds"], 1),
            "whole": round(seconds, 1),
        },
    }


if __name__ == "__main__":
    main()
