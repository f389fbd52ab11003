"""A site's own Prometheus exporter: how far this site is inside a round, while it trains.

    python -m client.supernode.exporter --node site-a --scratch /scratch --port 9401

Flower lets nothing out of a ClientApp before its reply, so the server cannot know this: it sees that the
SuperNode is alive and when the round began. What the ClientApp writes down for its owner
(`client/state/progress.py`) is served here, to the site's own Prometheus or to that of the same machine. No
path and no data leave: a round, steps and a loss do.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import Metric

from client.state.progress import PROGRESS_FILE
from federation.logs import configure, get_logger
from federation.metrics import SITE_METRICS, Samples

__all__ = ["SiteExporter", "main"]

_FIGURES = {
    "site_round": "round",
    "site_local_step": "step",
    "site_local_steps": "local_steps",
    "site_policy_loss": "policy_loss",
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
        try:
            written = file.stat().st_mtime
            progress = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read: %s", PROGRESS_FILE, error)
        else:
            for metric, key in _FIGURES.items():
                samples.add(metric, progress[key], node=self._node)
            samples.add("site_progress_timestamp_seconds", written, node=self._node)
        disk = os.statvfs(self._scratch)
        samples.add("site_scratch_free_bytes", disk.f_bavail * disk.f_frsize, node=self._node)
        yield from samples.families()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve /metrics until stopped; exit code 2 with one line if something is wrong."""
    parser = argparse.ArgumentParser(description="Export this site's progress inside a round to Prometheus.")
    parser.add_argument("--node", required=True, help="the site's name")
    parser.add_argument("--scratch", type=Path, required=True, help="the SuperNode's scratch folder")
    parser.add_argument("--port", type=int, default=9401)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, without TLS")
    options = parser.parse_args(arguments)
    configure()
    if not options.scratch.is_dir():
        print(f"error: --scratch {options.scratch}: no such folder; name the SuperNode's", file=sys.stderr)
        return 2
    registry = CollectorRegistry()
    registry.register(SiteExporter(options.node, options.scratch))
    ProcessCollector(registry=registry)
    try:
        start_http_server(options.port, addr=options.host, registry=registry)
    except OSError as error:
        print(f"error: port {options.port} cannot be listened on ({error.strerror})", file=sys.stderr)
        return 2
    _log.info("progress of %s on http://%s:%d/metrics", options.node, options.host, options.port)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
