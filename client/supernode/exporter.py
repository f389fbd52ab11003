"""A site's own Prometheus exporter: how far this site is inside a round, while it trains.

Flower lets nothing out of a ClientApp before its reply, so the server cannot know this: it sees that the
SuperNode is alive and when the round began. What the ClientApp writes down for its owner
(`client/state/progress.py`) is served here, to the site's own Prometheus or to that of the same machine. No
path and no data leave: a round, steps, a loss and what the GPU does do.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import Metric

from client.state.progress import PROGRESS_FILE
from federation.errors import FederationError
from federation.files import read_json_object
from federation.logs import configure, get_logger
from federation.metrics import SITE_METRICS, Samples, serve_collector

__all__ = ["SiteExporter", "serve_progress"]

_FIGURES = {
    "site_round": "round",
    "site_local_step": "step",
    "site_local_steps": "local_steps",
    "site_policy_loss": "policy_loss",
    "site_gpu_utilisation_ratio": "gpu_utilisation",
    "site_gpu_memory_used_bytes": "gpu_memory_bytes",
    "site_gpu_temperature_celsius": "gpu_celsius",
}
_log = get_logger("client.supernode.exporter")


class SiteExporter:
    """Turns `<scratch>/progress.json` into metrics at each scrape."""

    def __init__(self, node: str, scratch: Path) -> None:
        self._node, self._scratch = node, scratch

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; only the disk's before the first step of the first round."""
        samples = Samples(SITE_METRICS)
        file = self._scratch / PROGRESS_FILE
        if progress := read_json_object(file):
            for metric, key in _FIGURES.items():
                if key in progress:
                    samples.add(metric, progress[key], node=self._node)
            with contextlib.suppress(FileNotFoundError):  # the owner leaves
                samples.add("site_progress_timestamp_seconds", file.stat().st_mtime, node=self._node)
        disk = os.statvfs(self._scratch)
        samples.add("site_scratch_free_bytes", disk.f_bavail * disk.f_frsize, node=self._node)
        yield from samples.families()


def serve_progress(node: str, scratch: Path, host: str, port: int) -> None:
    """Serve /metrics, without TLS, until the process is stopped.

    Args:
        node: the site's name.
        scratch: the SuperNode's scratch folder.

    Raises:
        FederationError: there is no such folder, or the port is taken.
    """
    configure()
    if not scratch.is_dir():
        raise FederationError(f"--scratch {scratch}: no such folder; name the SuperNode's")
    serve_collector(SiteExporter(node, scratch), host, port)
    _log.info("progress of %s on http://%s:%d/metrics", node, host, port)
    threading.Event().wait()
