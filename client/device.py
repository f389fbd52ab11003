"""The device that this site trains on: what it is, and what training took of it.

torch is imported only where it is there already: the answer to a join stays quick.
"""

import os
import platform
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["ask_nvidia", "describe_device", "peak_memory_bytes", "read_gpu"]

_SECONDS = 10.0
# What nvidia-smi calls it -> our name, and how many of our units one of its units is.
_GPU_FIGURES = {
    "utilization.gpu": ("gpu_utilisation", 0.01),
    "memory.used": ("gpu_memory_bytes", 2.0**20),
    "temperature.gpu": ("gpu_celsius", 1.0),
}


def describe_device() -> str:
    """Return the name of the NVIDIA GPU, or else the processor's kind and its number of cores."""
    return next(iter(ask_nvidia("name")), f"{platform.machine()}, {os.cpu_count()} cores")


def read_gpu() -> dict[str, float]:
    """Return what the NVIDIA GPU does now: utilisation (0 to 1), bytes in use by all, degrees Celsius.

    Nothing without one, nor of a value that it does not know.
    """
    answer = ask_nvidia(*_GPU_FIGURES)
    return {
        name: float(value) * unit
        for value, (name, unit) in zip(answer, _GPU_FIGURES.values(), strict=False)
        if value.replace(".", "", 1).isdigit()  # "[N/A]" where the card has no such sensor
    }


def ask_nvidia(*fields: str) -> list[str]:
    """Return what nvidia-smi answers about the GPU that torch takes, a text for each field.

    Nothing without a GPU, or where CUDA_VISIBLE_DEVICES, which nvidia-smi does not regard, hides them all.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first in ("", "-1"):
        return []
    query = f"--query-gpu={','.join(fields)}"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={first}"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = output.strip().splitlines()
    return [text.strip() for text in lines[0].split(",")] if lines else []


def peak_memory_bytes(device: "torch.device") -> int:
    """Return the most memory (bytes) this process has held: the GPU's on CUDA, else its own (resident).

    On Apple's MPS, where torch keeps no peak, it is what is held now.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        import torch

        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): kilobytes on Linux
