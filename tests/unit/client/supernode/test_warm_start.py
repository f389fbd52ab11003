import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, subprocess_executor

from client.rules.owner import RULES_VARIABLE
from client.supernode import warm_start
from client.supernode.warm_start import WARM_START, installed_state, why_cold
from tests import REPOSITORY

pytestmark = pytest.mark.slow

BIN = Path(warm_start.__file__).parent / "bin"


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the probes of `forks.py` found: two of the facts, OpenMP, a dataset on each of two scratches."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    root = data / "site-a"
    probes = ["facts", "facts", "openmp", f"dataset:{root}:{one}", f"dataset:{root}:{two}"]
    program = "tests.unit.client.supernode.forks"
    ran = _run(sys.executable, "-m", program, *probes, OMP_NUM_THREADS="4")
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_fork_has_torch_and_lerobot_in_memory(found: list[dict[str, Any]]) -> None:
    assert found[0]["imported"] == ["client.training", "datasets", "lerobot.policies.factory", "torch"]


def test_its_parent_has_no_cuda_context_and_no_open_device(found: list[dict[str, Any]]) -> None:
    assert found[0]["cuda"] is False
    assert found[0]["devices"] == []


def test_no_thread_of_python_is_lost_in_a_fork(found: list[dict[str, Any]]) -> None:
    assert found[0]["python_threads"] == 1


def test_two_forks_draw_different_numbers(found: list[dict[str, Any]]) -> None:
    assert found[0]["drawn"][0] != found[1]["drawn"][0]


def test_a_fork_computes_with_four_openmp_threads(found: list[dict[str, Any]]) -> None:
    assert found[2] == {"threads": 4, "gradient": 1024.0}


def test_each_scratch_has_an_arrow_copy_of_its_own(found: list[dict[str, Any]]) -> None:
    assert found[3] == found[4]
    assert found[3]["arrow"] > 0


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, ""),
        ({WARM_START: "1"}, ""),
        ({WARM_START: ""}, ""),
        ({WARM_START: "0"}, "FEDERATION_WARM_START=0"),
    ],
)
def test_who_starts_cold(environment: dict[str, str], reason: str) -> None:
    assert why_cold(environment) == reason


def test_no_other_system_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start.sys, "platform", "darwin")
    assert why_cold({}) == "a fork after importing torch is not safe on darwin"


def _app(folder: Path) -> Path:
    (folder / "client").mkdir()
    (folder / "client" / "app.py").write_text("app = 1\n")
    return folder / "client" / "app.py"


