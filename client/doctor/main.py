"""The doctor: what would go wrong at this site, said before the first round.

    python -m client.doctor.main --dataset DIR [--full] [--superlink HOST:PORT --ca FILE --key FILE]
                            [--scratch DIR]

One line for each check: the level, the thing, its value and, where something is wrong, the fix. In a site's
container the settings come from the environment (`FEDERATION_DATASET` and so on), so `doctor` alone does.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from client.doctor.check import Check
from client.doctor.connection import check_superlink
from client.doctor.dataset import check_dataset
from client.doctor.machine import check_ca, check_device, check_key, check_scratch, check_software
from client.doctor.samples import check_samples
from federation.data.cameras import parse_camera_names
from federation.data.description import DatasetDescription, find_datasets
from federation.errors import ConfigError, DatasetError
from federation.settings import PolicyConfig

__all__ = ["main"]


def main() -> int:
    """Print the table; exit code 1 if a check found an error, 2 for bad arguments."""
    arguments = _parse_arguments()
    failed = False
    for check in _examine(arguments):
        print(f"{check.level:<8} {check.what:<11} {check.text}", flush=True)
        failed |= check.level == "error"
    print("this site is not ready: fix the errors above" if failed else "this site is ready")
    return int(failed)


def _examine(arguments: argparse.Namespace) -> Iterator[Check]:
    cameras = [name.strip() for name in arguments.cameras.split(",")]
    good: dict[Path, DatasetDescription] = {}
    for root in _datasets(arguments.dataset):
        checks, description = check_dataset(root, cameras, arguments.camera_names, arguments.full)
        yield from checks
        if description and not any(check.level == "error" for check in checks):
            good[root] = description
    if good:
        if sys.stderr.isatty():
            print("looking at samples as training does: ten seconds or more", file=sys.stderr)
        scratch = arguments.scratch
        if scratch and not os.access(scratch, os.W_OK):  # which `check_scratch` has a line for
            scratch = None
        yield from check_samples(good, cameras, arguments.camera_names, scratch)
    if arguments.scratch:
        yield from check_scratch(arguments.scratch)
    if arguments.key:
        yield from check_key(arguments.key)
    if arguments.ca:
        yield from check_ca(arguments.ca)
    if arguments.superlink:
        host, port = arguments.superlink
        yield from check_superlink(host, port, arguments.ca)
    yield from check_software()
    yield from check_device()


def _parse_arguments() -> argparse.Namespace:
    environment = os.environ.get
    parser = argparse.ArgumentParser(
        prog="doctor",
        description="Say what would go wrong at this site. Each option but --full can be given in the "
        "environment: --dataset as FEDERATION_DATASET, and so on.",
    )
    parser.add_argument("--dataset", type=Path, default=environment("FEDERATION_DATASET"), metavar="DIR")
    parser.add_argument(
        "--superlink", type=_address, default=environment("FEDERATION_SUPERLINK"), metavar="HOST:PORT"
    )
    parser.add_argument("--ca", type=Path, default=environment("FEDERATION_CA"), metavar="FILE")
    parser.add_argument("--key", type=Path, default=environment("FEDERATION_KEY"), metavar="FILE")
    parser.add_argument("--scratch", type=Path, default=environment("FEDERATION_SCRATCH"), metavar="DIR")
    parser.add_argument(
        "--cameras",
        default=environment("FEDERATION_CAMERAS") or PolicyConfig().cameras,
        help="those of the run configuration, policy.cameras (default: %(default)s)",
    )
    parser.add_argument(
        "--camera-names",
        type=_camera_names,
        default=environment("FEDERATION_CAMERA_NAMES") or {},
        metavar="POLICY=OWN,...",
        help="this site's name for a camera of the run, where it cannot be told",
    )
    parser.add_argument("--full", action="store_true", help="decode every frame of every video: minutes")
    arguments = parser.parse_args()
    if not arguments.dataset:
        parser.error("--dataset is missing: name the folder of a LeRobot v3 dataset")
    if arguments.superlink and not arguments.ca:
        parser.error("--superlink needs --ca: the authority's certificate, ca.crt of the site's bundle")
    return arguments


def _camera_names(text: str) -> dict[str, str]:
    try:
        return parse_camera_names(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} must be HOST:PORT, e.g. fed.example.org:443")
    return host.strip("[]"), int(port)


def _datasets(folder: Path) -> list[Path]:
    """Return the datasets in `folder`, or `folder` itself, so that `check_dataset` reports what it lacks."""
    try:
        return list(find_datasets(folder).values())
    except (DatasetError, OSError):
        return [folder]


if __name__ == "__main__":
    sys.exit(main())
