"""The process that decodes beside training: when it works, and that it ends."""

import time
from pathlib import Path

import psutil
import pytest
import torch

from client import decoding
from client.decoding import decode_beside
from federation.data.sample_cache import SampleCache, open_samples

pytestmark = pytest.mark.slow
GPU = torch.device("cuda")


@pytest.fixture
def samples(data: Path, tmp_path: Path, policy) -> SampleCache:
    return open_samples(data / "site-a", policy.config, tmp_path, 10**9)


def _decoders() -> list[psutil.Process]:
    """What this process has started, but for Python's tracker of resources, which stays."""
    children = psutil.Process().children()
    return [
        child for child in children if "multiprocessing.resource_tracker" not in " ".join(child.cmdline())
    ]


def test_it_waits_for_the_first_step_then_fills_the_cache_and_ends(
    samples: SampleCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_LEAST_PRIORITY", 1)  # beside busy tests the least decodes for minutes
    with decode_beside(samples, GPU) as begin:
        (process,) = _decoders()
        time.sleep(1.5)
        assert not samples._has_record(0)
        begin()
        give_up_at = time.monotonic() + 300
        while not samples._has_record(len(samples) - 1):
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        assert process.nice() == 1
    assert not process.is_running()
    assert samples.is_full


def test_a_full_cache_needs_no_process(samples: SampleCache) -> None:
    samples.fill(lambda: True)
    with decode_beside(samples, GPU) as begin:
        begin()
        assert _decoders() == []


def test_training_on_a_cpu_is_not_slowed_down(samples: SampleCache) -> None:
    with decode_beside(samples, torch.device("cpu")) as begin:
        begin()
        assert _decoders() == []


def test_it_ends_with_the_block_also_where_training_fails(samples: SampleCache) -> None:
    block = decode_beside(samples, GPU)
    block.__enter__()()
    (process,) = _decoders()
    error = RuntimeError("training failed")
    assert not block.__exit__(RuntimeError, error, None)
    assert not process.is_running()
