"""Talking to SuperLink's Control API through Flower's own command line: register nodes, submit a run, look.

Whoever reaches the Control API runs code on the server and on every node, so it is used on the operator's
machine only. Each function takes `flwr_home`, a folder whose `config.toml` (see `write_connection`) says
where SuperLink is.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from federation.config import RunConfig
from federation.errors import FederationError
from federation.proxies import bypass_loopback

__all__ = [
    "PROJECT",
    "ControlError",
    "RefusedError",
    "active_run",
    "count_online",
    "register_supernode",
    "run_status",
    "stop_run",
    "submit_run",
    "unregister_supernode",
    "write_connection",
]

PROJECT = Path(__file__).resolve().parents[1]  # the folder of pyproject.toml: the Flower app
_CONNECTION = "federation"  # the connection's name in config.toml
_ALREADY_REGISTERED = "already in use"
_TIMEOUT_SECONDS = 120


class ControlError(FederationError):
    """SuperLink refused, or could not be reached."""


class RefusedError(ControlError):
    """SuperLink answered that the request is at fault: it would answer the same again."""


def write_connection(flwr_home: Path, address: str, ca_certificate: Path) -> None:
    """Make `flwr_home/config.toml` point to the SuperLink at `address` ("host:port"), verified over TLS."""
    flwr_home.mkdir(parents=True, exist_ok=True)
    (flwr_home / "config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
        f"address = {json.dumps(address)}\nroot-certificates = {json.dumps(str(ca_certificate.resolve()))}\n",
        encoding="utf-8",
    )


def register_supernode(flwr_home: Path, public_key: Path, name: str) -> None:
    """Allow the SuperNode that holds the private half of `public_key` to connect. Repeatable.

    Raises:
        ControlError: SuperLink refuses the key or cannot be reached.
    """
    try:
        _flwr(flwr_home, "supernode", "register", str(public_key), _CONNECTION, "--name", name)
    except ControlError as error:
        if _ALREADY_REGISTERED not in str(error):
            raise


def submit_run(flwr_home: Path, config: RunConfig) -> str:
    """Submit a run with `config` and return Flower's run id.

    Raises:
        ControlError: SuperLink refuses the run or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app"
        _stage_app(app)
        settings_file = Path(folder) / "run.toml"
        with settings_file.open("w", encoding="utf-8") as file:
            for section, settings in asdict(config).items():
                file.write(f"[{section}]\n")
                # A JSON scalar is a TOML scalar too.
                file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        answer = _flwr(flwr_home, "run", str(app), _CONNECTION, "--run-config", str(settings_file))
    return str(answer["run-id"])


def run_status(flwr_home: Path, run_id: str) -> str:
    """Flower's status of a run, e.g. `running` or `finished:failed`; `unknown` if SuperLink has no such run.

    Raises:
        ControlError: SuperLink cannot be reached.
    """
    runs = _flwr(flwr_home, "ls", _CONNECTION)["runs"]
    return next((str(run["status"]) for run in runs if str(run["run-id"]) == run_id), "unknown")


def stop_run(flwr_home: Path, run_id: str) -> None:
    """End a run that is active.

    Raises:
        ControlError: it is over already, or SuperLink cannot be reached.
    """
    _flwr(flwr_home, "stop", run_id, _CONNECTION)


def active_run(flwr_home: Path) -> str | None:
    """Flower's id of a run that has not finished, or None.

    Raises:
        ControlError: SuperLink cannot be reached.
    """
    runs = _flwr(flwr_home, "ls", _CONNECTION)["runs"]
    return next((str(run["run-id"]) for run in runs if not run["status"].startswith("finished")), None)


def count_online(flwr_home: Path) -> int:
    """How many SuperNodes are connected.

    Raises:
        ControlError: SuperLink cannot be reached.
    """
    nodes = _flwr(flwr_home, "supernode", "ls", _CONNECTION)["nodes"]
    return sum(node["status"] == "online" for node in nodes)


def unregister_supernode(flwr_home: Path, public_key: Path) -> bool:
    """Shut out the SuperNode that holds the private half of `public_key`; False if SuperLink knows no such.

    It is for good: SuperLink keeps the key in its database and takes it no second time.

    Raises:
        ControlError: SuperLink refuses or cannot be reached.
    """
    # Flower's command line wants a node id and lists none with its key, so the list is fetched here.
    import httpx
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.proto.control_pb2 import ListNodesRequest
    from flwr.supercore.constant import NodeStatus
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    connections = tomllib.loads((flwr_home / "config.toml").read_text(encoding="utf-8"))["superlink"]
    settings = connections[_CONNECTION]
    key = try_load_public_key(public_key)
    client = ControlHttpClient.from_server_address(
        settings["address"],
        insecure=False,
        root_certificates=Path(settings["root-certificates"]).read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    except (httpx.HTTPError, OSError) as error:
        raise ControlError(f"SuperLink at {settings['address']} cannot be reached ({error})") from None
    finally:
        client.close()
    known = [n.node_id for n in nodes if n.public_key == key and n.status != NodeStatus.UNREGISTERED]
    for node_id in known:
        _flwr(flwr_home, "supernode", "unregister", str(node_id), _CONNECTION)
    return bool(known)


def _stage_app(app: Path) -> None:
    """Copy the app's files to `app`: `flwr run` looks at every file below its folder, `.venv` included."""
    app.mkdir()
    shutil.copy(PROJECT / "pyproject.toml", app)
    for package in ("server", "client", "federation"):
        shutil.copytree(PROJECT / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))


def _flwr(flwr_home: Path, *arguments: str) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("flwr")), *arguments, "--format", "json"]
    environment = os.environ | {"FLWR_HOME": str(flwr_home)} | bypass_loopback(os.environ)
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ControlError(f"flwr {arguments[0]}: no answer from SuperLink in {_TIMEOUT_SECONDS} s") from None
    answer = _last_json(result.stdout)
    if result.returncode != 0 or not answer.get("success"):
        reason = _without_progress(str(answer.get("error-message") or result.stderr or result.stdout))
        kind = RefusedError if _is_refusal(reason) else ControlError
        raise kind(f"flwr {arguments[0]}: {' '.join(reason.split())}")
    return answer


def _is_refusal(reason: str) -> bool:
    """Whether `reason` has the code of an error of the caller's (HTTP 4xx).

    A SuperLink that is not ready yet, whose disk is full or that is not there has a code of another kind, or
    none.
    """
    from flwr.supercore.error.catalog import API_ERROR_MAP  # it takes long to import and is seldom needed

    code = re.search(r"\[code: (\d+)\]", reason)
    error = API_ERROR_MAP.get(int(code[1])) if code else None
    return error is not None and error.http_status_code < 500


def _without_progress(output: str) -> str:
    """`output` without the lines in which the command line says what it is about to do."""
    lines = [line.strip() for line in output.splitlines()]
    return "\n".join(x for x in lines if not x.startswith("Using SuperLink:") and not x.endswith("..."))


def _last_json(output: str) -> dict[str, Any]:
    """The JSON object in `output`; the command line may print notes before it."""
    start = output.find("{")
    try:
        return dict(json.loads(output[start:])) if start >= 0 else {}
    except json.JSONDecodeError:
        return {}
