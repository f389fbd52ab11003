import ast
import hashlib
import importlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

from client.rules.owner import RULES_VARIABLE
from client.supernode import consent
from client.supernode.consent import INSTALLED, ConsentError, give_consent, read_bundle
from client.supernode.refusal import REFUSAL_VARIABLE
from server.superlink.control import app_files

pytestmark = pytest.mark.slow


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The app as the server would submit it, free to be changed."""
    for name, file in app_files().items():
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(file), tmp_path / "app" / name)
    return tmp_path / "app"


def _zip(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files:
            bundle.writestr(name, content)
    return buffer.getvalue()


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_few_bytes_that_unpack_to_the_machines_memory_are_not_unpacked() -> None:
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as bundle:
            bundle.writestr("client/app.py", bytes(10**6))
        assert "compressed as Flower never does" in _refusal(buffer.getvalue(), ["any"])


def _refusal(bundle: bytes, allowed: Sequence[str] = ()) -> str:
    with pytest.raises(ConsentError) as refused:
        give_consent(bundle, INSTALLED, allowed)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_installed_version_is_run(app: Path) -> None:
    assert give_consent(build_fab_from_disk(app), INSTALLED, ()) is True


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda app: (app / "client" / "app.py").write_text("import os"), "client/app.py (changed)"),
        (lambda app: (app / "client" / "more.py").touch(), "client/more.py (added)"),
        (lambda app: (app / "federation/wire/payload.py").unlink(), "federation/wire/payload.py (missing)"),
        (
            lambda app: _edit(app / "pyproject.toml", "client.app:app", "client.more:app"),
            "pyproject.toml (tool.flwr.app.components.clientapp)",
        ),
        (
            lambda app: _edit(app / "pyproject.toml", "local_steps = 200", "local_steps = 201"),
            "pyproject.toml (tool.flwr.app.config.training.local_steps)",
        ),
        (
            lambda app: _edit(app / "pyproject.toml", "resume = false", "resume = 0"),
            "pyproject.toml (tool.flwr.app.config.run.resume)",
        ),
        (lambda app: (app / "client" / "bin.py").write_text(""), "client/bin.py (added)"),
    ],
)
def test_any_difference_is_refused_by_name_with_the_way_to_allow_it(app: Path, change, named: str) -> None:
    change(app)
    bundle = build_fab_from_disk(app)
    message = _refusal(bundle)
    assert f"version '0.1.0', where '0.1.0' is installed, differs in {named};" in message
    assert f'allow-app = ["{hashlib.sha256(bundle).hexdigest()}"]' in message
    assert str(INSTALLED) not in message  # it goes to the server


@pytest.mark.parametrize(
    "change",
    [
        lambda app: (app / "server" / "app.py").write_text("changed = True"),
        lambda app: (app / "server" / "more.py").touch(),
        lambda app: (app / "server" / "rounds.py").unlink(),
        lambda app: _edit(app / "pyproject.toml", "server.app:app", "server.more:app"),
        lambda app: _edit(app / "pyproject.toml", '"flwr==1.42.0"', '"flwr==1.42.0", "more"'),
        lambda app: _edit(app / "pyproject.toml", "Fine-tune one", "Tune one"),
        lambda app: _edit(app / "pyproject.toml", 'version = "0.1.0"', 'version = "0.1.1"'),
    ],
)
def test_what_does_not_run_at_a_site_may_differ(app: Path, change) -> None:
    change(app)
    assert give_consent(build_fab_from_disk(app), INSTALLED, ()) is True


def test_a_refusal_says_which_versions_differ(app: Path) -> None:
    _edit(app / "pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"')
    (app / "client" / "more.py").touch()
    message = _refusal(build_fab_from_disk(app))
    assert "version '0.2.0', where '0.1.0' is installed, differs in client/more.py (added);" in message


def test_a_version_is_the_senders_word_and_stays_short_and_on_one_line(app: Path) -> None:
    files = read_bundle(build_fab_from_disk(app))
    files["pyproject.toml"] = b'[project]\nversion = "1\\n2' + b"x" * 1000 + b'"'
    assert len(_refusal(_zip(*files.items()))) < 1000


def test_of_many_differences_the_first_are_named_and_the_rest_counted(app: Path) -> None:
    for number in range(9):
        (app / "client" / f"a{number}.py").touch()
    assert "client/a4.py (added) and 4 more;" in _refusal(build_fab_from_disk(app))


def test_a_site_without_its_own_app_runs_none(app: Path, tmp_path: Path) -> None:
    with pytest.raises(ConsentError, match="installation lacks pyproject"):
        give_consent(build_fab_from_disk(app), tmp_path / "nothing", ())


def test_the_owner_allows_one_bundle_or_any(app: Path) -> None:
    (app / "client" / "more.py").touch()
    bundle = build_fab_from_disk(app)
    assert give_consent(bundle, INSTALLED, [hashlib.sha256(bundle).hexdigest()]) is False
    assert give_consent(bundle, INSTALLED, ["any"]) is False
    for other in ("0" * 64, hashlib.sha256(bundle).hexdigest()[:8], "yes", "*"):
        assert "refuses the app" in _refusal(bundle, [other])


@pytest.mark.parametrize(
    "name",
    [
        "../x.py",
        "/x.py",
        "client/../../x.py",
        "client\\x.py",
        "client//x.py",
        "./x.py",
        "client/",
        ".",
        "client/x\n.py",
    ],
)
def test_a_name_that_is_no_plain_path_is_refused_even_if_anything_is_allowed(name: str) -> None:
    assert "not a plain path" in _refusal(_zip((name, b"")), ["any"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused() -> None:
    assert "or twice" in _refusal(_zip(("a.py", b"1"), ("a.py", b"2")), ["any"])


def test_bundles_that_would_fill_the_memory_are_refused() -> None:
    assert "unpacks to more than" in _refusal(_zip(("a.py", bytes(consent._MAX_CONTENT_BYTES + 1))), ["any"])
    many = _zip(*((f"{number}.py", b"") for number in range(consent._MAX_FILES + 1)))
    assert "has 1001 files" in _refusal(many, ["any"])
    assert "at most 10485760 are accepted" in _refusal(bytes(10 * 1024 * 1024 + 1), ["any"])


def test_a_false_size_in_the_header_does_not_help() -> None:
    content = bytes(consent._MAX_CONTENT_BYTES + 1)
    bundle = _zip(("a.py", content)).replace(len(content).to_bytes(4, "little"), (1).to_bytes(4, "little"))
    _refusal(bundle, ["any"])


@pytest.mark.parametrize("content", [b"", b"PK", bytes(range(200))])
def test_what_is_no_zip_file_is_refused(content: bytes) -> None:
    assert "cannot be read as a zip file" in _refusal(content, ["any"])


def test_a_zip_file_cut_anywhere_is_refused(app: Path) -> None:
    bundle = build_fab_from_disk(app)
    for length in range(0, len(bundle), len(bundle) // 50):
        _refusal(bundle[:length])


def test_a_project_file_that_is_no_toml_is_refused(app: Path) -> None:
    files = dict(read_bundle(build_fab_from_disk(app)).items()) | {"pyproject.toml": b"\xff = ["}
    assert "pyproject.toml of the app cannot be read" in _refusal(_zip(*files.items()))


@pytest.fixture
def flower() -> SimpleNamespace:
    """What of Flower's `run_clientapp` the consent replaces, with a record of what was done."""
    done: list[object] = []

    def load(**arguments: object) -> str:
        done.append(arguments)
        return "loaded"

    def unpack(content: bytes, install_dir: Path | None = None, skip_prompt: bool = False) -> Path:
        done.append(("unpacked", install_dir))
        return install_from_fab(content, install_dir, skip_prompt)

    return SimpleNamespace(get_load_client_app_fn=load, install_from_fab=unpack, done=done)


