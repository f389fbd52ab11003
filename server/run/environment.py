"""What a run runs on: its folders and, for its record, versions and the machine, but no names."""

import os
import platform
from pathlib import Path

from federation.errors import ConfigError
from federation.versions import versions

__all__ = ["describe_environment", "folder_of"]


def describe_environment() -> dict[str, str | int]:
    """Return versions, operating system, processor and memory of the server."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        **versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count() or 0,
        "memory_bytes": memory,
    }


def folder_of(variable: str) -> Path:
    """Return the folder that the environment names, or raise `ConfigError`."""
    if not os.environ.get(variable):
        raise ConfigError(f"environment variable {variable} is not set: give it a folder")
    return Path(os.environ[variable])
