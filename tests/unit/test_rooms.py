"""Who may import whom: each room only those before it; and how long a module and a function may be."""

import ast
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files

from server.superlink.control import app_files
from tests import REPOSITORY

PACKAGES = ("federation", "client", "certs", "server")
ROOMS = (
    "federation",  # its own modules; those of a package that are in no room below
    "federation.data",
    "federation.policy",
    "federation.wire",
    "federation.judgement",
    "client.state",
    "client.repair",
    "client.recordings",
    "client.rules",
    "client",
    "client.supernode",
    "client.doctor",
    "client.membership",
    "client.personal",
    "client.cli",
    "certs",
    "server.superlink",
    "server.model",
    "server.grid",
    "server.run",
    "server.aggregation",
    "server.simulation",
    "server.evaluation",
    "server.output",
    "server",
    "server.monitoring",
    "server.deploy",
    "server.cli",
)
# Packages that a package may import from besides its own.
NEIGHBOURS = {
    "federation": (),
    "client": ("federation",),
    "certs": ("federation",),
    "server": ("federation",),
}


def _modules() -> dict[str, Path]:
    files = (file for package in PACKAGES for file in sorted((REPOSITORY / package).rglob("*.py")))
    names = (
        (file.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", "."), file) for file in files
    )
    return {name.removesuffix(".__init__"): file for name, file in names}


def _room(module: str) -> str:
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


@cache
def _imports() -> tuple[tuple[str, str], ...]:
    """(module, what it imports), wherever in the module the import stands."""
    return tuple((module, target) for module, file in _modules().items() for target in _targets(file))


def _targets(file: Path) -> Iterator[str]:
    modules = _modules()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                f"{node.module}.{name.name}" if f"{node.module}.{name.name}" in modules else node.module
                for name in node.names
                if node.module.split(".")[0] in PACKAGES
            )
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in PACKAGES)


def test_every_room_exists() -> None:
    modules = _modules()
    assert [room for room in ROOMS if room not in modules] == []


def test_a_room_imports_only_rooms_before_it() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target in _imports()
        if ROOMS.index(_room(target)) > ROOMS.index(_room(module))
    ]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_server_and_client_know_federation_and_never_each_other(package: str) -> None:
    others = {
        f"{module} imports {target}"
        for module, target in _imports()
        if module.split(".")[0] == package and target.split(".")[0] not in (package, *NEIGHBOURS[package])
    }
    # The operator's commands issue keys; nothing that runs in a round touches them.
    assert {line for line in others if not line.startswith(("server.deploy.", "server.cli."))} == set()


def test_what_travels_in_the_app_bundle_imports_nothing_that_does_not() -> None:
    bundle, _ = build_fab_from_files(app_files())
    files = set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())
    travels = {name for name, file in _modules().items() if file.relative_to(REPOSITORY).as_posix() in files}
    assert {"server.app", "client.app", "federation.wire.codec"} <= travels
    stays = {"server.superlink.control", "server.deploy.demo", "server.monitoring.exporter"}
    assert not (stays | {"server.simulation.so101", "server.cli"}) & travels
    wrong = {f"{a} imports {b}" for a, b in _imports() if a in travels and b not in travels}
    assert wrong == set()


def test_no_module_is_over_300_lines_and_no_function_over_50() -> None:
    sources = {module: file.read_text(encoding="utf-8") for module, file in _modules().items()}
    assert {module for module, text in sources.items() if len(text.splitlines()) > 300} == set()
    functions = (
        (module, node)
        for module, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert {
        f"{module}.{node.name}" for module, node in functions if (node.end_lineno or 0) - node.lineno >= 50
    } == set()


def test_files_are_put_in_place_by_one_writer_and_keys_by_their_own() -> None:
    movers = {
        module
        for module, file in _modules().items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _moves_a_file(node)
    }
    moves_what_is_written = {"server.run.checkpoints", "certs.invited"}
    assert movers == {"federation.files", "federation.key_files"} | moves_what_is_written


def _moves_a_file(call: ast.Call) -> bool:
    """Whether `call` may be that of `Path.rename`, `Path.replace` or their like; text has two arguments."""
    assert isinstance(call.func, ast.Attribute)
    is_replace = call.func.attr == "replace" and len(call.args) == 1 and not call.keywords
    of_os = ast.unparse(call.func) in ("os.replace", "os.rename", "shutil.move")
    return is_replace or of_os or call.func.attr == "rename"
