"""What the doctor says of a GPU, or of why there is none; one line each."""

from pathlib import Path

import pytest
import torch

from client.doctor import device
from client.doctor.device import check_device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any GPU, whose PCI devices lie in the folder that is returned."""
    monkeypatch.setattr(device, "_PCI", tmp_path)
    monkeypatch.setattr(device, "ask_nvidia", lambda *fields: [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("FEDERATION_REPAIR", raising=False)
    return tmp_path


def _plug_in(folder: Path, vendor: str = "0x10de", kind: str = "0x030200") -> None:
    (folder / "0000:01:00.0").mkdir()
    (folder / "0000:01:00.0" / "vendor").write_text(f"{vendor}\n")
    (folder / "0000:01:00.0" / "class").write_text(f"{kind}\n")


def _warning() -> str:
    (check,) = check_device()
    assert (check.level, check.what) == ("warning", "device")
    text, slowly, _ = check.text.partition(": training runs on ")
    assert slowly
    assert "\n" not in text
    return text


def test_without_a_gpu_training_is_slow(machine: Path) -> None:
    assert _warning() == "no GPU"


@pytest.mark.parametrize(("vendor", "kind"), [("0x1002", "0x030000"), ("0x10de", "0x040300")])
def test_another_makers_gpu_or_an_nvidia_sound_device_is_none(machine: Path, vendor: str, kind: str) -> None:
    _plug_in(machine, vendor, kind)
    assert _warning() == "no GPU"


def test_a_gpu_without_its_driver(machine: Path) -> None:
    _plug_in(machine)
    assert _warning().startswith("an NVIDIA GPU without a driver that answers; install its driver")


def test_a_container_that_no_gpu_reaches(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plug_in(machine)
    monkeypatch.setenv("FEDERATION_REPAIR", "docker compose run --rm supernode repair")
    assert "install NVIDIA's container toolkit and take the # off COMPOSE_FILE in .env" in _warning()


@pytest.mark.parametrize(
    ("driver", "cuda", "message"),
    [
        ("470.82.01", "13.0", "driver 470.82.01 is too old for CUDA 13.0; install driver 580 or newer"),
        ("550.54", "13.0", "driver 550.54 is too old for CUDA 13.0; install driver 580 or newer"),
        ("550.54", "12.8", "CUDA does not start with driver 550.54; restart this machine"),
        ("580.159.04", "13.0", "CUDA does not start with driver 580.159.04; restart this machine"),
        ("550.54", None, "this torch is made for CPUs alone; install the one of requirements.lock"),
    ],
)
def test_a_driver_that_torch_cannot_use(
    machine: Path, monkeypatch: pytest.MonkeyPatch, driver: str, cuda: str | None, message: str
) -> None:
    monkeypatch.setattr(device, "ask_nvidia", lambda *fields: ["NVIDIA RTX 3060", driver])
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert _warning().startswith("NVIDIA RTX 3060")
    assert message in _warning()


@pytest.mark.parametrize(
    ("free", "total", "wanted", "level", "message"),
    [
        (11.5, 12.0, 6.0, "ok", "NVIDIA RTX 3060: 11.5 of 12.0 GB free"),
        (2.0, 12.0, 6.0, "warning", "the run's batch wants about 6.0 GB; end what uses the rest"),
        (3.9, 4.0, 6.0, "warning", "wants about 6.0 GB; ask the operator to lower training.batch_size"),
        (3.0, 3.2, None, "warning", "a batch of 1 wants about 3."),
        (7.5, 8.0, None, "ok", "7.5 of 8.0 GB free"),
    ],
)
def test_a_gpu_is_measured_by_the_runs_batch(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    total: float,
    wanted: float | None,
    level: str,
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA RTX 3060")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * 1e9), int(total * 1e9)))
    (check,) = check_device(None if wanted is None else int(wanted * 1e9))
    assert check.level == level
    assert message in check.text
