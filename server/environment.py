"""What a run ran on, for its record: versions and the machine, nothing that names a person or a place."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["describe_environment", "versions"]

_PACKAGES = ("flwr", "lerobot", "torch", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's figures, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_environment() -> dict[str, str | int]:
    """Versions, operating system, processor and memory of the server."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        **versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count() or 0,
        "memory_bytes": memory,
    }
