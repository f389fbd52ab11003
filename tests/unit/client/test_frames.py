"""In which order the frames of several recordings come."""

import gc
import itertools
import os
from collections import Counter
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from client import frames
from client.frames import FrameStream, load_batches


class _Numbers(Dataset):
    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"frame": index}


def _drawn(shares: list[tuple[int, float]], count: int, seed: int = 1) -> list[int]:
    stream = FrameStream(_Numbers(sum(n for n, _ in shares)), seed=seed, name="", shares=shares)
    return [item["frame"] for item in itertools.islice(stream, count)]


def test_parts_are_drawn_by_their_weights_and_each_frame_of_one_equally_often() -> None:
    drawn = _drawn([(10, 3.0), (90, 1.0)], 4000)
    first = [frame for frame in drawn if frame < 10]
    assert len(first) == pytest.approx(3000, abs=120)
    counts = Counter(first)
    assert len(counts) == 10
    assert max(counts.values()) - min(counts.values()) <= 1
    assert set(drawn) == set(range(100))


def test_the_order_is_the_seeds_however_many_processes_load() -> None:
    shares = [(7, 1.0), (5, 2.0)]
    assert _drawn(shares, 50) == _drawn(shares, 50)
    assert _drawn(shares, 50) != _drawn(shares, 50, seed=2)
    stream = FrameStream(_Numbers(12), seed=1, name="", shares=shares)
    batches = load_batches(stream, batch_size=1, num_workers=2, pin_memory=False)
    shared = [int(batch["frame"][0]) for batch in itertools.islice(batches, 20)]
    assert shared == _drawn(shares, 20)


class _Decoder:
    """Garbage for the collector alone: it refers to itself."""

    def __init__(self, freed_by: Path) -> None:
        self._itself, self._freed_by = self, freed_by

    def __del__(self) -> None:
        with self._freed_by.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")


class _Collecting(_Numbers):
    def __getitem__(self, index: int) -> dict[str, int]:
        gc.collect()
        return super().__getitem__(index)


def test_the_server_cannot_have_more_processes_started_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    loader = frames.DataLoader
    monkeypatch.setattr(frames.os, "cpu_count", lambda: 1)

    def make(*arguments: object, num_workers: int, **options: object) -> object:
        asked.append(num_workers)
        return loader(*arguments, num_workers=0, **options)

    monkeypatch.setattr(frames, "DataLoader", make)
    stream = FrameStream(_Numbers(4), seed=0, name="d")
    next(load_batches(stream, batch_size=2, num_workers=100_000, pin_memory=False))
    assert asked == [1]


def test_no_process_that_loads_frees_what_this_one_opened(tmp_path: Path) -> None:
    freed_by = tmp_path / "freed"
    gc.disable()
    try:
        _Decoder(freed_by)
        stream = FrameStream(_Collecting(12), seed=1, name="")
        next(load_batches(stream, batch_size=1, num_workers=2, pin_memory=False))
    finally:
        gc.enable()
        gc.unfreeze()
    assert freed_by.read_text(encoding="utf-8") == f"{os.getpid()}\n"
