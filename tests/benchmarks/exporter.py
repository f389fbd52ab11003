"""What the exporter costs with 100 nodes and 1,000 rounds: python -m tests.benchmarks.exporter

Writes a record of that size as the server would, starts the exporter on it and scrapes it; then appends
rounds as a running federation does. Limits of the project: 100 MB of memory, 2 % of a core; above them it
ends with code 1.
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from federation.config import parse_run_config
from server.run.recorded import EVENTS_FILE
from server.run.records import RunRecord

NODES, ROUNDS = 100, 1000
PORT = 19494
SCRAPES, SCRAPE_INTERVAL_SECONDS = 20, 5.0  # docker/prometheus/prometheus.yml
MAX_MEMORY_BYTES, MAX_CORE_SHARE = 100e6, 0.02
NAMES = [f"site-{number:03}" for number in range(NODES)]
FACTS = {
    **{
        "node_id": "1",
        "episodes": 50,
        "left_out": 0,
        "frames": 20000,
        "fps": 30,
        "cameras": ["top", "wrist"],
    },
    **{"device": "NVIDIA H100", "versions": {"python": "3.12.1", "torch": "2.11.0", "lerobot": "0.6.1"}},
}
CLIENT = {
    **dict.fromkeys(("policy_loss", "proximal_loss", "grad_norm", "update_norm"), 0.123456789012345),
    **dict.fromkeys(("learning_rate", "train_seconds", "setup_seconds", "data_seconds"), 12.3456789012345),
    **dict.fromkeys(("download_seconds", "upload_seconds", "reply_seconds"), 23.4567890123456),
    **dict.fromkeys(("num_examples", "device_memory_bytes", "download_bytes", "update_bytes"), 123456789),
    "skipped_frames": 0,
}


def _play_round(record: RunRecord, number: int) -> None:
    """The events of one round, as server/rounds.py and server/app.py write them."""
    record.event("round_started", round=number, nodes=NAMES)
    for name in NAMES:
        record.event("update_received", round=number, node=name, policy_loss=0.123456789012345)
    figures = {"policy_loss": 0.5, "action_mse": 5.0}
    record.event("evaluated", round=number, **figures, datasets={"holdout": figures})
    record.event(
        "round_finished",
        round=number,
        aggregated=True,
        clients=dict.fromkeys(NAMES, CLIENT),
        refused={},
        missing=[],
        **{figure: {"mean": 0.5, "std": 0.1} for figure in ("policy_loss", "proximal_loss", "grad_norm")},
        update_norm=0.4,
        bytes={"down": 1, "up": 1},
        seconds={"sample": 0.1, "send": 1.0, "train": 60.0, "aggregate": 2.0, "evaluate": 3.0},
    )


def _scrape() -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=60) as page:
        return page.read().decode()


def main() -> int:
    """Measure, print and write tests/benchmarks/exporter.json."""
    with tempfile.TemporaryDirectory() as folder:
        record = RunRecord(Path(folder), "large", parse_run_config({"run.num_rounds": 2 * ROUNDS}, "bench"))
        record.event("run_started", run="large", num_rounds=2 * ROUNDS)
        for name in NAMES:
            record.node_joined(name, FACTS)
        for number in range(1, ROUNDS + 1):
            _play_round(record, number)
        size = (record.folder / EVENTS_FILE).stat().st_size
        command = [
            sys.executable,
            "-m",
            "server.cli",
            "exporter",
            "--outputs",
            folder,
            "--host",
            "127.0.0.1",
        ]
        process = subprocess.Popen([*command, "--port", str(PORT)], stderr=subprocess.DEVNULL)
        try:
            results = _measure(psutil.Process(process.pid), record) | {"record_bytes": size}
        finally:
            process.kill()
            process.wait()
    print(json.dumps(results, indent=2))
    (Path(__file__).with_suffix(".json")).write_text(json.dumps(results, indent=2) + "\n")
    within = results["memory_bytes"] <= MAX_MEMORY_BYTES and results["core_share"] <= MAX_CORE_SHARE
    return 0 if within else 1


def _measure(process: psutil.Process, record: RunRecord) -> dict[str, float]:
    started = time.monotonic()
    while True:
        try:
            page = _scrape()
            break
        except OSError:
            time.sleep(0.2)
    first = time.monotonic() - started
    before = sum(process.cpu_times()[:2])
    for number in range(SCRAPES):
        if number % 4 == 0:
            _play_round(record, ROUNDS + 1 + number)
        page = _scrape()
    per_scrape = (sum(process.cpu_times()[:2]) - before) / SCRAPES
    return {
        "nodes": NODES,
        "rounds": ROUNDS,
        "seconds_to_first_scrape": round(first, 2),
        "series": sum(not line.startswith("#") for line in page.splitlines()),
        "page_bytes": len(page),
        "cpu_seconds_a_scrape": round(per_scrape, 4),
        "core_share": round(per_scrape / SCRAPE_INTERVAL_SECONDS, 4),
        "memory_bytes": process.memory_info().rss,
    }


if __name__ == "__main__":
    sys.exit(main())
