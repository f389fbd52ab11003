"""What a node says of its time and its device, and what the server makes of it."""

import platform
import subprocess
import sys
import time

import pytest
import torch

from client.device import peak_memory_bytes
from server.run.environment import describe_environment
from server.update_collector import _transfer_seconds


def test_the_way_down_and_up_is_what_the_node_did_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    # Sent 10 s ago; the node had it after 2 s and answered after 7 s.
    split = _transfer_seconds(10.0, received_at=now - 8, answered_at=now - 3)
    assert split["download_seconds"] == pytest.approx(2.0)
    assert split["upload_seconds"] == pytest.approx(3.0)


@pytest.mark.parametrize("clock_error", [-3600.0, 3600.0])
def test_a_wrong_clock_changes_the_split_and_not_the_sum(clock_error: float) -> None:
    now = time.time() + clock_error
    split = _transfer_seconds(10.0, received_at=now - 8, answered_at=now - 3)
    assert sum(split.values()) == pytest.approx(5.0)
    assert min(split.values()) == 0.0


def test_a_node_that_claims_more_time_than_passed_leaves_none_for_the_way() -> None:
    now = time.time()
    assert sum(_transfer_seconds(10.0, received_at=now - 60, answered_at=now).values()) == 0.0


def test_without_a_gpu_the_peak_is_the_processs_memory() -> None:
    code = (
        "import torch; from client.device import peak_memory_bytes as peak; cpu = torch.device('cpu')\n"
        "before = peak(cpu); held = torch.ones(75_000_000); print(before, peak(cpu))"  # 300 MB, touched
    )
    # By a shell in between: Linux counts what a program was started by, which here has loaded much already.
    command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, printed.stdout.split())
    assert before > 50e6  # torch alone is more
    assert after > before + 250e6


def test_the_gpus_own_count_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 8)
    assert peak_memory_bytes(torch.device("cuda")) == 7
    assert peak_memory_bytes(torch.device("mps")) == 8


def test_the_environment_names_versions_and_no_machine() -> None:
    environment = describe_environment()
    assert environment["flwr"] == "1.42.0"
    assert int(environment["memory_bytes"]) > 1e9

    assert platform.node() not in map(str, environment.values())
