"""Commands in the `run` container: nothing outside its network reaches SuperLink's Control API."""

import subprocess
from collections.abc import Sequence
from typing import Any

from server.superlink.control import PROJECT, ControlError

__all__ = ["run_container"]

_COMMAND = ("docker", "compose", "run", "--rm", "--no-deps")


def run_container(arguments: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Start `docker compose run` with `arguments` and return how it ended.

    Args:
        options: of `subprocess.run`.

    Raises:
        ControlError: Docker cannot be started here.
        subprocess.TimeoutExpired: `options` set a time, and it took longer.
    """
    try:
        return subprocess.run([*_COMMAND, *arguments], cwd=PROJECT, check=False, **options)
    except OSError as error:
        raise ControlError(
            f"docker cannot be started here ({error.strerror}); install it, or name SuperLink with "
            "--control host:port"
        ) from None
