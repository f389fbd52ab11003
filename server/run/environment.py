"""What a run ran on, for its record: versions and the machine, nothing that names a person or a place."""

import os
import platform

from federation.versions import versions

__all__ = ["describe_environment"]


def describe_environment() -> dict[str, str | int]:
    """Versions, operating system, processor and memory of the server."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        **versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count() or 0,
        "memory_bytes": memory,
    }
