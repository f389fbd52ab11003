"""A site four times slower than the other: asked for fewer steps, or cut off, or as fast as the other.

    python -m tests.benchmarks.uneven [--rounds 8] [--out tests/benchmarks/uneven.json]

Two real sites over TLS train the demo's data. Site-b's processes stand still for three quarters of the time
(SIGSTOP, SIGCONT), so that it really is four times slower. `equal`: it is not slowed down; `dropped`: it is,
and after the quorum nobody waits for it; `partial work`: it is, and `federation.partial_work` asks it for
fewer steps. Reported are the rounds that it took part in, the median seconds of a round, and the held-out
policy loss at the end.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from certs.issue import issue_all
from federation.config import RunConfig, load_run_config
from server.deploy.local_cluster import LocalCluster
from server.deploy.supervise import supervise_run
from server.run.recorded import read_metrics
from tests.integration.conftest import free_port

SITES, SLOW = ("site-a", "site-b"), "site-b"
_SLOWER = 4
_PERIOD_SECONDS = 0.4
_FAST = {"federation.quorum": 0.5, "federation.straggler_factor": 1.5}
WAYS: dict[str, dict[str, Any]] = {
    "equal": _FAST,
    "dropped": _FAST,
    "partial work": _FAST | {"federation.partial_work": True},
}


class _Throttle(threading.Thread):
    """Stops all processes of a site for most of the time."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended = psutil.Process(root), threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            stopped = self._processes()
            for process in stopped:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
            self._ended.wait(_PERIOD_SECONDS * (1 - 1 / _SLOWER))
            for process in stopped:
                with contextlib.suppress(psutil.Error):
                    process.resume()
            self._ended.wait(_PERIOD_SECONDS / _SLOWER)

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._root, *self._root.children(recursive=True)]
        return []


def run_once(way: str, rounds: int, data: Path, certs: Path) -> dict[str, Any]:
    """One run on a fresh cluster."""
    changes = {"run.name": "uneven", "run.num_rounds": rounds, "run.deliver": "never", **WAYS[way]}
    config: RunConfig = load_run_config(Path("configs/demo.toml"), changes | {"training.local_steps": 500})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sites = {site: data / site for site in SITES}
        cluster = LocalCluster(sites, data / "holdout", folder, certs, free_port(), folder / "scratch")
        with cluster:
            throttle = None if way == "equal" else _Throttle(cluster.process_id(SLOW))
            if throttle:
                throttle.start()
            try:
                supervise_run(cluster.superlink, folder, config, print)
            finally:
                if throttle:
                    throttle.stop()
        recorded = read_metrics(folder / "uneven")["rounds"]
    took_part = [entry["clients"].get(SLOW) for entry in recorded]
    return {
        "rounds_with_the_slow_site": sum(told is not None for told in took_part),
        "frames_of_the_slow_site": [told["num_examples"] if told else 0 for told in took_part],
        # Of the first nobody knew how fast the sites are.
        "round_seconds": statistics.median(entry["seconds"]["train"] for entry in recorded[2:]),
        "policy_loss": recorded[-1]["evaluation"]["policy_loss"],
    }


def main() -> None:
    """Run each way, print the figures, write the JSON."""
    parser = argparse.ArgumentParser(description="A slow site.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/uneven.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as name:
        certs = Path(name) / "certs"
        issue_all(certs, hosts=[], sites=list(SITES))
        for way in WAYS:
            result[way] = run_once(way, arguments.rounds, arguments.data, certs)
            print(way, json.dumps(result[way]), flush=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
