"""The doctor's look at what trains: a GPU with room for the run's batch, or why there is none."""

import os
import warnings
from pathlib import Path

from client.device import ask_nvidia
from client.doctor.check import Check
from federation.policy.memory import training_gigabytes
from federation.settings import PolicyConfig

__all__ = ["check_device"]

_PCI = Path("/sys/bus/pci/devices")  # a container sees the machine's
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI's vendor, and the class of GPUs
_MIN_DRIVERS = {12: 525, 13: 580}  # CUDA's major release -> the first driver that runs it


def check_device(gpu_bytes: int | None = None) -> list[Check]:
    """Look what training will run on.

    Args:
        gpu_bytes: what the run's training takes of a GPU's memory; None if that is not known.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        return [
            Check("error", "device", f"torch cannot be imported ({error}); install the site's image again")
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old torch prints a paragraph
        if torch.cuda.is_available():
            free, total = (size / 1e9 for size in torch.cuda.mem_get_info(0))
            return [_check_memory(torch.cuda.get_device_name(0), free, total, gpu_bytes)]
    if torch.backends.mps.is_available():
        return [Check("ok", "device", "Apple GPU (MPS)")]
    slow = f"training runs on {os.cpu_count()} CPU cores, slowly"
    return [Check("warning", "device", f"{_explain_no_gpu(torch.version.cuda)}: {slow}")]


def _check_memory(name: str, free: float, total: float, gpu_bytes: int | None) -> Check:
    text = f"{name}: {free:.1f} of {total:.1f} GB free"
    wanted = gpu_bytes / 1e9 if gpu_bytes else training_gigabytes(PolicyConfig(), 1)
    what = "the run's batch" if gpu_bytes else "a batch of 1"
    if total < wanted:
        fix = "ask the operator to lower training.batch_size and raise gradient_accumulation_steps"
        return Check("warning", "device", f"{text}, {what} wants about {wanted:.1f} GB; {fix}")
    if free < wanted:
        fix = "end what uses the rest, nvidia-smi lists it"
        return Check("warning", "device", f"{text}, {what} wants about {wanted:.1f} GB; {fix}")
    return Check("ok", "device", text)


def _explain_no_gpu(cuda: str | None) -> str:
    """Return why torch, made for the release `cuda` of CUDA, has no GPU, with the fix."""
    answer = ask_nvidia("name", "driver_version")
    if len(answer) == 2:
        name, driver = answer
        if cuda is None:
            return f"{name}, but this torch is made for CPUs alone; install the one of requirements.lock"
        wanted = _MIN_DRIVERS.get(int(cuda.partition(".")[0]), 0)
        major = driver.partition(".")[0]
        if major.isdigit() and int(major) < wanted:
            return f"{name}: driver {driver} is too old for CUDA {cuda}; install driver {wanted} or newer"
        return f"{name}: CUDA does not start with driver {driver}; restart this machine, then see nvidia-smi"
    if not _has_nvidia():
        return "no GPU"
    if os.environ.get("FEDERATION_REPAIR"):  # set in a site's container
        return (
            "an NVIDIA GPU that does not reach this container; install NVIDIA's container toolkit and take "
            "the # off COMPOSE_FILE in .env"
        )
    return "an NVIDIA GPU without a driver that answers; install its driver, then see nvidia-smi"


def _has_nvidia() -> bool:
    """Return whether an NVIDIA GPU is plugged in, whatever drives it."""
    try:
        return any(
            (device / "vendor").read_text().startswith(_NVIDIA)
            and (device / "class").read_text().startswith(_DISPLAY)
            for device in _PCI.iterdir()
        )
    except OSError:
        return False
