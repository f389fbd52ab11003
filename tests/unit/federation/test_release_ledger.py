import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federation.errors import FederationError
from federation.release_ledger import Ledger, Release, append_release, read_ledger
from tests import REPOSITORY

RELEASE = Release("run", 3, ("site-a", "site-b"), 1.5)


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    assert read_ledger(path) == Ledger()
    later = Release("other", 1, ("site-a",), 0.5)
    assert append_release(path, RELEASE) == Ledger((RELEASE,))
    assert append_release(path, later) == read_ledger(path) == Ledger((RELEASE, later))
    assert read_ledger(path).count(9.0) == Counter({1.5: 1, 0.5: 1})
    assert read_ledger(path).count(9.0, node="site-b") == Counter({1.5: 1})
    assert read_ledger(path).count(9.0, run="other") == Counter({0.5: 1})
    assert read_ledger(path).nodes == ["site-a", "site-b"]


@given(st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"[" * 100_000)
@example(b"1" * 5000)
@example(b'{"run": "r", "round": 1, "nodes": [1], "noise_multiplier": 1.0}')
@example(b'{"run": "r", "round": 1, "nodes": ["a"], "noise_multiplier": NaN}')
@example(b'{"run": "r", "round": 1, "nodes": ["a"], "noise_multiplier": Infinity}')
@example(b'{"run": "r", "round": 1, "nodes": ["a"], "noise_multiplier": 0.0}')
@example(b'{"run": "r", "round": 1, "nodes": ["a"], "noise_multiplier": true}')
def test_whatever_stands_in_it_every_line_counts(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    append_release(path, RELEASE)
    with path.open("ab") as file:
        file.write(damage)
    ledger = append_release(path, RELEASE)
    assert ledger == read_ledger(path)
    lines = sum(bool(line.strip()) for line in damage.split(b"\n"))
    assert ledger.count(2.0).total() == ledger.count(2.0, node="site-b").total() == 2 + lines
    assert set(ledger.count(2.0)) == {1.5}


def test_a_line_that_cannot_be_read_counts_with_the_least_noise_known_of() -> None:
    assert Ledger((RELEASE,), 2).count(0.5, node="other") == Counter({0.5: 2})
    assert Ledger((RELEASE,), 2).count(2.0, run="other") == Counter({1.5: 2})
    assert Ledger((), 1).count(3.0) == Counter({3.0: 1})


def test_a_release_that_is_forbidden_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    append_release(path, RELEASE)

    def forbid(ledger: Ledger) -> None:
        raise FederationError(f"{len(ledger.releases)} are enough")

    with pytest.raises(FederationError, match="1 are enough"):
        append_release(path, RELEASE, forbid)
    assert read_ledger(path) == Ledger((RELEASE,))


def test_the_line_is_on_disk_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes = tmp_path / "ledger", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (sizes.append(path.stat().st_size), real(file)))
    append_release(path, RELEASE)
    assert sizes == [path.stat().st_size] * 2  # of the file and of its folder


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FederationError, match=r"ledger cannot be written \(No space left on device\)"):
        append_release(tmp_path / "ledger", RELEASE)


def test_a_ledger_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    with pytest.raises(FederationError, match="ledger cannot be read"):
        read_ledger(tmp_path / "ledger")


def test_two_processes_do_not_write_over_each_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    code = (
        "import sys; from pathlib import Path; from federation import release_ledger as ledger\n"
        "for n in range(50):\n"
        "    ledger.append_release(Path(sys.argv[1]), ledger.Release('run', n, ('a',), 1.0))"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert read_ledger(path).count(1.0) == Counter({1.0: 100})
    assert read_ledger(path).unreadable == 0
