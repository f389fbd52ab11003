"""The ledger of releases under differential privacy: one line for each, on disk before the release is made.

The server keeps one in the folder of each run (`server/run/accountant.py`), a site with its own noise one on
its scratch, over all runs (`client/rules/privacy.py`). Lines are only ever appended. One that cannot be read,
torn by a kill or a full disk, counts as a release: it may have been one.
"""

import fcntl
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from federation.errors import FederationError
from federation.files import flush

__all__ = ["LEDGER_FILE", "Ledger", "Release", "append_release", "read_ledger"]

LEDGER_FILE = "privacy_ledger.jsonl"


@dataclass(frozen=True)
class Release:
    """One release of each of `nodes`."""

    run: str
    round: int
    nodes: tuple[str, ...]
    noise_multiplier: float


@dataclass(frozen=True)
class Ledger:
    """What a ledger holds."""

    releases: tuple[Release, ...] = ()
    unreadable: int = 0  # lines

    @property
    def nodes(self) -> list[str]:
        """Every node that is named, in order."""
        return sorted({node for release in self.releases for node in release.nodes})

    def count(
        self, noise_multiplier: float, node: str | None = None, run: str | None = None
    ) -> Counter[float]:
        """Noise multiplier -> number of releases, of `node` and `run` where they are given.

        Args:
            noise_multiplier: of the run in question. An unreadable line counts for every node and run, with
                the least noise that is known of, this one included.
        """
        counted: Counter[float] = Counter()
        for release in self.releases:
            if run in (None, release.run) and (node is None or node in release.nodes):
                counted[release.noise_multiplier] += 1
        if self.unreadable:
            least = min([noise_multiplier, *(release.noise_multiplier for release in self.releases)])
            counted[least] += self.unreadable
        return counted


def read_ledger(path: Path) -> Ledger:
    """Return the ledger in `path`; an empty one if there is no such file.

    Raises:
        FederationError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # never half of a line that is being written
            return _parse(file.read())
    except FileNotFoundError:
        return Ledger()
    except OSError as error:
        raise FederationError(
            f"{path} cannot be read ({error.strerror}): releases cannot be counted; check its owner"
        ) from None


def append_release(
    path: Path, release: Release, check: Callable[[Ledger], None] = lambda ledger: None
) -> Ledger:
    """Write `release` down and flush it to disk: only then may it be made.

    Args:
        check: raises if what the ledger holds forbids the release; nobody else writes in between.

    Returns:
        The ledger with the release.

    Raises:
        FederationError: it cannot be written.
    """
    line = {"time": round(time.time(), 3), **vars(release)}
    try:
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            check(_parse(content))
            end = b"\n" if content and not content.endswith(b"\n") else b""  # of a torn line
            added = end + json.dumps(line, allow_nan=False).encode() + b"\n"
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        flush(path.parent)
    except OSError as error:
        raise FederationError(
            f"{path} cannot be written ({error.strerror}): nothing leaves uncounted; make room there"
        ) from None
    return _parse(content + added)


def _parse(content: bytes) -> Ledger:
    lines = [line for line in content.split(b"\n") if line.strip()]
    releases = [release for release in map(_parse_line, lines) if release is not None]
    return Ledger(tuple(releases), len(lines) - len(releases))


def _parse_line(line: bytes) -> Release | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match fields:
        case {"run": str(run), "round": int(round_), "nodes": [*nodes], "noise_multiplier": float(noise)}:
            if all(isinstance(node, str) for node in nodes) and 0 < noise < math.inf:
                return Release(run, round_, tuple(nodes), noise)
    return None
