"""The doctor: what would go wrong at this site, reported before the first round.

One line for each check: the level, the thing, its value and, where something is wrong, the fix.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from client.doctor.check import Check
from client.doctor.connection import check_superlink
from client.doctor.dataset import check_dataset
from client.doctor.device import check_device
from client.doctor.machine import check_ca, check_key, check_scratch, check_software
from client.doctor.samples import check_samples
from federation.addresses import parse_address
from federation.data.cameras import parse_camera_names
from federation.data.description import DatasetDescription, find_datasets
from federation.errors import ConfigError, DatasetError, FederationError
from federation.settings import PolicyConfig

__all__ = ["examine_site"]


def examine_site(
    dataset: Path,
    *,
    cameras: str = "",
    policy: PolicyConfig | None = None,
    camera_names: str = "",
    full: bool = False,
    scratch: Path | None = None,
    key: Path | None = None,
    ca: Path | None = None,
    superlink: str | None = None,
    gpu_bytes: int | None = None,
) -> bool:
    """Print the table of all checks; return whether none found an error.

    Args:
        dataset: a LeRobot v3 dataset, or a folder of some.
        cameras: those of the run configuration, separated by commas; "": the usual ones.
        policy: all that the run asks of a dataset, if that is known; then `cameras` is not looked at.
        camera_names: this site's names for them, where they cannot be told: "top=phone,wrist=none".
        full: decode every frame of every video.
        scratch: the SuperNode's; what it, `key`, `ca` and `superlink` ("host:port") are is left out if None.
        gpu_bytes: what the run's training takes of a GPU's memory, if that is known.

    Raises:
        ConfigError: `camera_names` or `superlink` is malformed, or `superlink` comes without `ca`.
    """
    address = _parse_address(superlink) if superlink else None
    if superlink and not ca:
        raise ConfigError("--superlink needs --ca: the authority's certificate, ca.crt")
    wanted = policy or PolicyConfig(cameras=cameras or PolicyConfig().cameras)
    names = parse_camera_names(camera_names)
    failed = False
    looks = _look_at_data(dataset, wanted, policy is not None, names, full, scratch)
    for check in chain(looks, _look_at_machine(scratch, key, ca, address, gpu_bytes)):
        print(f"{check.level:<8} {check.what:<11} {check.text}", flush=True)
        failed |= check.level == "error"
    print("this site is not ready: fix the errors above" if failed else "this site is ready")
    return not failed


def _look_at_data(
    dataset: Path,
    policy: PolicyConfig,
    is_known: bool,
    camera_names: Mapping[str, str],
    full: bool,
    scratch: Path | None,
) -> Iterator[Check]:
    good: dict[Path, DatasetDescription] = {}
    for root in _datasets(dataset):
        checks, description = check_dataset(
            root, policy.camera_names, camera_names, full, policy if is_known else None
        )
        yield from checks
        if description and not any(check.level == "error" for check in checks):
            good[root] = description
    if good:
        if sys.stderr.isatty():
            print("looking at samples as training does: ten seconds or more", file=sys.stderr)
        # One that cannot be written has a line of `check_scratch`.
        cache = scratch if scratch and os.access(scratch, os.W_OK) else None
        yield from check_samples(good, policy.camera_names, camera_names, cache)


def _look_at_machine(
    scratch: Path | None,
    key: Path | None,
    ca: Path | None,
    superlink: tuple[str, int] | None,
    gpu_bytes: int | None,
) -> Iterator[Check]:
    if scratch:
        yield from check_scratch(scratch)
    if key:
        yield from check_key(key)
    if ca:
        yield from check_ca(ca)
    if superlink and ca:
        yield from check_superlink(*superlink, ca)
    yield from check_software()
    yield from check_device(gpu_bytes)


def _parse_address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except FederationError as error:
        raise ConfigError(f"--superlink {error}") from None


def _datasets(folder: Path) -> list[Path]:
    """Return the datasets in `folder`, or `folder` itself, so that `check_dataset` reports what it lacks."""
    try:
        return list(find_datasets(folder).values())
    except (DatasetError, OSError):
        return [folder]
