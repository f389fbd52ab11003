"""What one SuperLink and one ServerApp carry: rounds of many SuperNodes, ours against Flower's FedAvg.

    python -m tests.benchmarks.scale [--out tests/benchmarks/scale.json] [--nodes 2,10,25,50]

Real SuperNodes over TLS, each with its SuperExec and a ClientApp process for every message; nobody trains
(`app.py`). For each number of nodes and each size of the trained weights, of the tiny policy and of adapters
at full size, both ways run on a cluster of their own. Reported are the median seconds of a round but the
first; for each round and node the CPU seconds of SuperLink and of the ServerApp, and the bytes that
SuperLink's database grew; the CPU seconds of SuperLink for an idle node and hour; what stays in memory.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from certs.issue import issue_all
from client.rules.owner import RULES_VARIABLE
from server.deploy.local_cluster import LocalCluster
from server.superlink.control import app_files, online_sites, run_status, start_run
from tests.integration.conftest import free_port
from tests.integration.superlink import with_database

_SIZES = {"tiny": 103_648, "adapters": 2_970_624}  # trained weights
_ROUNDS = 4
_IDLE_SECONDS = 40.0
_PATIENCE_SECONDS = 1800.0
_PROJECT = b"""[project]
name = "scale"
version = "1.0.0"

[tool.flwr.app]
publisher = "so100-federation"
fab-include = ["**/*.py"]

[tool.flwr.app.components]
serverapp = "scale_app:server_app"
clientapp = "scale_app:client_app"

[tool.flwr.app.config]
ours = true
weights = 0
rounds = 0
nodes = 0
"""


class _Cluster(LocalCluster):
    """A `LocalCluster` whose SuperLink has its database in a file."""

    @property
    def database(self) -> Path:
        return self._state / "superlink.db"

    def _start(self, name: str, command: list[str], *others: Any, **more: Any) -> None:
        if name == "superlink":
            command = with_database(command, self.database)
        super()._start(name, command, *others, **more)

    def database_bytes(self) -> int:
        """Its size, with what SQLite has not yet merged into it."""
        return sum(file.stat().st_size for file in self._state.glob("superlink.db*"))


def run_once(ours: bool, nodes: int, weights: int, certs: Path) -> dict[str, float]:
    """Some rounds on a fresh cluster."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"SCALE_FOLDER": str(folder), RULES_VARIABLE: str(folder / "rules.toml")}
        (folder / "rules.toml").write_text('allow-app = ["any"]', encoding="utf-8")
        sites = {f"site-{i}": folder for i in range(nodes)}
        with _Cluster(sites, folder, folder, certs, free_port(), folder / "scratch") as cluster:
            app = app_files() | {
                "pyproject.toml": _PROJECT,
                "scale_app.py": Path(__file__).with_name("app.py"),
            }
            settings = {"ours": ours, "weights": weights, "rounds": _ROUNDS, "nodes": nodes}
            superlink = psutil.Process(cluster.process_id("superlink"))
            while len(online_sites(cluster.superlink)) < nodes:  # many take minutes to start on few cores
                cluster.check_processes()
                time.sleep(1)
            run_id = start_run(cluster.superlink, app, settings)
            _wait_for(folder / "started.json", cluster, run_id)
            cpu, size = sum(superlink.cpu_times()[:2]), cluster.database_bytes()
            _wait_for(folder / "result.json", cluster, run_id)
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            times = result["times"]
            exchanges = nodes * _ROUNDS
            figures = {
                "round_seconds": statistics.median(b - a for a, b in pairwise(times[1:])),
                "superlink_cpu": (sum(superlink.cpu_times()[:2]) - cpu) / exchanges,
                "serverapp_cpu": result["cpu"] / exchanges,
                "database_bytes": (cluster.database_bytes() - size) / exchanges,
                "superlink_bytes": superlink.memory_info().rss,
                "serverapp_bytes": result["resident"],
            }
            time.sleep(35)  # until every SuperNode asks as seldom as an idle one
            cpu = sum(superlink.cpu_times()[:2])
            time.sleep(_IDLE_SECONDS)
            idle = (sum(superlink.cpu_times()[:2]) - cpu) / _IDLE_SECONDS
            return figures | {"idle_cpu_per_node_hour": idle * 3600 / nodes}


def _wait_for(file: Path, cluster: LocalCluster, run_id: int) -> None:
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while not file.exists():
        cluster.check_processes()
        if time.monotonic() > give_up_at or run_status(cluster.superlink, run_id).startswith("finished"):
            if file.exists():
                return
            failed = file.with_name("failed.json")
            logs = (cluster.logs / "superexec.log").read_text(errors="replace")[-3000:]
            raise SystemExit(failed.read_text(encoding="utf-8") if failed.exists() else logs)
        time.sleep(1)


def main() -> None:
    """Run both ways for each number of nodes and size; print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="What one SuperLink carries.")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/scale.json"))
    parser.add_argument("--nodes", default="2,10,25,50", help="numbers of SuperNodes, with commas")
    options = parser.parse_args()
    counts = [int(number) for number in options.nodes.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        certs = Path(name)
        issue_all(certs, hosts=[], sites=[f"site-{i}" for i in range(max(counts))])
        for nodes in counts:
            for size, weights in _SIZES.items():
                for way in ("flower", "ours"):
                    figures = run_once(way == "ours", nodes, weights, certs)
                    rows.append({"nodes": nodes, "size": size, "way": way, **figures})
                    print(rows[-1], flush=True)
                    _write(options.out, rows)
    _print_table(rows)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write what there is so far, over the rows of the same numbers of nodes in the file."""
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    measured = {row["nodes"] for row in rows}
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "rounds": _ROUNDS,
        "rows": sorted(
            [*(row for row in kept if row["nodes"] not in measured), *rows], key=lambda r: r["nodes"]
        ),
    }
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table("nodes", "size", "way", "round s", "SuperLink CPU s", "ServerApp CPU s", "database kB")
    for row in rows:
        table.add_row(
            str(row["nodes"]),
            row["size"],
            row["way"],
            f"{row['round_seconds']:.1f}",
            f"{row['superlink_cpu']:.3f}",
            f"{row['serverapp_cpu']:.3f}",
            f"{row['database_bytes'] / 1e3:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
