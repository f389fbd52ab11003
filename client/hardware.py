"""What this site trains on, in words, without importing torch: the answer to a join stays quick."""

import os
import platform
import subprocess

__all__ = ["describe_device"]

_SECONDS = 10.0


def describe_device() -> str:
    """Return the name of the first NVIDIA GPU, or else the processor's kind and its number of cores."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        output = ""
    return (output.strip().splitlines() or [f"{platform.machine()}, {os.cpu_count()} cores"])[0].strip()
