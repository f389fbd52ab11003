"""A site that joins as its owner does, from a folder of its own, with the commands that its owner types."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from tests import REPOSITORY

__all__ = ["Owner", "find_secret", "wait_for"]


class Owner:
    """Somebody with a dataset and a folder for the site; `said` is all that the commands printed."""

    def __init__(self, folder: Path, dataset: Path) -> None:
        self.folder, self.dataset, self.said = folder, dataset, ""
        self.started: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str) -> str:
        """Run one command of so100-site; return what it printed."""
        result = subprocess.run(self._command(arguments), capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        self.said += result.stdout + result.stderr
        return result.stdout

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command that stays until `stop`."""
        with log.open("ab") as file:
            command = self._command(arguments)
            self.started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
        return self.started[-1]

    def stop(self) -> None:
        """End what was started, also in a test that failed."""
        for process in self.started:
            process.terminate()
            process.wait(240)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        program = REPOSITORY / "client" / "supernode" / "bin" / "so100-site"
        return [sys.executable, str(program), *arguments, "--folder", str(self.folder)]


def wait_for(condition: Callable[[], bool], log: Path, seconds: float = 120) -> None:
    """Wait until `condition` holds."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, log.read_text()
        time.sleep(0.5)


def find_secret(private: Path, where: Sequence[Path | str]) -> list[str]:
    """Name each of the files and texts that holds the private key, in any form it is written in."""
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = key.private_numbers().private_value
    lines = private.read_bytes().splitlines()
    # The whole lines before the end hold the private number in the file's base64; the short last one is the
    # same padding in every such key.
    whole = [line for line in lines[4:-1] if len(line) == len(lines[1])]
    marks = [number.to_bytes(48), f"{number:096x}".encode(), str(number).encode(), *whole]
    found = []
    for place in where:
        texts = {"text": place.encode()} if isinstance(place, str) else _contents(place)
        found += [name for name, text in texts.items() if any(mark in text for mark in marks)]
    return found


def _contents(place: Path) -> dict[str, bytes]:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {str(file): file.read_bytes() for file in files}
