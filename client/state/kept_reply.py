"""The newest reply of this site, kept until the next one: a train request is answered once.

A request comes again when the server cannot know whether this site still has it, as after a gap in the
network that outlasted the lease of its heartbeat. To train again would cost the round its time and, with
noise of the site's own, would be a second release. `client/round.py` calls this. A request is known by all
that its answer depends on (`TrainRequest.key`), so the same round after a rollback is another one. Reading
needs no torch: a kept reply is sent seconds after the request.
"""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from federation.errors import FederationError
from federation.files import write_atomically
from federation.logs import get_logger
from federation.messages import HEADER, METRICS, UPDATE

__all__ = ["keep_reply", "load_reply", "scratch_for_one"]

_FILE, _LOCK_FILE = "reply.safetensors", "round.lock"
_SECONDS_BETWEEN_TRIES = 0.5
_log = get_logger("client.state.kept_reply")


def keep_reply(scratch: Path, key: str, reply: RecordDict) -> None:
    """Keep `reply` as the answer to the request `key`, in the place of the one before, flushed to the disk.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    arrays = {name: array.numpy() for name, array in reply.array_records[UPDATE].items()}
    records = {HEADER: dict(reply.config_records[HEADER]), METRICS: dict(reply.metric_records[METRICS])}
    metadata = {"key": key, "records": json.dumps(records)}
    write_atomically(scratch / _FILE, lambda staging: save_file(arrays, staging, metadata))


def load_reply(scratch: Path, key: str) -> RecordDict | None:
    """Return the reply that was kept for the request `key`; None if there is none that could be read."""
    file = scratch / _FILE
    if not file.exists():
        return None
    try:
        with safe_open(file, "np") as kept:
            metadata = kept.metadata() or {}
            if metadata.get("key") != key:
                return None
            update = ArrayRecord({name: Array(kept.get_tensor(name)) for name in sorted(kept.keys())})
        records = json.loads(metadata["records"])
        return RecordDict(
            {
                UPDATE: update,
                HEADER: ConfigRecord(records[HEADER]),
                METRICS: MetricRecord(records[METRICS]),
            }
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        _log.warning("%s cannot be read and is dropped: %s", _FILE, error)
        return None


@contextmanager
def scratch_for_one(scratch: Path, give_up_at: float) -> Iterator[None]:
    """Hold this site's scratch for this process alone; what it keeps has one writer.

    A SuperNode that was killed leaves its training behind for some seconds, and the next one may be asked for
    the same round meanwhile.

    Args:
        give_up_at: by `time.monotonic`.

    Raises:
        FederationError: another process still holds it then.
    """
    with (scratch / _LOCK_FILE).open("a") as lock:  # closing it frees it, and so does the process's end
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    _log.warning("another process of this site still trains; this one waits for it")
                told = True
            if time.monotonic() >= give_up_at:
                raise FederationError("another process of this site still trains; restart the SuperNode")
            time.sleep(_SECONDS_BETWEEN_TRIES)
        yield
