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

__all__ = ["describe_device", "peak_memory_bytes"]

_SECONDS = 10.0


def describe_device() -> str:
    """Return the name of the first NVIDIA GPU, or else the processor's kind and its number of cores."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        output = ""
    return (output.strip().splitlines() or [f"{platform.machine()}, {os.cpu_count()} cores"])[0].strip()


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
