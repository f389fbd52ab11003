"""Aggregation of 2, 8 and 32 nodes at 100 M parameters, against Flower's own, in the same call.

    python -m tests.benchmarks.aggregation [--out tests/benchmarks/aggregation.json]

Each case runs in a process of its own, with the threads it takes by default (Flower's NumPy takes one). Ours
takes replies as the server does: one by one, verified (sizes, hash, finiteness, norm), decoded, added,
dropped. Flower's `aggregate_arrayrecords` needs all replies first and verifies none, so ours is given with
and without its verification. Making the replies is not timed; memory is the peak resident size above that
before the first reply. Also printed: encode and decode against a copy of the same bytes, on one core. Needs
20 GB of memory for 32 nodes.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NODES = (2, 8, 32)
TENSORS, VALUES = 61, 1_638_400  # 61 tensors of 1280 x 1280: 99.9 M parameters, as SmolVLA trains
CASES = ("flower", "ours fp32", "ours int8")


def _tensors() -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    for i in range(TENSORS):
        yield f"layer.{i}.weight", torch.randn(1280, VALUES // 1280, generator=generator).mul_(1e-4)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_flower(nodes: int) -> dict[str, float]:
    """Flower's weighted mean over `nodes` fp32 replies that are all in memory."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    before = _peak_bytes()
    replies = [
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(tensor.numpy().copy()) for name, tensor in _tensors()}),
                "metrics": MetricRecord({"num-examples": 10 + node}),
            }
        )
        for node in range(nodes)
    ]
    started = time.perf_counter()
    aggregate_arrayrecords(replies, "num-examples")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "verify_seconds": 0.0, "peak_bytes": _peak_bytes() - before}


def run_ours(nodes: int, codec: str) -> dict[str, float]:
    """The project's streaming mean over `nodes` replies that arrive one by one."""
    import torch
    from flwr.app import Array, ArrayRecord, ConfigRecord

    from federation.wire.payload import Header, open_payload, pack_tensors
    from server.aggregation.collector import WeightedMean, apply_update

    record, header_record, sealed = pack_tensors(_tensors(), Header(codec, "benchmark", 1, ""))
    header = dict(header_record)
    arrays = {name: array.data for name, array in record.items()}
    shapes = {f"layer.{i}.weight": torch.Size([1280, VALUES // 1280]) for i in range(TENSORS)}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    del record
    before = _peak_bytes()
    started = time.perf_counter()
    mean = WeightedMean(shapes)
    adding, verifying = time.perf_counter() - started, 0.0
    for node in range(nodes):
        reply = ArrayRecord(
            {
                name: Array("uint8", (len(data) - 128,), "numpy.ndarray", bytes(bytearray(data)))
                for name, data in arrays.items()
            }
        )
        started = time.perf_counter()
        update = open_payload(reply, ConfigRecord(header), shapes, sealed)
        update.norm()  # the server judges it
        verified = time.perf_counter()
        mean.add(update, 10 + node)
        verifying += verified - started
        adding += time.perf_counter() - verified
        del reply, update
    started = time.perf_counter()
    apply_update(mean, weights, None)
    adding += time.perf_counter() - started
    return {"seconds": adding, "verify_seconds": verifying, "peak_bytes": _peak_bytes() - before}


def run_codecs() -> dict[str, dict[str, float]]:
    """Encode and decode speed of each codec, in fp32 bytes a second, over that of a copy."""
    from federation.wire.codec import decode, encode

    tensors = [tensor for _, tensor in _tensors()]
    fp32_bytes = sum(tensor.numel() * 4 for tensor in tensors)

    def speed(work: Any) -> float:
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            for i in range(TENSORS):
                work(i)
            best = min(best, time.perf_counter() - started)
        return fp32_bytes / best

    copy = speed(lambda i: tensors[i].clone())
    result: dict[str, dict[str, float]] = {}
    for codec in ("fp32", "bf16", "int8", "int4"):
        encoded = [encode(tensor, codec) for tensor in tensors]
        encoding = speed(lambda i, c=codec: encode(tensors[i], c)) / copy
        decoding = speed(lambda i, c=codec, e=encoded: decode(e[i], tensors[i].shape, c)) / copy
        result[codec] = {
            "bytes_of_fp32": sum(payload.size for payload in encoded) / fp32_bytes,
            "encode_of_copy": encoding,
            "decode_of_copy": decoding,
            "both_of_two_copies": 2 / (1 / encoding + 1 / decoding),
        }
    return result


def _work(case: str, nodes: int) -> Any:
    if case == "codecs":
        import torch

        torch.set_num_threads(1)
        return run_codecs()
    return run_flower(nodes) if case == "flower" else run_ours(nodes, case.split()[1])


def _in_own_process(case: str, nodes: int) -> Any:
    command = [sys.executable, "-m", "tests.benchmarks.aggregation", "--case", case, "--nodes", str(nodes)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    """Run every case, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/aggregation.json"))
    parser.add_argument("--case", choices=[*CASES, "codecs"], help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_work(arguments.case, arguments.nodes)))
        return
    result: dict[str, Any] = {"parameters": TENSORS * VALUES, "codecs": _in_own_process("codecs", 0)}
    for codec, figures in result["codecs"].items():
        print(codec, {name: round(value, 3) for name, value in figures.items()})
    for nodes in NODES:
        figures = {case: _in_own_process(case, nodes) for case in CASES}
        flower = figures["flower"]
        for case in CASES:
            mine = figures[case]
            mine["speed_of_flower"] = flower["seconds"] / mine["seconds"]
            verified = mine["seconds"] + mine["verify_seconds"]
            mine["speed_of_flower_with_verification"] = flower["seconds"] / verified
            mine["peak_of_flower"] = mine["peak_bytes"] / flower["peak_bytes"]
            print(
                f"{nodes} nodes, {case}: {mine['seconds']:.1f} s, verified {verified:.1f} s, "
                f"{mine['peak_bytes'] / 1e9:.2f} GB; speed {mine['speed_of_flower']:.2f} of Flower's, "
                f"verified {mine['speed_of_flower_with_verification']:.2f}, "
                f"memory {mine['peak_of_flower']:.2f}"
            )
        result[f"{nodes} nodes"] = figures
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
