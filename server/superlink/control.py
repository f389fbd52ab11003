"""SuperLink's Control API over Flower's own HTTP client: register keys, submit a run, ask how it is.

Whoever may use the Control API runs code on the server and on every node. So it asks for a secret
(`server/superlink/wrapper.py`) and is used on the operator's machine only. Flower's command line would start
a Python process for each question, 1.5 s of a core, and answer in prose.
"""

import hashlib
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.serde import user_config_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error.base import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from federation.config import RunConfig, flatten
from federation.errors import FederationError, one_line
from federation.proxies import bypass_loopback
from server.superlink.wrapper import CONTROL_FILE

__all__ = [
    "MAX_RUNS",
    "PROJECT",
    "ControlError",
    "RefusedError",
    "SuperLink",
    "active_run",
    "app_files",
    "connect",
    "online_sites",
    "only_delivers",
    "register_supernode",
    "run_status",
    "start_run",
    "stop_run",
    "submit_run",
    "unregister_supernode",
]

PROJECT = Path(__file__).resolve().parents[2]  # the folder of pyproject.toml: the Flower app
_TIMEOUT_SECONDS = 120.0
MAX_RUNS = 1000  # Flower's own 20 are the newest


class ControlError(FederationError):
    """SuperLink refused, or could not be reached."""


class RefusedError(ControlError):
    """SuperLink answered that the request is at fault: it would answer the same again."""

    def __init__(self, message: str, flower_code: int) -> None:
        super().__init__(message)
        self.flower_code = flower_code  # of `ApiErrorCode`


@dataclass(frozen=True)
class SuperLink:
    """Where SuperLink is, and what it is verified with."""

    address: str  # "host:port"
    ca_certificate: Path

    @property
    def secret(self) -> Path:
        """Return the file of the Control API's secret: it lies beside the certificate."""
        return self.ca_certificate.with_name(CONTROL_FILE)


@dataclass(frozen=True)
class _Bearer:
    """Sends the secret with each request, as Flower's client has it."""

    secret: str

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers["Authorization"] = f"Bearer {self.secret}"
        return call_next(context)


def connect(superlink: SuperLink, timeout_seconds: float = _TIMEOUT_SECONDS) -> ControlHttpClient:
    """Return a client for the Control API, not connected yet; the caller closes it.

    Raises:
        OSError, ValueError: the certificate or the secret cannot be read.
    """
    os.environ.update(bypass_loopback(os.environ))  # httpx takes proxies from nowhere else
    trust = ssl.create_default_context(cadata=superlink.ca_certificate.read_text(encoding="ascii"))
    secret = superlink.secret.read_text(encoding="ascii").strip()
    # Without the interceptor that ends the process where another release of Flower runs there.
    return ControlHttpClient(
        f"https://{superlink.address}", interceptors=[_Bearer(secret)], verify=trust, timeout=timeout_seconds
    )


def register_supernode(superlink: SuperLink, public_key: str, name: str) -> None:
    """Allow the SuperNode that holds the private half of `public_key` to connect. Repeatable.

    Args:
        public_key: in OpenSSH form.

    Raises:
        ControlError: it is no such key, SuperLink refuses it or cannot be reached.
    """
    request = RegisterNodeRequest(public_key=_pem(public_key), name=name)
    try:
        _ask(superlink, "register a key", lambda client: client.RegisterNode(request))
    except RefusedError as error:
        if error.flower_code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
            raise
        if not _nodes_with(superlink, request.public_key):
            reason = f"the key of {name} was revoked, and is taken no second time; so100-site key --new"
            raise RefusedError(f"{reason} makes another", error.flower_code) from None


def unregister_supernode(superlink: SuperLink, public_key: str) -> bool:
    """Shut out the SuperNode that holds the private half of `public_key`; False if SuperLink knows no such.

    It is for good: SuperLink keeps the key in its database and takes it no second time.

    Raises:
        ControlError: it is no key, SuperLink refuses or cannot be reached.
    """
    known = _nodes_with(superlink, _pem(public_key))

    def unregister(client: ControlHttpClient) -> bool:
        for node_id in known:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
        return bool(known)

    return _ask(superlink, "revoke a key", unregister)


def _nodes_with(superlink: SuperLink, key: bytes) -> list[int]:
    """Return the ids of the nodes that may connect with the public `key`."""
    nodes = _list_nodes(superlink)
    return [n.node_id for n in nodes if n.public_key == key and n.status != NodeStatus.UNREGISTERED]


def _list_nodes(superlink: SuperLink) -> Sequence[NodeInfo]:
    nodes: Sequence[NodeInfo] = _ask(
        superlink, "list nodes", lambda client: client.ListNodes(ListNodesRequest())
    ).nodes_info
    return nodes


