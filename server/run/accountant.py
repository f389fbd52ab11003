"""What a run has cost each site of its privacy so far: the server's ledger, and how it is shown.

Under local noise every train request that is sent may bring a release, also one sent again to a node that
came back: whether the site answered with the reply it had kept is for the site's own ledger to say. Under
central noise a round is one release for every node asked in it: some update of it may be in the sum.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from federation.errors import FederationError
from federation.privacy_budget import NOT_COVERED, epsilon
from federation.release_ledger import LEDGER_FILE, Release, append_release, read_ledger
from federation.settings import PrivacyConfig

__all__ = ["check_ledger", "count_requests", "format_max_epsilon", "privacy_spent"]


def count_requests(config: PrivacyConfig, folder: Path, round_: int, nodes: Iterable[str]) -> None:
    """Write into the ledger of the run in `folder` that `nodes` are about to be sent a train request.

    Raises:
        FederationError: it cannot be written: nobody may be asked.
    """
    if config.mode != "none":
        release = Release(folder.name, round_, tuple(nodes), config.noise_multiplier)
        append_release(folder / LEDGER_FILE, release)


def check_ledger(config: PrivacyConfig, folder: Path) -> None:
    """Raise a `FederationError` if the run in `folder` is to go on without the ledger that it began with."""
    ledger = folder / LEDGER_FILE
    if config.mode != "none" and not ledger.exists():
        raise FederationError(
            f"{ledger} is missing: what the rounds before released cannot be counted; put it back, or start "
            "a new run"
        )


def privacy_spent(config: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """Return `{"mode", "delta", "epsilon": {node: value}, "not_covered"}`; a value is None beyond a million.

    Args:
        config: the run's, flat.
        folder: of the run.

    Returns:
        None for a run without privacy, and where no ledger can tell.
    """
    ledger_file = folder / LEDGER_FILE
    if config.get("privacy.mode", "none") == "none" or not ledger_file.exists():
        return None
    noise, delta = config["privacy.noise_multiplier"], config["privacy.delta"]
    ledger = read_ledger(ledger_file)
    if ledger.unreadable and not ledger.nodes:
        return None
    spent = {node: epsilon(ledger.count(noise, node=node), delta) for node in ledger.nodes}
    return {
        "mode": config["privacy.mode"],
        "delta": delta,
        "epsilon": {node: value if value < float("inf") else None for node, value in spent.items()},
        "not_covered": NOT_COVERED,
    }


def format_max_epsilon(privacy: Mapping[str, Any]) -> str:
    """Return what the node with the most releases has spent, in words."""
    values = privacy["epsilon"].values()
    most = "beyond a million" if None in values else f"{max(values, default=0.0):.2f}"
    return f"epsilon {most} of the updates alone, at delta {privacy['delta']:g}, {privacy['mode']} noise"
