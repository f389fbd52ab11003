"""What the GPU does while this site trains, as nvidia-smi sees it; nothing where there is none."""

import statistics
import threading
from types import TracebackType
from typing import Self

from client.device import read_gpu

__all__ = ["GpuWatch"]

_SECONDS = 5.0


class GpuWatch:
    """A context in which a thread looks at the GPU that torch takes from time to time.

    Args:
        active: False looks at nothing: this site trains on something else.
        seconds: between two looks.
    """

    def __init__(self, active: bool = True, seconds: float = _SECONDS) -> None:
        self.newest: dict[str, float] = {}  # as `read_gpu` returned it
        self._seen: list[dict[str, float]] = []
        self._seconds, self._ended = seconds, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True) if active else None

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()

    def summary(self) -> dict[str, float]:
        """Return the mean utilisation (0 to 1), and the most memory (bytes) and degrees Celsius seen."""
        found: dict[str, float] = {}
        for name, combine in (
            ("gpu_utilisation", statistics.mean),
            ("gpu_memory_bytes", max),
            ("gpu_celsius", max),
        ):
            if values := [seen[name] for seen in self._seen if name in seen]:
                found[name] = float(combine(values))
        return found

    def _look(self) -> None:
        while not self._ended.wait(self._seconds):
            self.newest = read_gpu()
            if not self.newest:  # nvidia-smi does not answer: it would take its time to say so again
                return
            self._seen.append(self.newest)
