"""Prove the GPU path on one GPU within minutes; the same code runs with a tiny policy on the CPU.

    python -m tests.gpu.check [--device cuda] [--size full] [--parts abcd] [--out gpu-check.json]
    python -m tests.gpu.check --device cpu --size tiny

(a) a training step beside LeRobot's own; (b) two SuperNodes over TLS on the one GPU, three rounds; (c) the
sample cache against what a step takes; (d) an action chunk in bf16, compiled and not. It brings all it needs:
pictures, a policy of random weights, certificates. Each part is a process with a share of the time: one that
fails, hangs or breaks CUDA costs the others nothing, and what it had measured stands.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from client.device import describe_device
from tests.gpu.setting import Setting

# What each part calls, and the share of the whole time after which it is stopped.
PARTS = {
    "prepare": ("tests.gpu.parts:prepare", 0.25),
    "a": ("tests.gpu.parts:check_steps", 0.4),
    "b": ("tests.gpu.parts:check_federation", 0.5),
    "c": ("tests.gpu.parts:check_loading", 0.2),
    "d": ("tests.gpu.parts:check_inference", 0.3),
}
_SPAWN = multiprocessing.get_context("spawn")
_SECONDS_TO_END = 20.0
_MAX_WORKERS = 8


def run_part(name: str, setting: Setting, seconds: float) -> list[dict[str, Any]]:
    """Return the rows of the part `name`, the last one an error if it did not end well in `seconds`."""
    process = _SPAWN.Process(target=_work, args=(name, PARTS[name][0], setting))
    process.start()
    process.join(max(0.0, seconds))
    ended = not process.is_alive()
    if not ended:
        process.terminate()
        process.join(_SECONDS_TO_END)
        process.kill()
        process.join()
    file = setting.rows(name)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    if not ended:
        rows.append({"what": "stopped", "error": f"did not end in {seconds:.0f} s"})
    elif process.exitcode and not _has_failed(rows):
        rows.append({"what": "ended", "error": f"the process ended with code {process.exitcode}"})
    return rows


def _work(name: str, calls: str, setting: Setting) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that (b) takes its processes along
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    module, function = calls.split(":")
    try:
        getattr(importlib.import_module(module), function)(setting)
    except Exception as error:
        traceback.print_exc()
        setting.report(name, "failed", {"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


def show(found: Mapping[str, Sequence[Mapping[str, Any]]], console: Console) -> None:
    """Print one table of all rows."""
    table = Table("part", "of", "figures")
    for part, rows in found.items():
        for row in rows:
            figures = [f"{key} {_spell(value)}" for key, value in row.items() if key != "what"]
            table.add_row(part, str(row["what"]), "  ".join(figures))
    console.print(table)


def _spell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print the table, write the JSON after each; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description="The GPU path, proved in minutes.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--parts", default="abcd", help="which of them (%(default)s)")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds for all (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"--parts {options.parts}: there is no {min(unknown)}; there are a, b, c and d")
    started = time.monotonic()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        workers = min(_MAX_WORKERS, (os.cpu_count() or 1) // 2) if options.size == "full" else 0
        setting = Setting(options.device, options.size, Path(folder), workers)
        for name in ("prepare", *options.parts):
            left = options.budget - (time.monotonic() - started)
            found[name] = run_part(name, setting, min(left, PARTS[name][1] * options.budget))
            content = {
                "card": describe_device(),
                "date": datetime.now(UTC).date().isoformat(),
                "command": " ".join(["python -m tests.gpu.check", *(arguments or sys.argv[1:])]),
                "seconds": round(time.monotonic() - started, 1),
                "parts": found,
            }
            options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            if name == "prepare" and _has_failed(found[name]):
                break  # there is nothing to work on
    show(found, Console(width=max(150, Console().width)))
    print(f"{describe_device()}: {time.monotonic() - started:.0f} s; written to {options.out}")
    return int(any(map(_has_failed, found.values())))


def _has_failed(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any("error" in row for row in rows)


if __name__ == "__main__":
    sys.exit(main())
