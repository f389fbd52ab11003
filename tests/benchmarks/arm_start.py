"""The first rounds of `make arm`, with ClientApps that are forks against ones that start cold.

    python -m tests.benchmarks.arm_start [--rounds 20] [--data data/arm] [--out FILE]

Both ways run `configs/arm.toml` for `--rounds` rounds, without driving. `seconds` are those of all rounds,
`round` is the median without the first; `same_losses` says whether both ways recorded the very same policy
losses. The data is that of `make arm`, which records it first.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from federation.config import load_run_config
from server.deploy import demo
from server.run.recorded import METRICS_FILE


def main() -> None:
    """Run both ways, print the seconds, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--data", type=Path, default=Path("data/arm"))
    parser.add_argument("--certs", type=Path, default=Path("certs/generated"))
    parser.add_argument("--port", type=int, default=8553)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/arm_start.json"))
    arguments = parser.parse_args()
    ways = {way: _run(way, arguments) for way in ("warm", "cold")}
    losses = [way.pop("policy_losses") for way in ways.values()]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "rounds": arguments.rounds,
        **ways,
        "warm_of_cold": {key: ways["warm"][key] / ways["cold"][key] for key in ways["warm"]},
        "same_losses": losses[0] == losses[1],
    }
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _run(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    os.environ["FEDERATION_WARM_START"] = str(int(way == "warm"))
    changes = {"run.name": way, "run.num_rounds": arguments.rounds, "evaluation.sim_frequency": 0}
    config = load_run_config(Path("configs/arm.toml"), changes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if code := demo.run_demo(
            config, arguments.data, folder, arguments.certs, arguments.port, Console(stderr=True)
        ):
            raise SystemExit(code)
        rounds = json.loads((folder / way / METRICS_FILE).read_text(encoding="utf-8"))["rounds"]
    seconds = [sum(entry["seconds"].values()) for entry in rounds]
    return {
        "seconds": sum(seconds),
        "round": statistics.median(seconds[1:]),
        "policy_losses": [
            [entry["clients"][site]["policy_loss"] for site in sorted(entry["clients"])] for entry in rounds
        ],
    }


if __name__ == "__main__":
    main()
