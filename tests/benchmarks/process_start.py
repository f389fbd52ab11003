"""From a train message to the first step: how long a node takes to start, in a real run over TLS.

    python -m tests.benchmarks.process_start [--out tests/benchmarks/process_start.json]

Flower starts a new process for every message. One site, two rounds of one step, the second is reported:
`message` from sending to the ClientApp's first line (transfer, polling, start of the process), `setup` from
there to the first step (imports, policy, data). `tiny` is the demo's policy; `pretrained` the full-size one,
loaded from a policy folder with random weights that is written first. There is no peer: Flower leaves all of
this to the app.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from federation.config import PolicyConfig, parse_run_config
from federation.policy.build import build_policy
from federation.policy.vlm_folder import vlm_folder
from server.deploy import demo
from server.run.recorded import METRICS_FILE

_SETTINGS = {
    "run.num_rounds": 2,
    "federation.min_nodes": 1,
    "training.local_steps": 1,
    "training.batch_size": 1,
    "training.warmup_steps": 0,
    "training.num_workers": 0,
    "evaluation.eval_frequency": 2,
    "evaluation.quick_episodes": 1,
    "evaluation.frame_stride": 60,
    "evaluation.batch_size": 1,
    "federation.round_deadline_seconds": 1200,
}


def main() -> None:
    """Run both sizes, print the seconds, write the JSON."""
    parser = argparse.ArgumentParser(description="Seconds from a train message to the first step.")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/process_start.json"))
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--certs", type=Path, default=Path("certs/generated"))
    parser.add_argument("--port", type=int, default=8553)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        for dataset in ("site-a", "holdout"):
            (data / dataset).symlink_to((arguments.data / dataset).resolve())
        for size, policy in (("tiny", {"policy.size": "tiny"}), ("pretrained", _write_pretrained(folder))):
            config = parse_run_config(_SETTINGS | policy | {"run.name": size}, "benchmark")
            code = demo.run_demo(config, data, folder, arguments.certs, arguments.port, Console(stderr=True))
            if code:
                raise SystemExit(code)
            run = json.loads((folder / size / METRICS_FILE).read_text(encoding="utf-8"))
            (client,) = run["rounds"][-1]["clients"].values()
            message, setup = client["download_seconds"], client["setup_seconds"]
            result[size] = {"message": message, "setup": setup, "to_first_step": message + setup}
            print(f"{size}: {message:.1f} s + {setup:.1f} s = {message + setup:.1f} s to the first step")
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


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
