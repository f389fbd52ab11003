"""TensorBoard event files of scalars, by tensorboardX's record writer.

Not by its `SummaryWriter`: that hands events to a thread, so a kill costs those under way, and where the disk
is full the thread dies unnoticed and the eleventh event after it blocks the run for good.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

__all__ = ["ScalarWriter"]


class ScalarWriter:
    """Writes a new event file in `folder`; TensorBoard reads all files of a folder as one run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{now:.3f}.server"))
        self._write(Event(wall_time=now, file_version="brain.Event:2"))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write `scalars` (tag -> value) of `step`; they are on disk when this returns."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(event.SerializeToString())
        self._file.flush()
