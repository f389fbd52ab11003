"""The versions that decide what a node computes."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from federation.errors import FederationError

__all__ = ["check_versions", "versions"]

_PACKAGES = ("flwr", "lerobot", "torch", "transformers", "numpy")
_SAME = ("lerobot", "transformers")  # they hold the policy's code: another release may compute another loss


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's figures, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def check_versions(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise a `FederationError` if the policy would be other code at a node; a patch release may differ."""
    for package in _SAME:
        there, here = (found.get(package, "none") for found in (theirs, ours))
        if there.split(".")[:2] != here.split(".")[:2]:
            raise FederationError(
                f"it has {package} {there}, the server {here}: install the federation's release, or its image"
            )
