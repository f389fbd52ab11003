"""What nvidia-smi says, as this site reads it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client import gpu_watch
from client.device import ask_nvidia, describe_device, read_gpu
from client.gpu_watch import GpuWatch


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let nvidia-smi print a text; until then there is none."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def set_answer(text: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)

    return set_answer


def test_without_nvidia_smi_it_is_the_processor(answers) -> None:
    assert "cores" in describe_device()
    assert read_gpu() == {}


def test_the_first_gpu_is_read(answers) -> None:
    answers('case "$1" in *=name) echo "NVIDIA H100"; echo "NVIDIA T4";; *) echo "93, 6121, 54";; esac')
    assert describe_device() == "NVIDIA H100"
    assert read_gpu() == {
        "gpu_utilisation": pytest.approx(0.93),
        "gpu_memory_bytes": 6121 * 2**20,
        "gpu_celsius": 54,
    }


@pytest.mark.parametrize(
    ("visible", "asked"), [(None, "0"), ("1", "1"), ("GPU-3f,GPU-7a", "GPU-3f"), ("", None), ("-1,0", None)]
)
def test_it_is_the_gpu_that_torch_takes(
    answers, monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    answers('for each; do case "$each" in --id=*) echo "${each#--id=}";; esac; done')
    assert ask_nvidia("name") == ([asked] if asked else [])


@pytest.mark.parametrize("text", ["exit 9", "echo", "echo nonsense", "echo '[N/A], [N/A], [N/A]'", ":"])
def test_what_it_does_not_know_is_left_out(answers, text: str) -> None:
    answers(text)
    assert read_gpu() == {}


def test_a_watch_sums_up_what_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter(
        [
            {"gpu_utilisation": 0.5, "gpu_celsius": 50.0},
            {"gpu_utilisation": 1.0, "gpu_celsius": 70.0, "gpu_memory_bytes": 3.0},
        ]
    )
    monkeypatch.setattr(gpu_watch, "read_gpu", lambda: next(readings, {}))
    with GpuWatch(seconds=0.001) as gpu:
        while gpu._thread and gpu._thread.is_alive():  # until nvidia-smi has nothing more to say
            time.sleep(0.001)
    assert gpu.summary() == {"gpu_utilisation": 0.75, "gpu_memory_bytes": 3.0, "gpu_celsius": 70.0}


def test_a_watch_of_nothing_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_watch, "read_gpu", lambda: pytest.fail("it looked"))
    with GpuWatch(active=False, seconds=0.001) as gpu:
        time.sleep(0.01)
    assert gpu.summary() == gpu.newest == {}
