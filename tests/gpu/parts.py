"""The parts of the check, each a function of the setting that reports its rows as it gets them."""

import json
import shutil
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from certs.issue import issue_all
from client.gpu_watch import GpuWatch
from client.training import run_training_loop
from federation.data.description import describe_dataset
from federation.data.normalisation import merge_statistics
from federation.policy.build import build_policy, build_processors
from federation.policy.folder import save_policy_folder
from federation.policy.memory import memory_parts
from federation.settings import PolicyConfig
from server.deploy import demo
from server.run.recorded import METRICS_FILE
from tests.benchmarks import step_time
from tests.benchmarks.inference_modes import time_chunks
from tests.gpu.setting import Setting
from tests.ports import free_port
from tests.synthetic import record_dataset

__all__ = ["check_federation", "check_inference", "check_loading", "check_steps", "prepare"]

_CPU = torch.device("cpu")
_MAX_FEDPROX = 1.03
_MIN_COMPUTING = 0.9
_IMPORTED = ("torch", "torchvision", "numpy", "transformers", "lerobot", "flwr", "pandas", "pyarrow", "grpc")


def prepare(setting: Setting) -> None:
    """Record datasets of pictures, draw a policy, issue certificates."""
    data, tall_and_wide = setting.folder / "data", (480, 640) if setting.is_full else (64, 64)
    frames = 150 if setting.is_full else 40
    record_dataset(data / "site-a", episodes=2, frames=frames, codec="image", size=tall_and_wide)
    shutil.copytree(data / "site-a", data / "site-b")
    record_dataset(data / "holdout", episodes=1, frames=40, seed=1, codec="image", size=tall_and_wide)
    config = PolicyConfig(size="smolvla" if setting.is_full else "tiny")
    policy = build_policy(config, seed=0, device=_CPU, cache=setting.folder / "vlm")
    processors = build_processors(policy, merge_statistics([describe_dataset(data / "site-a").statistics]))
    save_policy_folder(setting.folder / "base", policy, processors, "Random weights.\n")
    issue_all(setting.folder / "certs", hosts=[], sites=["site-a", "site-b"])
    imported = {name: getattr(sys.modules.get(name), "__version__", "none") for name in _IMPORTED}
    card = torch.cuda.get_device_name() if setting.device == "cuda" else "cpu"
    setting.report("prepare", card, {"cuda": torch.version.cuda} | imported)


def check_steps(setting: Setting) -> None:
    """(a) Measure a step beside LeRobot's own, its losses beside those of fp32, and its memory."""
    for adapter in ("none", "lora"):
        for batch_size in (16, 64) if setting.is_full else (2,):
            config = setting.config(policy__adapter=adapter, training__batch_size=batch_size)
            bench = setting.bench("a", config, pairs=20 if setting.is_full else 2)
            what = f"{'dense' if adapter == 'none' else adapter}, batch {batch_size}"
            _report_by_itself(setting, "a", what, lambda bench=bench: _step_figures(bench))


def _step_figures(bench: step_time.Bench) -> dict[str, Any]:
    losses, memory, steps = step_time.losses(bench), step_time.peak_memory(bench), step_time.steps(bench)
    ratio = steps["fedprox_over_lerobot"]
    parts = memory_parts(bench.config.policy, bench.config.training.batch_size)
    return {
        "ms a step": 1000 * steps["median_seconds"]["fedprox"],
        "LeRobot's": 1000 * steps["median_seconds"]["lerobot"],
        "FedProx/LeRobot": ratio,
        "aim": f"<= {_MAX_FEDPROX}: {'met' if ratio <= _MAX_FEDPROX else 'missed'}",
        "samples/s": steps["samples_per_second"]["fedprox"],
        "peak GB": memory.get("allocated_gb"),
        "reserved GB": memory.get("reserved_gb"),
        # Of the full size, and without what torch does not count.
        "GB by the formula": sum(parts.values()) - parts["the rest"] if memory else None,
        "loss": losses["autocast"],
        "loss/fp32's": losses["autocast_over_fp32"],
        "gradient's cosine": losses["gradient_cosine"],
    }


