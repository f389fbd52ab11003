"""A full-size round trip over a real TLS SuperLink, against Flower's stock FedAvg, in the same call.

    python -m tests.benchmarks.round_trip [--out tests/benchmarks/round_trip.json]

Two SuperNodes; the 99.9 M trainable parameters of SmolVLA go down and come back, Flower's way and ours, and
those of an adapter over it our way; nothing is trained (see `app.py`). Each way runs on a cluster of its own,
`--repeats` times in turn, and the median counts. Prints and writes seconds, bytes and peak memory of each
process. Needs 10 GB of memory; `--size tiny` is for looking whether it runs.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from certs.issue import issue_all
from client.rules.owner import RULES_VARIABLE
from federation.config import RunConfig
from federation.policy.adapter import add_adapter
from federation.policy.build import build_policy, trainable_parameters
from federation.settings import PolicyConfig
from federation.wire.codec import encoded_bytes
from server.deploy.local_cluster import LocalCluster
from server.superlink.control import app_files, run_status, start_run
from tests.benchmarks.full_size_round import MemoryWatch
from tests.integration.conftest import free_port

SITES = ("site-a", "site-b")
WAYS = ("flower", "ours", "adapter")
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
            RULES_VARIABLE: str(folder / "rules.toml"),
        }
        (folder / "rules.toml").write_text('allow-app = ["any"]', encoding="utf-8")
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
    """Run all ways in turn, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/round_trip.json"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--rank", type=int, default=PolicyConfig().lora_rank, help="of the adapter (%(default)s)"
    )
    parser.add_argument("--size", choices=("smolvla", "tiny"), default="smolvla")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes = _shapes(arguments.size, arguments.rank, folder / "cache")
        for way in WAYS:
            sides = {key: list(shape) for key, shape in shapes[way].items()}
            (folder / f"{way}.json").write_text(json.dumps(sides), encoding="utf-8")
        issue_all(folder / "certs", hosts=[], sites=list(SITES))
        for _ in range(arguments.repeats):
            for way in WAYS:
                runs[way].append(run_once(way != "flower", folder / "certs", folder / f"{way}.json"))
                print(way, f"{runs[way][-1]['seconds']:.1f} s", flush=True)
    result = {"size": arguments.size, "rank": arguments.rank, **_result(runs, shapes)}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for ratios in ("ours_of_flower", "adapter_of_flower", "adapter_of_ours"):
        print(ratios, json.dumps(result[ratios], indent=2))


def _shapes(size: Literal["smolvla", "tiny"], rank: int, cache: Path) -> dict[str, dict[str, torch.Size]]:
    """Return the shapes of what travels, by way."""
    policy = build_policy(PolicyConfig(size=size), seed=0, device=torch.device("cpu"), cache=cache)
    whole = {name: tensor.shape for name, tensor in trainable_parameters(policy).items()}
    add_adapter(policy, PolicyConfig(pretrained="none", adapter="lora", lora_rank=rank), seed=0)
    adapter = {name: tensor.shape for name, tensor in trainable_parameters(policy).items()}
    return {"flower": whole, "ours": whole, "adapter": adapter}


def _result(
    runs: dict[str, list[dict[str, Any]]], shapes: dict[str, dict[str, torch.Size]]
) -> dict[str, Any]:
    wire = RunConfig().wire
    result: dict[str, Any] = {}
    for way, figures in runs.items():
        codecs = ("fp32", "fp32") if way == "flower" else (wire.download, wire.upload)
        down, up = (sum(encoded_bytes(s, codec) for s in shapes[way].values()) for codec in codecs)
        processes = sorted({name for run in figures for name in run["peak_bytes"]})
        result[way] = {
            "parameters": sum(shape.numel() for shape in shapes[way].values()),
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
        codec: sum(encoded_bytes(shape, codec) for shape in shapes["ours"].values())
        for codec in ("fp32", "bf16", "int8", "int4")
    }
    for way, other in (("ours", "flower"), ("adapter", "flower"), ("adapter", "ours")):
        result[f"{way}_of_{other}"] = _ratios(result[way], result[other])
    return result


def _ratios(figures: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    names = ("seconds", "node_bytes_down", "node_bytes_up", "loopback_bytes")
    peaks, their_peaks = figures["peak_bytes"], others["peak_bytes"]
    return {
        **{name: figures[name] / others[name] for name in names},
        "peak_bytes": {name: peaks[name] / their_peaks[name] for name in peaks if their_peaks.get(name)},
    }


if __name__ == "__main__":
    main()