LOAD = {"default_app_ref": "", "app_path": None, "multi_app": True}


def test_the_site_loads_its_own_files_and_unpacks_nothing(app: Path, flower: SimpleNamespace) -> None:
    consent._guard(flower)
    flower.install_from_fab(build_fab_from_disk(app), skip_prompt=True)
    flower.get_load_client_app_fn(**LOAD)
    assert flower.done == [
        {"default_app_ref": "client.app:app", "app_path": str(INSTALLED), "multi_app": False}
    ]


def test_what_was_not_compared_is_nowhere_to_be_imported_from(
    app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Flower's own loader: a bundle that hides code beside the packages, under another version."""
    from flwr.clientapp import utils

    _edit(app / "pyproject.toml", 'version = "0.1.0"', 'version = "9.9.9"')
    _edit(app / "pyproject.toml", '"federation/**/*.py",', '"federation/**/*.py", "smuggled.py",')
    (app / "smuggled.py").write_text("raise SystemExit('it ran')")
    (app / "server" / "app.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(app.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    real = SimpleNamespace(
        get_load_client_app_fn=utils.get_load_client_app_fn, install_from_fab=install_from_fab
    )
    consent._guard(real)
    real.install_from_fab(build_fab_from_disk(app), skip_prompt=True)
    loaded = real.get_load_client_app_fn(**LOAD)("so100-federation/so100-federation", "9.9.9", "hash")
    assert loaded is importlib.import_module("client.app").app
    assert Path(importlib.import_module("client.app").__file__).is_relative_to(INSTALLED)
    for name in ("smuggled", "server.app"):
        found = importlib.util.find_spec(name)
        assert found is None or Path(str(found.origin)).is_relative_to(INSTALLED)
    assert [path.name for path in app.parent.iterdir()] == ["app"]  # nothing was unpacked


def test_a_refused_app_is_neither_unpacked_nor_loaded_and_the_log_says_why(
    app: Path, flower: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    consent.logs.configure()
    (app / "client" / "app.py").write_text("raise SystemExit('it ran')")
    consent._guard(flower)
    with pytest.raises(ConsentError):
        flower.install_from_fab(build_fab_from_disk(app), skip_prompt=True)
    with pytest.raises(ConsentError, match="has not consented"):
        flower.get_load_client_app_fn(**LOAD)
    assert flower.done == []
    assert "is installed, differs in client/app.py (changed);" in capsys.readouterr().err


def test_rules_that_cannot_be_read_refuse_the_app_and_the_server_is_told_no_path(
    app: Path, flower: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules.toml").write_text("min-nois = 1\n")
    monkeypatch.setenv(RULES_VARIABLE, str(tmp_path / "rules.toml"))
    monkeypatch.setenv(REFUSAL_VARIABLE, str(tmp_path / "refusal"))
    consent._guard(flower)
    with pytest.raises(ConsentError, match=r"^this site's rules cannot be read: its owner's log says why$"):
        flower.install_from_fab(build_fab_from_disk(app), skip_prompt=True)
    assert str(tmp_path / "rules.toml") in (tmp_path / "refusal").read_text()


def test_an_allowed_app_is_unpacked_into_a_new_folder_and_replaces_the_installed_modules(
    app: Path, flower: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app / "client" / "more.py").write_text("ANSWER = 42")
    (app / "rules.toml").write_text('allow-app = ["any"]')
    monkeypatch.setenv(RULES_VARIABLE, str(app / "rules.toml"))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))  # it removes this project's
    monkeypatch.setattr("atexit.register", lambda *_, **__: None)
    consent._guard(flower)
    flower.install_from_fab(build_fab_from_disk(app), skip_prompt=True)
    assert not any(name.partition(".")[0] in consent.PACKAGES for name in sys.modules)
    flower.get_load_client_app_fn(**LOAD)
    folder = Path(flower.done[-1]["app_path"])
    assert (folder / "client" / "more.py").read_text() == "ANSWER = 42"
    assert folder.is_relative_to(flower.done[0][1])


def test_flowers_program_still_calls_the_two_functions_that_are_replaced() -> None:
    """If a new Flower unpacks or loads apps another way, this fails before a site runs without consent."""
    module = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    called = {
        node.func.id
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert {"install_from_fab", "get_load_client_app_fn"} <= called


def test_every_program_a_server_can_ask_for_is_ours_on_a_supernodes_path() -> None:
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    folder = INSTALLED / "client" / "supernode" / "bin"
    assert set(TASK_TYPE_TO_COMMAND.values()) <= {file.name for file in folder.iterdir()}
    path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for program in ("flwr-agentapp", "flwr-serverapp"):
        result = subprocess.run(
            [program, "--token", "x"],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert result.returncode == 1
        assert f"{program} is refused: a site runs ClientApps only" in result.stderr
    result = subprocess.run(
        ["flwr-clientapp", "--help"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0
    assert "Run a Flower ClientApp" in result.stdout
