"""Prometheus exporter: a long-lived service that shows the newest run and what it runs on.

The ServerApp is a child process that ends with its run, so it is not scraped itself. Everything about a run
comes from its record on disk: a restart of the exporter, or of anything else, loses nothing, and counters go
on where they were.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from prometheus_client.core import Metric

from federation.errors import FederationError
from federation.logs import configure, get_logger
from federation.metrics import Samples, serve_collector
from federation.versions import versions
from server.monitoring.catalogue import CATALOGUE
from server.monitoring.samples import (
    PACKAGES,
    add_last_seen,
    add_learning,
    add_node,
    add_participants,
    add_run,
    add_superlink,
)
from server.monitoring.superlink import SuperLinkWatch
from server.monitoring.totals import RunFollower, RunTotals
from server.run.accountant import privacy_spent
from server.run.recorded import EVENTS_FILE
from server.superlink.control import SuperLink

__all__ = ["Exporter", "serve_metrics"]

_log = get_logger("server.monitoring.exporter")


class Exporter:
    """Turns what is known into metrics at each scrape.

    Args:
        outputs: folder of the runs; the one written to last is shown.
        certificates: PEM files whose expiry is shown under their name without ending.
        superlink: asks SuperLink; None leaves its metrics out.
    """

    def __init__(
        self, outputs: Path, certificates: Sequence[Path] = (), superlink: SuperLinkWatch | None = None
    ) -> None:
        self._outputs, self._certificates, self._superlink = outputs, certificates, superlink
        self._versions = versions()
        self._follower: RunFollower | None = None
        self._lock = threading.Lock()  # Prometheus may scrape while a person looks
        self._warned: dict[str, str] = {}  # thing -> what is wrong with it: warned of once

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; without a readable run only those of the infrastructure."""
        samples = Samples(CATALOGUE)
        superlink = self._superlink.state if self._superlink else None
        with self._lock:
            totals = self._catch_up()
            samples.add("record_readable", totals is not None)
            if totals is not None:
                add_run(samples, totals, self._newest_run or "")
                add_learning(samples, totals)
                add_participants(samples, totals)
                privacy = self._privacy_spent(totals)
                for name, node in sorted(totals.nodes.items()):
                    add_node(samples, name, node, totals, privacy)
            add_last_seen(samples, totals, superlink)
        if superlink is not None:
            add_superlink(samples, superlink)
        self._add_machine(samples)
        yield from samples.families()

    @property
    def _newest_run(self) -> str | None:
        return self._follower.folder.name if self._follower else None

    def _catch_up(self) -> RunTotals | None:
        try:
            files = list(self._outputs.glob(f"*/{EVENTS_FILE}"))
            if not files:
                return None
            folder = max(files, key=lambda file: file.stat().st_mtime).parent
            if not (self._follower and self._follower.folder == folder and self._follower.is_current()):
                self._follower = RunFollower(folder)
            totals = self._follower.catch_up()
        except (OSError, ValueError, TypeError) as error:
            self._warn("the newest run's record", error)
            self._follower = None
            return None
        self._warned.pop("the newest run's record", None)
        return totals

    def _privacy_spent(self, run: RunTotals) -> dict[str, Any] | None:
        try:
            return privacy_spent(run.config, self._outputs / (self._newest_run or ""))
        except FederationError as error:
            self._warn("the privacy ledger", error)
            return None

    def _warn(self, thing: str, error: Exception) -> None:
        if self._warned.get(thing) != str(error):
            _log.warning("%s cannot be read: %s", thing, error)
            self._warned[thing] = str(error)

    def _add_machine(self, samples: Samples) -> None:
        labels = {name: self._versions.get(name, "") for name in PACKAGES}
        samples.add("build_info", 1, **labels)
        disk = os.statvfs(self._outputs)
        samples.add("disk_free_bytes", disk.f_bavail * disk.f_frsize)
        samples.add("disk_size_bytes", disk.f_blocks * disk.f_frsize)
        for file in self._certificates:
            try:
                certificate = x509.load_pem_x509_certificate(file.read_bytes())
            except (OSError, ValueError) as error:
                self._warn(f"certificate {file}", error)
                continue
            self._warned.pop(f"certificate {file}", None)
            expiry = certificate.not_valid_after_utc.timestamp()
            samples.add("certificate_expiry_timestamp_seconds", expiry, certificate=file.stem)


def serve_metrics(
    outputs: Path,
    host: str,
    port: int,
    superlink: str | None = None,
    ca: Path | None = None,
    certificates: Sequence[Path] = (),
) -> None:
    """Serve /metrics, without TLS, until the process is stopped.

    Args:
        superlink: "host:port" of the Control API, which is verified with `ca`; None leaves its metrics out.

    Raises:
        FederationError: a file or folder is missing, or the port is taken.
    """
    configure()
    if not outputs.is_dir():
        raise FederationError(f"--outputs {outputs}: no such folder; name the one runs are kept in")
    if superlink and not (ca and ca.is_file()):
        raise FederationError(f"--ca {ca}: no such file; SuperLink is verified with it (make certs)")
    watch = SuperLinkWatch(SuperLink(superlink, ca)) if superlink and ca else None
    serve_collector(Exporter(outputs, certificates, watch), host, port)
    _log.info("metrics of %s on http://%s:%d/metrics", outputs, host, port)
    threading.Event().wait()
