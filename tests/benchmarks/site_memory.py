"""Memory of a site between rounds and in one, with ClientApps that are forks against ones that start cold.

    python -m tests.benchmarks.site_memory [--rounds 6] [--config configs/demo.toml] [--out FILE]

Two sites as processes over TLS train the demo's data. Five times a second the proportional set sizes of
site-a's SuperNode and of all that it started are added up, so that pages which several processes share count
once. From the end of the first round on, `between_rounds` is the least of these sums and `in_a_round` the
largest.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import psutil

from certs.issue import issue_all
from federation.config import load_run_config
from server.deploy.local_cluster import LocalCluster
from server.run.recorded import read_events
from tests.ports import free_port
from tests.supervised import SupervisedRun

SITES = ("site-a", "site-b")
_INTERVAL_SECONDS = 0.2
_ENDS = ("round_finished", "run_finished")


def run_once(way: str, config: Path, rounds: int, data: Path, certs: Path) -> dict[str, int]:
    """Return the bytes between the rounds and in one, of one run on a fresh cluster."""
    os.environ["FEDERATION_WARM_START"] = str(int(way == "warm"))
    changes = {"run.name": way, "run.num_rounds": rounds, "run.deliver": "never"}
    settings = load_run_config(config, changes)
    sums: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sites = {site: data / site for site in SITES}
        with LocalCluster(sites, data / "holdout", folder, certs, free_port(), folder / "scratch") as cluster:
            supernode = psutil.Process(cluster.process_id(SITES[0]))
            run = SupervisedRun(cluster, folder, settings)
            while run.is_alive():
                run.join(_INTERVAL_SECONDS)
                seen = {event["event"] for event in read_events(folder / way, _ENDS)}
                if seen == {"round_finished"}:
                    sums.append(_memory(supernode))
            run.finish()
    return {"between_rounds": min(sums), "in_a_round": max(sums)}


def _memory(root: psutil.Process) -> int:
    """Return the proportional set sizes of a process and its descendants, in bytes."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def main() -> None:
    """Run both ways, print the figures, write the JSON."""
    parser = argparse.ArgumentParser(description="Memory of a site.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/site_memory.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        certs = Path(name)
        issue_all(certs, hosts=[], sites=list(SITES))
        ways = {
            way: run_once(way, arguments.config, arguments.rounds, arguments.data, certs)
            for way in ("warm", "cold")
        }
    result = {"date": time.strftime("%Y-%m-%d"), "config": str(arguments.config), **ways}
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
