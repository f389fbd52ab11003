"""What we rely on in Flower and Flower does not promise: an upgrade that takes it away fails here."""

import ast
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests import REPOSITORY


def _imported() -> Iterator[tuple[str, str]]:
    """Module and name of everything that our packages import from Flower, also inside functions."""
    for file in (
        f for package in ("client", "federation", "server") for f in (REPOSITORY / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flwr":
                yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize(("module", "name"), sorted(set(_imported())))
def test_every_name_that_is_imported_from_flower_is_there(module: str, name: str) -> None:
    if not hasattr(importlib.import_module(module), name):
        importlib.import_module(f"{module}.{name}")


def _find(path: str) -> Any:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("flwr.supercore.exit:flwr_exit", ["code", "message"]),
        ("flwr.supernode.cli:flower_supernode", []),
        ("flwr.supernode.cli:flwr_clientapp", []),
        ("flwr.cli.install:install_from_fab", ["fab_file", "install_dir", "skip_prompt"]),
        ("flwr.clientapp.utils:get_load_client_app_fn", ["default_app_ref", "app_path", "multi_app"]),
        ("flwr.supercore.control:ControlHttpClient", ["base_url", "interceptors", "verify", "timeout"]),
        ("flwr.superlink.extensions:get_middleware", []),
        ("flwr.superlink.servicer.fleet.fleet_handlers:push_messages", ["request", "state"]),
        ("flwr.cli.build:build_fab_from_files", ["files"]),
        ("flwr.common.serde:user_config_to_proto", ["user_config"]),
        ("flwr.supercore.primitives.asymmetric:public_key_to_bytes", ["public_key"]),
    ],
)
def test_what_is_called_takes_what_it_is_given(path: str, parameters: list[str]) -> None:
    function: Callable[..., object] = _find(path)
    taken = inspect.signature(function).parameters
    assert set(parameters) <= set(taken)
    others = [p for name, p in taken.items() if name not in parameters]
    assert all(p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in others)


@pytest.mark.parametrize(
    "path",
    [
        "flwr.supercore.exit:ExitCode.SUPERNODE_CONNECTION_ERROR",
        "flwr.supercore.constant:NodeStatus.ONLINE",
        "flwr.supercore.constant:NodeStatus.UNREGISTERED",
        "flwr.supercore.error.base:ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE",
        "flwr.common.constant:ErrorCode.CLIENT_APP_RAISED_EXCEPTION",
        "flwr.proto.control_pb2:ListNodesRequest",
        "flwr.supernode.runtime.run_clientapp:install_from_fab",
        "flwr.supernode.runtime.run_clientapp:get_load_client_app_fn",
    ],
)
def test_what_is_named_is_there(path: str) -> None:
    assert _find(path) is not None


def test_a_supernode_asks_the_module_that_we_patch_for_its_retries() -> None:
    """Else the patience with broken handshakes (client/supernode/wrapper.py) would be lost without a word."""
    module = importlib.import_module("flwr.supernode.fleet_http_connection")
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert "make_simple_http_retry_invoker" in called
    assert callable(module.make_simple_http_retry_invoker().should_giveup)


def test_a_supernode_starts_its_api_by_the_name_that_we_patch() -> None:
    """Else its tasks would be anybody's (client/supernode/wrapper.py)."""
    module = importlib.import_module("flwr.supernode.cli.flower_supernode")
    body = inspect.getsource(module.flower_supernode)
    assert "= _start_supernode_http_api(config, state_factory)" in body
    assert "isolation" in module.SuperNodeLifespanConfig.__dataclass_fields__
    options = inspect.getsource(importlib.import_module("flwr.supercore.auth.superexec_secret"))
    assert '"--superexec-auth-secret-file"' in options


def test_every_error_of_the_control_api_has_an_http_status() -> None:
    errors = _find("flwr.supercore.error.catalog:API_ERROR_MAP")
    assert all(isinstance(code, int) and error.http_status_code >= 400 for code, error in errors.items())


@pytest.mark.parametrize(
    "lock", ["requirements.lock", "docker/train.lock", "docker/server.lock", "docker/superlink.lock"]
)
@pytest.mark.parametrize("package", ["certifi", "uv"])
def test_each_lock_file_has_what_flower_asks_for(lock: str, package: str) -> None:
    wanted = [Requirement(text) for text in importlib.metadata.requires("flwr") or ()]
    (asked,) = (requirement.specifier for requirement in wanted if requirement.name == package)
    text = (REPOSITORY / lock).read_text(encoding="utf-8")
    (locked,) = re.findall(rf"^{package}==(\S+)", text, flags=re.MULTILINE)
    assert locked in asked