def check_federation(setting: Setting) -> None:
    """(b) Run three rounds of two SuperNodes over TLS on this device, warm, with int8 updates.

    Raises:
        RuntimeError: the run failed; the last lines of each process's log are printed.
    """
    steps = 20 if setting.is_full else 2
    batch = 16 if setting.is_full else 2
    config = setting.config(
        run__name="check",
        run__num_rounds=3,
        training__local_steps=steps,
        training__batch_size=batch,
        training__num_workers=min(2, setting.workers),
        evaluation__frame_stride=20,
        evaluation__quick_episodes=1,
        evaluation__batch_size=2,
    )
    outputs = setting.folder / "outputs"
    console = Console(file=sys.stdout, width=150)
    code = demo.run_demo(
        config, setting.folder / "data", outputs, setting.folder / "certs", free_port(), console
    )
    folder = outputs / config.run.name
    if code:
        for log in sorted((folder / "logs").glob("*.log")):
            print(log.name, *log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:], sep="\n  ")
        raise RuntimeError("the federated run failed; see its logs above")
    for entry in json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))["rounds"]:
        sites = entry["clients"].values()
        figures = {f"{phase} s": seconds for phase, seconds in entry["seconds"].items()}
        figures |= {
            f"site's {phase} s": max(site[f"{phase}_seconds"] for site in sites)
            for phase in ("setup", "train", "data", "reply")
        }
        figures["site's peak GB"] = max(site["device_memory_bytes"] for site in sites) / 1e9
        figures["up MB"] = max(site["update_bytes"] for site in sites) / 1e6
        figures["rejected"] = len(entry["refused"]) + len(entry["missing"])
        setting.report("b", f"round {entry['round']}", figures)


def check_loading(setting: Setting) -> None:
    """(c) Compare what the sample cache gives with what a step takes."""
    steps = 50 if setting.is_full else 3
    batch_size = 64 if setting.is_full else 2
    bench = setting.bench("c", setting.config(training__local_steps=steps, training__batch_size=batch_size))
    for what in ("decoding", "from the cache"):
        components = bench.components()
        with GpuWatch(setting.device == "cuda", seconds=1.0) as gpu:
            result = run_training_loop(components, 1, 1, lambda step, metrics: None)
        waiting = result.data_seconds / result.train_seconds
        figures: dict[str, Any] = {
            "samples/s": result.num_examples / result.train_seconds,
            "share waiting for samples": waiting,
            "GPU busy (nvidia-smi)": gpu.summary().get("gpu_utilisation"),
        }
        if what == "from the cache":
            figures["aim"] = (
                f"computing >= {_MIN_COMPUTING}: {'met' if 1 - waiting >= _MIN_COMPUTING else 'missed'}"
            )
        setting.report("c", what, figures)


def check_inference(setting: Setting) -> None:
    """(d) Time an action chunk in fp32, in bf16, and compiled."""
    device = torch.device(setting.device)
    policy = build_policy(setting.config().policy, seed=0, device=device, cache=setting.folder / "vlm")
    for mode in ("fp32", "bf16", "compiled bf16"):
        _report_by_itself(setting, "d", mode, lambda mode=mode: _chunk_figures(policy, mode, setting))


def _chunk_figures(policy: Any, mode: str, setting: Setting) -> dict[str, Any]:
    # Of a tiny policy on a CPU only the tracing is tried: its code would be compiled for a minute.
    timer = time_chunks(policy, mode, "inductor" if setting.is_full else "eager")
    first, *seconds = (timer() for _ in range(20 if setting.is_full else 3))
    return {"ms a chunk": 1000 * statistics.median(seconds), "first one s": first}


def _report_by_itself(setting: Setting, part: str, what: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Report what `measure` finds, or its error: the others go on."""
    try:
        figures = measure()
    except Exception as error:
        figures = {"error": f"{type(error).__name__}: {error}"}
    setting.report(part, what, figures)
    if setting.device == "cuda":
        torch.cuda.empty_cache()
