"""Block sizes of `int8` and `int4` on a real update: bytes, error and speed.

    python -m tests.benchmarks.block_size [--out tests/benchmarks/block_size.json]

The update is that of a site of the demo after a round's local steps. The error is the root mean square of
what the codec loses, over that of the update; the speed is that of encoding and decoding, over that of a
copy of the fp32 values in the same call. One thread. Needs `make sample-data`; two minutes.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from client.training import run_training_loop, setup_training_components
from federation.config import load_run_config
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.data.sample_cache import open_samples
from federation.policy.build import build_policy, trainable_parameters
from federation.wire import codec
from federation.wire.codec import Blocked, decode, encode, encoded_bytes

BITS = (8, 4)
VALUES = (32, 64, 128, 256, 512, 1024)


def real_update(data: Path) -> dict[str, torch.Tensor]:
    """What site-a of the demo sends in round 1."""
    config = load_run_config(Path("configs/demo.toml"), {"run.num_rounds": 6})
    with tempfile.TemporaryDirectory() as scratch:
        policy = build_policy(config.policy, seed=0, device=torch.device("cpu"), cache=Path(scratch))
        weights = {name: p.detach().clone() for name, p in trainable_parameters(policy).items()}
        statistics = merge_statistics([describe_dataset(data / "site-a").statistics])
        samples = open_samples(data / "site-a", policy.config, Path(scratch) / "samples", 10**9)
        components = setup_training_components(config, policy, weights, statistics, samples, 0)
        return run_training_loop(components, 1, 6, lambda *_: None).update


def measure(update: dict[str, torch.Tensor], blocked: Blocked) -> dict[str, float]:
    """Bytes, error and speed of one block shape."""
    name = "measured"
    codec.BLOCKED[name] = blocked
    lost = total = 0.0
    for tensor in update.values():
        difference = decode(encode(tensor, name), tensor.shape, name) - tensor
        lost += difference.square().sum().item()
        total += tensor.square().sum().item()
    tensor = torch.randn(1280, 1280, generator=torch.Generator().manual_seed(0))
    payload = encode(tensor, name)
    return {
        "bytes_of_fp32": sum(encoded_bytes(t.shape, name) for t in update.values())
        / sum(t.numel() * 4 for t in update.values()),
        "error": math.sqrt(lost / total),
        "encode_of_copy": _seconds(tensor.clone) / _seconds(lambda: encode(tensor, name)),
        "decode_of_copy": _seconds(tensor.clone) / _seconds(lambda: decode(payload, tensor.shape, name)),
    }


def _seconds(work: Any) -> float:
    best = math.inf
    for _ in range(30):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    """Measure every shape, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/block_size.json"))
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    arguments = parser.parse_args()
    update = real_update(arguments.data)
    torch.set_num_threads(1)
    result = {}
    for bits in BITS:
        for values in VALUES:
            figures = measure(update, Blocked(values, bits))
            result[f"int{bits} in blocks of {values}"] = figures
            print(f"int{bits}, {values:4}:", {name: round(value, 4) for name, value in figures.items()})
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
