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


def measure(policy: Any, chunks: int) -> dict[str, Any]:
    """Seconds for a chunk in each mode, and of the first compiled one."""
    config = policy.config
    height, width = next(iter(config.image_features.values())).shape[1:]
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Any] = {
        key: torch.rand(1, 3, height, width, generator=generator) for key in config.image_features
    }
    batch["observation.state"] = torch.zeros(1, 6)
    batch["observation.language.tokens"] = torch.full((1, 24), 20)
    batch["observation.language.attention_mask"] = torch.ones(1, 24, dtype=torch.bool)
    compiled = torch.compile(policy.model.sample_actions)
    plain = policy.model.sample_actions

    def run(sample: Callable[..., Any], bf16: bool) -> float:
        policy.model.sample_actions = sample
        started = time.monotonic()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            policy.predict_action_chunk(dict(batch))
        return time.monotonic() - started

    modes: dict[str, tuple[Callable[..., Any], bool]] = {
        "fp32": (plain, False),
        "bf16": (plain, True),
        "compiled": (compiled, False),
    }
    first = {name: run(*mode) for name, mode in modes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(chunks):
        for name, mode in modes.items():
            seconds[name].append(run(*mode))
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