@pytest.mark.parametrize(
    "change",
    [
        lambda file: os.utime(file, ns=(1, 1)),
        lambda file: file.unlink(),
        lambda file: file.with_name("more.py").touch(),
    ],
)
def test_a_change_of_the_app_is_noticed(
    change: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _app(tmp_path)
    monkeypatch.setattr(warm_start, "INSTALLED", tmp_path)
    before = installed_state()
    assert installed_state() == before
    change(file)
    assert installed_state() != before


def test_a_change_of_a_package_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch-2.11.0.dist-info").mkdir()
    monkeypatch.setattr(warm_start.sysconfig, "get_path", lambda _: str(tmp_path))
    before = installed_state()
    (tmp_path / "torch-2.11.0.dist-info").rename(tmp_path / "torch-2.12.0.dist-info")
    assert installed_state() != before


SPEC = ExecutionSpec(
    task_type=TaskType.CLIENT_APP,
    runtime_api_address="127.0.0.1:1",
    token="t0k3n",
    insecure=True,
    root_certificates_path=None,
    runtime_dependency_install=False,
    parent_pid=1,
    suppress_output=False,
    task_id=7,
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An executor whose starts are recorded: `forks`, and `cold` ones."""
    calls = SimpleNamespace(forks=[], cold=[], state={"app": 1}, error=None)

    class _Process:
        def __init__(self, target: object, args: tuple[list[str], dict[str, str]]) -> None:
            self.args = args

        def start(self) -> None:
            if calls.error:
                raise calls.error
            calls.forks.append(self.args[0])

    monkeypatch.setattr(warm_start, "start_fork_server", lambda: None)
    monkeypatch.setattr(warm_start, "installed_state", lambda: dict(calls.state))
    monkeypatch.setattr(warm_start, "_CONTEXT", SimpleNamespace(Process=_Process))
    popen = lambda command, **options: calls.cold.append((command[0], options))  # noqa: E731
    monkeypatch.setattr(warm_start.subprocess, "Popen", popen)
    monkeypatch.setattr(subprocess_executor, "subprocess", None)  # put back at the end
    warm_start._start_forks()
    calls.launch = lambda **changes: subprocess_executor.SubprocessExecutor().launch(
        ExecutionSpec(**(vars(SPEC) | changes))
    )
    return calls


def test_flowers_executor_forks_a_client_app(started: SimpleNamespace) -> None:
    started.launch()
    ((program, *arguments),) = started.forks
    assert program == "flwr-clientapp"
    assert {"--token", "t0k3n", "--parent-pid"} <= set(arguments)
    assert started.cold == []


@pytest.mark.parametrize("kind", [TaskType.SERVER_APP, TaskType.AGENT_APP])
def test_any_other_program_is_started_as_flower_does(started: SimpleNamespace, kind: TaskType) -> None:
    started.launch(task_type=kind)
    assert started.forks == []
    assert len(started.cold) == 1


def test_where_flower_suppresses_output_it_starts_the_process(started: SimpleNamespace) -> None:
    started.launch(suppress_output=True)
    assert started.cold == [("flwr-clientapp", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL})]


def test_a_changed_app_starts_cold_with_a_warning(
    started: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    warm_start.logs.configure()
    started.state["app"] = 2
    started.launch()
    assert started.forks == []
    assert started.cold == [("flwr-clientapp", {})]
    assert "restart this SuperNode" in capfd.readouterr().err


def test_where_the_owner_allows_another_app_it_starts_cold_from_then_on(
    started: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RULES_VARIABLE, str(tmp_path / "rules.toml"))
    started.launch()
    for content in (f'allow-app = ["{"ab" * 32}"]', "allow-app = 1"):
        (tmp_path / "rules.toml").write_text(content)
        started.launch()
    assert len(started.forks) == 1
    assert started.cold == [("flwr-clientapp", {})] * 2


@pytest.mark.parametrize("error", [EOFError(), ConnectionRefusedError(111, "Connection refused")])
def test_without_a_fork_server_it_starts_cold_with_a_warning(
    started: SimpleNamespace, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    warm_start.logs.configure()
    started.error = error
    started.launch()
    assert started.cold == [("flwr-clientapp", {})]
    assert (str(error) or "EOFError") in capfd.readouterr().err


KILLED = """
import multiprocessing, os, signal, sys, time
from multiprocessing import forkserver
from client.supernode import warm_start
warm_start._PRELOAD = "json"
warm_start.start_fork_server()
command = ["flwr-clientapp", "--help"]
state = warm_start.installed_state()
assert warm_start._fork(command, state)
multiprocessing.active_children()[0].join()
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
time.sleep(0.5)
assert warm_start._fork(command, state)
for process in multiprocessing.active_children():
    process.join()
    print("code", process.exitcode)
"""


def test_a_fork_is_consents_program_and_a_killed_fork_server_is_followed_by_another() -> None:
    ran = _run(sys.executable, "-c", KILLED)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("usage: flwr-clientapp") == 2
    assert ran.stdout.rstrip().endswith("code 0")


def test_a_preload_that_fails_is_reported() -> None:
    code = "from client.supernode import preload; preload._MODULES = ('no.such.module',); preload._preload()"
    ran = _run(sys.executable, "-c", code)
    assert "no.such.module cannot be imported (ModuleNotFoundError: No module named 'no')" in ran.stderr


@pytest.mark.parametrize("program", sorted({path.resolve().name for path in BIN.iterdir()}))
def test_the_program_may_be_run_again_by_each_process_of_its_own(program: str) -> None:
    """The standard library runs a parent's main file again in each fork, under another name."""
    code = f"import runpy; runpy.run_path({str(BIN / program)!r}, run_name='__mp_main__')"
    assert _run(sys.executable, "-c", code).returncode == 0


def test_the_program_is_flowers() -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = _run(str(BIN / "flower-superexec"), "--help", **{WARM_START: "0", "PATH": path})
    assert ran.returncode == 0
    assert "Run Flower SuperExec" in ran.stdout
