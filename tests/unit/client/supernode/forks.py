"""A program that starts forks as SuperExec does at a site, and prints what they find: a line of JSON each.

    python -m tests.unit.client.supernode.forks PROBE ...

`test_warm_start.py` runs it: the fork server imports torch and LeRobot, once for all of its probes.
"""

import json
import multiprocessing
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

from client.supernode import warm_start


def facts() -> dict[str, Any]:
    """What a fork inherits."""
    ready = sorted({"torch", "datasets", "client.training", "lerobot.policies.factory"} & sys.modules.keys())
    import numpy as np
    import torch

    parent = Path(f"/proc/{os.getppid()}")
    open_files = [str(file.readlink()) for file in (parent / "fd").iterdir()]
    return {
        "imported": ready,
        "cuda": torch.cuda.is_initialized(),
        "devices": [name for name in open_files if name.startswith("/dev/") and name != "/dev/null"],
        "python_threads": threading.active_count(),
        "drawn": [random.random(), float(np.random.random())],
        "name": Path("/proc/self/comm").read_text(encoding="utf-8").strip(),
    }


def openmp() -> dict[str, Any]:
    """Compute with four OpenMP threads, forwards and backwards; a fork of a busy parent would hang here."""
    import torch

    torch.set_num_threads(4)
    matrix = torch.ones(512, 512, requires_grad=True)
    (matrix @ matrix).relu().sum().backward()
    return {"threads": torch.get_num_threads(), "gradient": float(matrix.grad[0, 0])}  # type: ignore


def dataset(root: str, scratch: str) -> dict[str, Any]:
    """Open a dataset as a round does, on a scratch of its own."""
    from federation.data.sample_cache import open_samples
    from federation.policy.build import build_policy_config
    from federation.settings import PolicyConfig

    policy = build_policy_config(PolicyConfig(size="tiny"), Path(scratch))
    samples = open_samples(Path(root), policy, Path(scratch) / "samples", 10**9)
    return {"samples": len(samples), "arrow": len(list(Path(scratch).rglob("*.arrow")))}


def _print(probe: str, arguments: list[str]) -> None:
    print(json.dumps({"facts": facts, "openmp": openmp, "dataset": dataset}[probe](*arguments)), flush=True)


def main() -> None:
    """Run each probe, its arguments after colons, in a fork of its own."""
    warm_start.start_fork_server()
    for argument in sys.argv[1:]:
        probe, *arguments = argument.split(":")
        process = multiprocessing.get_context("forkserver").Process(target=_print, args=(probe, arguments))
        process.start()
        process.join(240)
        assert process.exitcode == 0, f"{probe}: {process.exitcode}"


if __name__ == "__main__":
    main()
