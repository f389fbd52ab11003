"""Do bf16 and `torch.compile` help on this CPU? One action chunk in each mode, in one process.

    python -m tests.benchmarks.inference_modes [--sizes tiny smolvla] [--out FILE]

The modes are timed in turn, so that what else runs on the machine strikes all of them; figures are medians,
and their ratio to fp32.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from federation.policy.build import build_policy
from federation.settings import PolicyConfig

CPU = torch.device("cpu")
MODES = ("fp32", "bf16", "compiled")


def time_chunks(policy: Any, mode: str, backend: str = "inductor") -> Callable[[], float]:
    """Return a function that computes one action chunk in `mode` and returns its seconds.

    Args:
        mode: of `MODES`, or "compiled bf16".
        backend: of `torch.compile`.
    """
    config, device = policy.config, next(policy.parameters()).device
    height, width = next(iter(config.image_features.values())).shape[1:]
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Any] = {
        key: torch.rand(1, 3, height, width, generator=generator) for key in config.image_features
    }
    batch["observation.state"] = torch.zeros(1, 6)
    batch["observation.language.tokens"] = torch.full((1, 24), 20)
    batch["observation.language.attention_mask"] = torch.ones(1, 24, dtype=torch.bool)
    batch = {key: value.to(device) for key, value in batch.items()}
    plain = policy.model.sample_actions
    sample = torch.compile(plain, backend=backend) if "compiled" in mode else plain

    def run() -> float:
        policy.model.sample_actions = sample
        started = time.monotonic()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled="bf16" in mode):
            policy.predict_action_chunk(dict(batch)).cpu()  # waits for a GPU
        seconds = time.monotonic() - started
        policy.model.sample_actions = plain
        return seconds

    return run


def measure(policy: Any, chunks: int) -> dict[str, Any]:
    """Seconds for a chunk in each mode, and of the first compiled one."""
    timers = {mode: time_chunks(policy, mode) for mode in MODES}
    first = {mode: timer() for mode, timer in timers.items()}
    seconds: dict[str, list[float]] = {mode: [] for mode in timers}
    for _ in range(chunks):
        for mode, timer in timers.items():
            seconds[mode].append(timer())
    medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    return {
        "seconds": medians,
        "against_fp32": {name: value / medians["fp32"] for name, value in medians.items()},
        "first_compiled_seconds": first["compiled"],
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure each policy and write the JSON."""
    parser = argparse.ArgumentParser(description="bf16 and torch.compile on this CPU.")
    parser.add_argument(
        "--sizes", nargs="*", default=["tiny", "smolvla"], help="policies to draw (%(default)s)"
    )
    parser.add_argument("--chunks", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for size in arguments.sizes:
            policy = build_policy(PolicyConfig(size=size), seed=0, device=CPU, cache=Path(cache))
            found[size] = measure(policy, arguments.chunks)
            print(size, json.dumps(found[size]), flush=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
