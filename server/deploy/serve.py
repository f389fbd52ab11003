"""`so100-server serve`: LeRobot's asynchronous inference with a policy folder, on this machine only."""

import os
import sys
from pathlib import Path

from federation.errors import PolicyError

__all__ = ["serve_policy"]


def serve_policy(folder: Path, port: int) -> None:
    """Become LeRobot's inference server, inside `folder`: a policy may carry its VLM as ./vlm.

    It authenticates nobody and unpickles what it gets, hence the loopback address.

    Raises:
        PolicyError: there is no such folder.
    """
    if not folder.is_dir():
        raise PolicyError(f"{folder}: no such folder; name a run that has finished, or a policy folder")
    os.chdir(folder)
    module = "lerobot.async_inference.policy_server"
    os.execv(sys.executable, [sys.executable, "-m", module, "--host=127.0.0.1", f"--port={port}"])
