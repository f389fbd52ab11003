"""The whole federation as processes on this machine: SuperLink, SuperExec and one SuperNode for each site.

What `docker compose up` does with containers, this does for a laptop and for the tests: the same programs,
the same TLS, keys and secret. It is a context manager; leaving it stops everything it started.
"""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from certs.issue import verify_server_certificate
from federation.errors import FederationError
from federation.proxies import bypass_loopback
from server.superlink.control import PROJECT, SuperLink, register_supernode

__all__ = ["ClusterError", "LocalCluster", "require_free_port"]

_HOST = "127.0.0.1"
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0


class ClusterError(FederationError):
    """The local federation cannot be started, or lost a process."""


def require_free_port(port: int) -> None:
    """Raise a `ClusterError` unless `port` can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise ClusterError(f"port {port} is in use: stop what holds it, or choose another PORT") from None


class LocalCluster:
    """SuperLink, SuperExec and SuperNodes on the loopback interface.

    Args:
        sites: site name -> its dataset folder; each name must have a key in `certs`.
        evaluation: folder of the held-out datasets.
        outputs: where the ServerApp records runs.
        certs: folder written by `make certs`.
        port: SuperLink's.
        scratch: caches that outlive this cluster; a second start is faster with them.

    Raises:
        ClusterError: the port is taken, a key is missing, or a process does not start.
        CertificateError: the certificate is missing, expired or does not belong to its key.
    """

    def __init__(
        self,
        sites: Mapping[str, Path],
        evaluation: Path,
        outputs: Path,
        certs: Path,
        port: int,
        scratch: Path,
    ) -> None:
        verify_server_certificate(certs)
        for name in sites:
            if not (certs / "sites" / name / "node.key").is_file():
                raise ClusterError(f"{certs / 'sites' / name}: no key there; run make certs SITE={name}")
        require_free_port(port)
        self._sites, self._evaluation, self._outputs = dict(sites), evaluation, outputs
        self._certs, self._port, self._scratch = certs.resolve(), port, scratch.resolve()
        self._state = Path(tempfile.mkdtemp(prefix="so100-"))  # mode 0700
        self.superlink = SuperLink(f"{_HOST}:{port}", self._certs / "superlink" / "ca.crt")
        self.logs = self._state / "logs"
        self.logs.mkdir()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Start everything; return when the SuperNodes run. They may still be connecting."""
        try:
            self._start_superlink()
            self._start_superexec()
            with ThreadPoolExecutor(len(self._sites)) as pool:
                list(pool.map(self._register, self._sites))
            for site, dataset in self._sites.items():
                self.start_supernode(site, dataset)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything and remove the state; copy the logs first if they are wanted."""
        self._stop()

    def progress_file(self, site: str) -> Path:
        """Return where the site's ClientApp writes how far it is in the round."""
        return self._scratch / site / "progress.json"

    def process_id(self, name: str) -> int:
        """Return the process id of `superlink`, `superexec` or a site's SuperNode."""
        return self._processes[name].pid

    def check_processes(self) -> None:
        """Raise a `ClusterError` if a process has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise ClusterError(
                    f"{name} ended with code {process.returncode}: {_last_line(self.logs / f'{name}.log')}"
                )

    def _start_superlink(self) -> None:
        tls = self._certs / "superlink"
        self._start(
            "superlink",
            [
                "flower-superlink",
                *("--control-secret-file", str(self.superlink.secret)),
                *("--host", _HOST, "--port", str(self._port)),
                *self._tls_server_arguments(),
                *("--enable-supernode-auth", "--isolation", "process"),
                *("--superexec-auth-secret-file", str(tls / "superexec.secret")),
            ],
            programs=[PROJECT / "server" / "superlink" / "bin"],
        )
        context = ssl.create_default_context(cafile=str(tls / "ca.crt"))
        # Straight, whatever proxy the environment names.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        give_up_at = time.monotonic() + _START_SECONDS
        while time.monotonic() < give_up_at:
            self.check_processes()
            try:
                with opener.open(f"https://{_HOST}:{self._port}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise ClusterError(f"SuperLink does not answer on port {self._port} after {_START_SECONDS:.0f} s")

    def _start_superexec(self) -> None:
        tls = self._certs / "superlink"
        self._start(
            "superexec",
            [
                "flower-superexec",
                *("--runtime-api-address", f"{_HOST}:{self._port}"),
                *("--root-certificates", str(tls / "ca.crt")),
                *("--superexec-auth-secret-file", str(tls / "superexec.secret")),
            ],
            {
                "FEDERATION_OUTPUTS": str(self._outputs.resolve()),
                "FEDERATION_EVALUATION": str(self._evaluation.resolve()),
                "FEDERATION_SCRATCH": str(self._scratch / "server"),
                "FEDERATION_INSTALLATION": str(PROJECT),
                "HF_DATASETS_CACHE": str(self._scratch / "server" / "arrow"),
            },
        )

    def _register(self, site: str) -> None:
        public_key = (self._certs / "sites" / site / "node.key.pub").read_text(encoding="utf-8")
        register_supernode(self.superlink, public_key, site)

    def start_supernode(self, site: str, dataset: Path) -> None:
        """Start one more SuperNode; it can connect only if its key has been registered."""
        keys = self._certs / "sites" / site
        scratch = self._scratch / site
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)  # decoded frames
        (scratch / "progress.json").unlink(missing_ok=True)
        node_config = f'name="{site}" dataset="{dataset.resolve()}" scratch="{scratch}"'
        runtime_port = self._port + len(self._processes)
        threads = max(1, (os.cpu_count() or 1) // len(self._sites))
        self._start(
            site,
            [
                "flower-supernode",
                *("--superlink", f"{_HOST}:{self._port}"),
                *("--root-certificates", str(keys / "ca.crt")),
                *("--auth-supernode-private-key", str(keys / "node.key")),
                *("--node-config", node_config),
                *("--host", _HOST, "--port", str(runtime_port)),
                *self._tls_server_arguments(),
            ],
            {"OMP_NUM_THREADS": str(threads)},
            # `flower-supernode` and, which that starts, `flwr-clientapp`: the site's own, see
            # client/supernode/bin.
            programs=[PROJECT / "client" / "supernode" / "bin"],
        )

    def _tls_server_arguments(self) -> list[str]:
        """Return the TLS options of the SuperNodes' own loopback API: other users of this machine see it."""
        tls = self._certs / "superlink"
        return [
            *("--ssl-ca-certfile", str(tls / "ca.crt")),
            *("--ssl-certfile", str(tls / "server.crt")),
            *("--ssl-keyfile", str(tls / "server.key")),
        ]

    def _start(
        self,
        name: str,
        command: list[str],
        extra: Mapping[str, str] | None = None,
        programs: Sequence[Path] = (),
    ) -> None:
        binaries = Path(sys.executable).parent
        environment = os.environ | {
            "PATH": os.pathsep.join([*map(str, programs), str(binaries), os.environ.get("PATH", "")]),
            "FLWR_HOME": str(self._state / name),  # a home each: they unpack the app side by side
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            **bypass_loopback(os.environ),
            **(extra or {}),
        }
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            raise ClusterError(f"there is no {command[0]} in {binaries}; run make env")
        with (self.logs / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [program, *command[1:]],
                env=environment,
                cwd=self._state,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: its children are stopped with it
            )

    def _stop(self) -> None:
        for process in self._processes.values():
            _signal_group(process, signal.SIGTERM)
        give_up_at = time.monotonic() + _STOP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, give_up_at - time.monotonic()))
            _signal_group(process, signal.SIGKILL)  # also whatever of its children is left
            process.wait()
        shutil.rmtree(self._state, ignore_errors=True)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"
