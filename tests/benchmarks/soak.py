"""Does anything grow? A hundred rounds of the tiny policy on local processes, memory and files after each.

    python -m tests.benchmarks.soak [--rounds 100] [--out tests/benchmarks/soak.json]

SuperLink keeps its state in a database, as in the containers. After each round: the resident memory of every
long-lived process, the size of the database, of both scratch folders and of the run's folder. `growth` is
the slope of a straight line through the rounds after the tenth, in bytes a round. What a run records must
grow (its events and metrics, a few kilobytes a round); nothing else may. About 25 minutes on two idle cores.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import psutil

from certs.issue import issue_all
from federation.config import parse_run_config
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.integration.faults.cluster import FaultyCluster, events
from tests.supervised import SupervisedRun
from tests.synthetic import record_dataset

SITES = ("site-a", "site-b")
_SETTLED_ROUNDS = 10


def _measure(cluster: FaultyCluster, outputs: Path, run: str, scratch: Path) -> dict[str, int]:
    """Bytes of each thing now."""
    memory = {name: cluster.process_id(name) for name in ("superlink", "superexec", *SITES)}
    memory["serverapp"] = cluster.app("serverapp", "superexec").pid
    database = sum(file.stat().st_size for file in cluster.database.parent.glob("superlink.db*"))
    folder = outputs / run
    return {
        **{f"memory of {name}": psutil.Process(pid).memory_info().rss for name, pid in memory.items()},
        "database": database,
        **{f"scratch of {site}": _size(scratch / site) for site in SITES},
        "checkpoints": _size(folder / "checkpoints"),
        "record": _size(folder) - _size(folder / "checkpoints"),
    }


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/soak.json"))
    arguments = parser.parse_args()
    changes = {
        "run.name": "soak",
        "run.num_rounds": arguments.rounds,
        "training.local_steps": 1,
        "evaluation.eval_frequency": 10,
        "checkpoint.keep_every": 0,
    }
    config = parse_run_config(TINY | changes, "soak")
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        for seed, name in enumerate((*SITES, "holdout")):
            record_dataset(base / name, seed=seed)
        issue_all(base / "certs", hosts=[], sites=list(SITES))
        sites = {name: base / name for name in SITES}
        outputs, scratch = base / "outputs", base / "scratch"
        with FaultyCluster(sites, base / "holdout", outputs, base / "certs", free_port(), scratch) as cluster:
            run = SupervisedRun(cluster, outputs, config)
            samples: list[dict[str, int]] = []
            while run.is_alive():
                run.join(0.5)
                seen = events(outputs / "soak")
                done = sum(event["event"] == "round_finished" for event in seen)
                ended = any(event["event"] == "run_finished" for event in seen)
                if done > len(samples) and done < arguments.rounds and not ended:
                    samples.append(_measure(cluster, outputs, "soak", scratch) | {"round": done})
                    _write(arguments.out, arguments.rounds, samples)  # what there is, should this be stopped
                    print(f"round {done}: database {samples[-1]['database'] / 1e6:.1f} MB", flush=True)
            run.finish()
    for name, slope in _write(arguments.out, arguments.rounds, samples).items():
        size = f"{samples[0][name] / 1e6:9.2f} MB first {samples[-1][name] / 1e6:9.2f} MB last"
        print(f"{name:24} {size} {slope / 1e3:+9.2f} kB a round")


def _write(out: Path, rounds: int, samples: list[dict[str, int]]) -> dict[str, float]:
    """Write the JSON; return the growth of each thing, empty before two rounds have settled."""
    settled = [sample for sample in samples if sample["round"] > min(_SETTLED_ROUNDS, rounds // 2)]
    growth = {}
    if len(settled) > 1:
        numbers = [sample["round"] for sample in settled]
        for name in settled[0].keys() - {"round"}:
            growth[name] = float(np.polyfit(numbers, [sample[name] for sample in settled], 1)[0])
    result = {"rounds": rounds, "growth_bytes_a_round": growth, "samples": samples}
    out.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return growth


if __name__ == "__main__":
    main()
