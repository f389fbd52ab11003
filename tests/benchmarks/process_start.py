"""From a train message to the first step: a ClientApp that is a fork, against one that starts cold.

    python -m tests.benchmarks.process_start [--out tests/benchmarks/process_start.json]

One site, rounds of one step over TLS, in turn with `FEDERATION_WARM_START=0`, Flower's own way, and without.
The medians over all rounds but the first of a run: `message` from sending to the ClientApp's first line
(transfer, polling, start of the process), `setup` from there to the first step (imports, policy, data),
`round` from one round's start to the next one's. `cpu` are the CPU seconds of the site's SuperExec and of all
that it started, over the number of messages; the fork server's imports are in it. `tiny` is the demo's
policy, `pretrained` the full-size one, loaded from a policy folder with random weights.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from federation.config import RunConfig, parse_run_config
from federation.policy.build import build_policy
from federation.policy.vlm_folder import vlm_folder
from federation.settings import PolicyConfig
from server.deploy import demo
from server.run.recorded import METRICS_FILE

_SETTINGS = {
    "federation.min_nodes": 1,
    "training.local_steps": 1,
    "training.batch_size": 1,
    "training.warmup_steps": 0,
    "training.num_workers": 0,
    "evaluation.eval_frequency": 100,
    "evaluation.quick_episodes": 1,
    "evaluation.frame_stride": 60,
    "evaluation.batch_size": 1,
    "federation.round_deadline_seconds": 1200,
}
_ROUNDS = {"tiny": 12, "pretrained": 5}
_SAMPLE_SECONDS = 0.2


class CpuWatch(threading.Thread):
    """CPU seconds of the sites' SuperExec, of the fork server and of all that both have started."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seconds: dict[int, float] = {}
        self._ended = threading.Event()

    def stop(self) -> float:
        """Sample no more; return the seconds."""
        self._ended.set()
        self.join()
        return sum(self._seconds.values())

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._ended.wait(_SAMPLE_SECONDS):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    command = " ".join(process.cmdline())
                    is_starter = "flower-superexec" in command and "--parent-pid" in command
                    if is_starter or ("multiprocessing.forkserver" in command and not _is_fork(process)):
                        times = process.cpu_times()
                        self._seconds[process.pid] = sum(times[:4])


def _is_fork(process: psutil.Process) -> bool:
    parent = process.parent()
    return parent is not None and "multiprocessing.forkserver" in " ".join(parent.cmdline())


def main() -> None:
    """Run both sizes, print the seconds, write the JSON."""
    parser = argparse.ArgumentParser(description="Seconds from a train message to the first step.")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/process_start.json"))
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--certs", type=Path, default=Path("certs/generated"))
    parser.add_argument("--port", type=int, default=8553)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sizes", default=",".join(_ROUNDS), help="some of them; the others' figures stay")
    arguments = parser.parse_args()
    result: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    result |= {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        for dataset in ("site-a", "holdout"):
            (data / dataset).symlink_to((arguments.data / dataset).resolve())
        for size in arguments.sizes.split(","):
            policy = {"policy.size": "tiny"} if size == "tiny" else _write_pretrained(folder)
            runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
            for repeat in range(arguments.repeats):
                for way in runs:
                    os.environ["FEDERATION_WARM_START"] = str(int(way == "warm"))
                    settings = {"run.name": f"{size}-{way}-{repeat}", "run.num_rounds": _ROUNDS[size]}
                    config = parse_run_config(_SETTINGS | policy | settings, "benchmark")
                    runs[way].append(_run(config, data, folder, arguments.certs, arguments.port))
                    print(size, way, {k: round(v, 2) for k, v in runs[way][-1].items()}, flush=True)
            medians = {
                way: {k: statistics.median(run[k] for run in figures) for k in figures[0]}
                for way, figures in runs.items()
            }
            warm_of_cold = {k: medians["warm"][k] / cold for k, cold in medians["cold"].items()}
            result[size] = {**medians, "warm_of_cold": warm_of_cold}
            print(size, "warm of cold", {k: round(v, 2) for k, v in warm_of_cold.items()}, flush=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _run(config: RunConfig, data: Path, folder: Path, certs: Path, port: int) -> dict[str, float]:
    """Run `config`; return medians over its rounds but the first, and the CPU seconds of a message."""
    watch = CpuWatch()
    watch.start()
    code = demo.run_demo(config, data, folder, certs, port, Console(stderr=True))
    cpu = watch.stop()
    if code:
        raise SystemExit(code)
    run = json.loads((folder / config.run.name / METRICS_FILE).read_text(encoding="utf-8"))
    (clients,) = zip(*(entry["clients"].values() for entry in run["rounds"][1:]), strict=True)
    message, setup = (
        statistics.median(client[f"{part}_seconds"] for client in clients) for part in ("download", "setup")
    )
    whole = statistics.median(sum(entry["seconds"].values()) for entry in run["rounds"][1:])
    messages = config.run.num_rounds + 1  # with the join
    return {
        "message": message,
        "setup": setup,
        "to_first_step": message + setup,
        "round": whole,
        "cpu": cpu / messages,
    }


def _write_pretrained(folder: Path) -> dict[str, str]:
    """A full-size policy folder with random weights; the settings that make a run begin from it."""
    config = PolicyConfig(size="smolvla")
    policy = build_policy(config, seed=0, device=torch.device("cpu"), cache=folder)
    policy.save_pretrained(folder / "policy")
    return {
        "policy.size": "pretrained",
        "policy.pretrained": str(folder / "policy"),
        "policy.vlm": str(vlm_folder("smolvla", folder)),
    }


if __name__ == "__main__":
    main()
