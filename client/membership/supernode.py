"""The SuperNode of a site's folder: its command and environment, without Docker as in a container."""

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from client.membership.folder import SiteFolder
from client.rules.owner import RULES_VARIABLE
from client.supernode.refusal import REFUSAL_VARIABLE
from federation.errors import FederationError
from federation.proxies import bypass_loopback

__all__ = ["PROGRAMS", "supernode_command", "supernode_environment"]

PROGRAMS = Path(__file__).resolve().parents[1] / "supernode" / "bin"
_HOST = "127.0.0.1"


def supernode_environment(site: SiteFolder, given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the SuperNode and all that it starts, out of that of this process."""
    path = [str(PROGRAMS), str(Path(sys.executable).parent), given.get("PATH", "")]
    usual = {
        REFUSAL_VARIABLE: str(site.refusal),
        "FLWR_HOME": str(site.path / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "HF_DATASETS_CACHE": str(site.scratch / "arrow"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    own = {"PATH": os.pathsep.join(filter(None, path)), RULES_VARIABLE: str(site.rules)}
    return usual | dict(given) | bypass_loopback(given) | own


def supernode_command(site: SiteFolder, superlink: str, environment: Mapping[str, str]) -> list[str]:
    """Return the command that starts the SuperNode; its own API gets a port that is free now.

    Raises:
        FederationError: Flower is not installed beside this interpreter.
    """
    program = shutil.which("flower-supernode", path=str(PROGRAMS))
    if program is None or shutil.which("flwr", path=environment["PATH"]) is None:
        raise FederationError(f"Flower's programs are not beside {sys.executable}; install this site again")
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    return [
        *(sys.executable, program),
        *("--superlink", superlink),
        *("--root-certificates", str(site.authority)),
        *("--auth-supernode-private-key", str(site.key)),
        *("--node-config", str(site.settings)),
        *("--host", _HOST, "--port", str(port)),
    ]
