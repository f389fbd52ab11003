"""The process that looks at samples, and those who wait for it, when things go wrong."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from federation.data.description import describe_dataset
from federation.judgement import sample_process
from federation.judgement.sample_process import DatasetUse, Verdict, look_at_samples
from federation.settings import PolicyConfig

pytestmark = pytest.mark.slow

_REPORT = (
    'open(sys.argv[1] + \'/verdicts\', \'a\').write(\'{"error": "", "lasts": true, "warnings": []}\\n\')'
)


def _look(data: Path, scratch: Path, *sites: str) -> list[Verdict]:
    policy = PolicyConfig(size="tiny")
    return look_at_samples(
        [(DatasetUse(data / s, policy, scratch), describe_dataset(data / s)) for s in sites], scratch
    )


def _as(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have the process run `code` instead."""
    monkeypatch.setattr(sample_process, "_COMMAND", (sys.executable, "-c", f"import os, sys, time\n{code}"))


def test_a_process_of_its_own_looks_at_samples_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    assert _look(data, tmp_path, "site-a", "site-b") == [Verdict("", lasts=True, warnings=())] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["vlm-tiny-v1"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("os.kill(os.getpid(), 11)", "ended with SIGSEGV; encode its videos anew with h264"),
        ("os.kill(os.getpid(), 9)", "ended with SIGKILL; free some memory"),
        ("print('no such module'); sys.exit(3)", "ended with code 3; the log here says more"),
        ("", "ended with code 0"),
    ],
)
def test_a_process_that_dies_is_one_line_that_is_not_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, text: str
) -> None:
    _as(monkeypatch, code)
    (verdict,) = _look(data, tmp_path, "site-a")
    assert verdict.error.startswith(f"dataset {data / 'site-a'}: the look at its samples {text}")
    assert not verdict.lasts
    assert list(tmp_path.iterdir()) == []


def test_the_one_that_it_was_looking_at_is_blamed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as(monkeypatch, f"{_REPORT}; sys.stdout.flush(); os._exit(3)")
    monkeypatch.setattr(sample_process, "_COMMAND", (sys.executable, "-c", f"import os, sys\n{_REPORT}\n"))
    good, bad = _look(data, tmp_path, "site-a", "site-b")
    assert good == Verdict("", lasts=True, warnings=())
    assert "site-b: the look at its samples ended" in bad.error


def test_a_process_that_takes_too_long_is_killed_with_its_children(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    ready = f"pid = os.fork(); pid and open({str(child)!r}, 'w').write(str(pid))"
    _as(monkeypatch, f"{ready}; time.sleep(600)")
    monkeypatch.setattr(sample_process, "_MAX_SECONDS", 10.0)
    started = time.monotonic()
    (verdict,) = _look(data, tmp_path / "scratch", "site-a")
    assert time.monotonic() - started < 240
    assert "took longer than 10 s; end other programs here, the next join tries it again" in verdict.error
    assert not verdict.lasts
    _wait_until_gone(int(child.read_text()))


def test_a_process_nobody_waits_for_ends_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".samples-x"
    folder.mkdir()
    code = (
        "import sys, threading, time; from pathlib import Path\n"
        "from federation.judgement import sample_process as s\n"
        "threading.Thread(target=s._end_with_input, args=(Path(sys.argv[1]),), daemon=True).start()\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()  # as the death of whoever started it does
    assert process.wait(240) == 1
    assert not folder.exists()


def test_the_hub_is_not_asked_but_for_a_pretrained_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("PYTHONPATH", "mine")
    environment = sample_process._environment(tmp_path, is_hub_asked=False)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HF_DATASETS_CACHE"] == str(tmp_path / "arrow")
    assert environment["PYTHONPATH"].endswith(f"{os.pathsep}mine")
    assert "HF_HUB_OFFLINE" not in sample_process._environment(tmp_path, is_hub_asked=True)


def test_what_processes_that_were_killed_left_is_removed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / ".samples-old", tmp_path / ".samples-new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    _as(monkeypatch, "")
    _look(data, tmp_path, "site-a")
    assert list(tmp_path.iterdir()) == [new]


def test_a_scratch_that_cannot_be_written_is_one_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        Exception, match=r"scratch .*file/scratch: cannot be written \(Not a directory\); make"
    ):
        _look(data, tmp_path / "file" / "scratch", "site-a")


def _wait_until_gone(pid: int) -> None:
    give_up_at = time.monotonic() + 240
    while time.monotonic() < give_up_at:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")