def online_sites(superlink: SuperLink) -> set[str]:
    """Return the names of the sites whose SuperNodes are connected.

    Raises:
        ControlError: SuperLink cannot be reached.
    """
    return {node.name for node in _list_nodes(superlink) if node.status == NodeStatus.ONLINE}


def submit_run(superlink: SuperLink, config: RunConfig) -> str:
    """Submit a run with `config` and return Flower's run id.

    Raises:
        ControlError: SuperLink refuses the run or cannot be reached.
    """
    return start_run(superlink, app_files(), flatten(config))


def start_run(superlink: SuperLink, files: Mapping[str, bytes | Path], settings: Mapping[str, Any]) -> str:
    """Submit the app of `files` (path inside the app -> content) and return Flower's run id.

    Args:
        settings: override the defaults in the app's pyproject.toml, by dotted key.

    Raises:
        ControlError: SuperLink refuses the run or cannot be reached.
    """
    from flwr.cli.build import build_fab_from_files  # half a second, and only a submission needs it

    bundle, _ = build_fab_from_files(files)
    request = StartRunRequest(
        fab=Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle),
        override_config=user_config_to_proto(dict(settings)),
    )
    return str(_ask(superlink, "start a run", lambda client: client.StartRun(request)).run_id)


def app_files() -> dict[str, bytes | Path]:
    """Return the files of our own app, by their path inside it."""
    packages = (PROJECT / package for package in ("server", "client", "federation"))
    files = [PROJECT / "pyproject.toml", *(file for folder in packages for file in folder.rglob("*.py"))]
    return {file.relative_to(PROJECT).as_posix(): file for file in files}


def run_status(superlink: SuperLink, run_id: str) -> str:
    """Return Flower's status of a run, `running` or `finished:failed`; `unknown` if there is no such run.

    Raises:
        ControlError: SuperLink cannot be reached.
    """
    return _statuses(superlink).get(run_id, "unknown")


def active_run(superlink: SuperLink) -> str | None:
    """Return Flower's id of a run that has not finished, or None.

    Raises:
        ControlError: SuperLink cannot be reached.
    """
    statuses = _statuses(superlink).items()
    return next((run_id for run_id, status in statuses if not status.startswith("finished")), None)


def only_delivers(superlink: SuperLink, run_id: str) -> bool:
    """Return whether a run is one that only delivers a policy (`run.deliver = "only"`).

    Raises:
        ControlError: SuperLink cannot be reached.
    """
    run = _runs(superlink).get(run_id)
    return run is not None and user_config_from_proto(run.override_config).get("run.deliver") == "only"


def stop_run(superlink: SuperLink, run_id: str) -> None:
    """End a run that is active.

    Raises:
        ControlError: it is over already, or SuperLink cannot be reached.
    """
    _ask(superlink, "stop a run", lambda client: client.StopRun(StopRunRequest(run_id=int(run_id))))


def _statuses(superlink: SuperLink) -> dict[str, str]:
    return {
        run_id: ":".join(filter(None, (run.status.status, run.status.sub_status)))
        for run_id, run in _runs(superlink).items()
    }


def _runs(superlink: SuperLink) -> dict[str, Run]:
    """Return SuperLink's runs by their id, the newest first."""
    request = ListRunsRequest(limit=MAX_RUNS)
    runs = _ask(superlink, "list runs", lambda client: client.ListRuns(request)).run_dict.values()
    return {str(run.run_id): run for run in sorted(runs, key=lambda run: run.pending_at, reverse=True)}


def _pem(public_key: str) -> bytes:
    """Return the form in which SuperLink keeps a key; raise ControlError if it cannot be read."""
    try:
        key = serialization.load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = f"public key {one_line(public_key)!r} cannot be read ({one_line(error)})"
        raise ControlError(reason) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ControlError(f"public key {one_line(public_key)!r}: must be that of so100-site key (ECDSA)")
    return public_key_to_bytes(key)


def _ask[T](superlink: SuperLink, what: str, ask: Callable[[ControlHttpClient], T]) -> T:
    """Return what `ask` returns; raise each error of the connection or of SuperLink as a `ControlError`."""
    where = f"SuperLink at {superlink.address}"
    try:
        client = connect(superlink)
        try:
            return ask(client)
        finally:
            client.close()
    except httpx.HTTPStatusError as error:
        status, flower = error.response.status_code, FlowerError.from_json(error.response.text)
        reason = f"{where} refuses to {what}: {flower.message if flower else f'HTTP {status}'}"
        if status == httpx.codes.UNAUTHORIZED:
            reason += f"; its secret is not that of {superlink.secret}: restart it after make certs"
        # One that is not ready yet, or whose disk is full, has a status from 500 on; what stands before it,
        # a gateway, says so without one of Flower's codes.
        if flower and status < httpx.codes.INTERNAL_SERVER_ERROR:
            raise RefusedError(reason, flower.code) from None
        raise ControlError(reason) from None
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise ControlError(f"{where} cannot be reached to {what} ({one_line(error)})") from None
