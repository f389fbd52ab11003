"""A full-size round trip over a real TLS SuperLink, against Flower's stock FedAvg, in the same call.

    python -m tests.benchmarks.round_trip [--out tests/benchmarks/round_trip.json]

Two SuperNodes; the 99.9 M trainable parameters of SmolVLA go down and come back, nothing is trained (see
`app.py`). Both ways run on a cluster of their own, each `--repeats` times in turn, and the median counts.
Prints and writes seconds, bytes and the peak resident memory of each process. Needs 10 GB of memory.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from certs.issue import issue_all
from federation.config import RunConfig
from federation.policy.build import build_policy, trainable_parameters
from federation.settings import PolicyConfig
from federation.wire.codec import encoded_bytes
from server.deploy.local_cluster import LocalCluster
from server.superlink.control import app_files, run_status, start_run
from tests.benchmarks.full_size_round import MemoryWatch
from tests.integration.conftest import free_port

SITES = ("site-a", "site-b")
_PATIENCE_SECONDS = 900.0


def _app() -> dict[str, bytes | Path]:
    """The project's packages with this benchmark's app in the place of theirs."""
    project = b"""[project]
name = "round-trip"
version = "1.0.0"

[tool.flwr.app]
publisher = "so100-federation"
fab-include = ["**/*.py"]

[tool.flwr.app.components]
serverapp = "round_trip:server_app"
clientapp = "round_trip:client_app"

[tool.flwr.app.config]
ours = true
"""
    return app_files() | {"pyproject.toml": project, "round_trip.py": Path(__file__).with_name("app.py")}


def run_once(ours: bool, certs: Path, shapes_file: Path) -> dict[str, Any]:
    """One round trip on a fresh cluster."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = folder / "result.json"
        os.environ |= {
            "ROUND_TRIP_SHAPES": str(shapes_file),
            "ROUND_TRIP_RESULT": str(result),
            "FEDERATION_ALLOW_APP": "any",  # the sites agree to run this app
        }
        for name in SITES:
            (folder / name).mkdir()
        sites = {name: folder / name for name in SITES}
        cluster = LocalCluster(sites, folder, folder, certs, free_port(), folder / "scratch")
        watch = MemoryWatch()
        watch.start()
        with cluster:
            before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
            run_id = start_run(cluster.superlink, _app(), {"ours": ours})
            give_up_at = time.monotonic() + _PATIENCE_SECONDS
            while not result.exists():
                if time.monotonic() > give_up_at:
                    logs = [file.read_text()[-3000:] for file in cluster.logs.iterdir()]
                    raise SystemExit("\n".join([run_status(cluster.superlink, run_id), *logs]))
                time.sleep(0.5)
            loopback = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
        watch.stop()
        seconds = json.loads(result.read_text(encoding="utf-8"))["seconds"]
        return {"seconds": seconds, "loopback_bytes": loopback, "peak_bytes": watch.peak_bytes}


def main() -> None:
    """Run both ways in turn, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/round_trip.json"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = build_policy(
            PolicyConfig(size="smolvla"), seed=0, device=torch.device("cpu"), cache=folder / "cache"
        )
        shapes = {name: tensor.shape for name, tensor in trainable_parameters(policy).items()}
        del policy
        shapes_file = folder / "shapes.json"
        shapes_file.write_text(json.dumps({name: list(shape) for name, shape in shapes.items()}))
        issue_all(folder / "certs", hosts=[], sites=list(SITES))
        runs: dict[str, list[dict[str, Any]]] = {"flower": [], "ours": []}
        for _ in range(arguments.repeats):
            for way in runs:
                runs[way].append(run_once(way == "ours", folder / "certs", shapes_file))
                print(way, f"{runs[way][-1]['seconds']:.1f} s", flush=True)
    result = {"parameters": sum(shape.numel() for shape in shapes.values()), **_result(runs, shapes)}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["ours_of_flower"], indent=2))


def _result(runs: dict[str, list[dict[str, Any]]], shapes: dict[str, torch.Size]) -> dict[str, Any]:
    wire = RunConfig().wire
    codecs = {"flower": ("fp32", "fp32"), "ours": (wire.download, wire.upload)}
    result: dict[str, Any] = {}
    for way, figures in runs.items():
        down, up = (sum(encoded_bytes(s, codec) for s in shapes.values()) for codec in codecs[way])
        processes = sorted({name for run in figures for name in run["peak_bytes"]})
        result[way] = {
            "seconds": statistics.median(run["seconds"] for run in figures),
            "all_seconds": [run["seconds"] for run in figures],
            "node_bytes_down": down,
            "node_bytes_up": up,
            "loopback_bytes": statistics.median(run["loopback_bytes"] for run in figures),
            "peak_bytes": {
                name: statistics.median(run["peak_bytes"].get(name, 0) for run in figures)
                for name in processes
            },
        }
    result["node_bytes_by_codec"] = {
        codec: sum(encoded_bytes(shape, codec) for shape in shapes.values())
        for codec in ("fp32", "bf16", "int8", "int4")
    }
    flower, ours = result["flower"], result["ours"]
    result["ours_of_flower"] = {
        **{
            name: ours[name] / flower[name]
            for name in ("seconds", "node_bytes_down", "node_bytes_up", "loopback_bytes")
        },
        "peak_bytes": {
            name: ours["peak_bytes"][name] / flower["peak_bytes"][name]
            for name in ours["peak_bytes"]
            if flower["peak_bytes"].get(name)
        },
    }
    return result


if __name__ == "__main__":
    main()
