"""so100-server: every command calls its room with what was typed."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from server.cli import app, commands, main
from server.simulation.picks import SampleParameters
from tests import REPOSITORY
from tests.unit.help_texts import check_command

KEYS, RUNS = Path("certs/generated"), Path("outputs")
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]
NAMES = list(get_command(app).commands)


def _record(monkeypatch: pytest.MonkeyPatch, function: str, returned: object = None) -> Calls:
    calls: Calls = []

    def called(*arguments: Any, **options: Any) -> object:
        calls.append((arguments, options))
        return returned

    monkeypatch.setattr(function, called)
    return calls


ROOMS = {
    "keys": "certs.issue.issue_keys",
    "sample-data": "server.simulation.recording.record_sample_data",
    "demo": "server.deploy.demo.start_demo",
    "resume": "server.deploy.demo.resume_demo",
    "rollback": "server.deploy.rollback.roll_back",
    "push": "server.deploy.push.push_run",
    "report": "server.output.report.report.write_report",
    "simulate": "server.evaluation.closed_loop.evaluate_policy",
    "compare": "server.evaluation.compare.compare_policies",
    "serve": "server.deploy.serve.serve_policy",
    "invite": "server.deploy.invite.invite_site",
    "revoke": "server.deploy.invite.revoke_site",
    "deliver": "server.deploy.deliver.deliver_policy",
    "exporter": "server.monitoring.exporter.serve_metrics",
}
HOSTS, DEMO, SAMPLE = Path("configs/certs.toml"), Path("configs/demo.toml"), Path("data/sample")
BOTH, SEED = "site-a,site-b", 1_000_000_000
POLICY, RESULT = RUNS / "run-1" / "pretrained_model", RUNS / "run-1" / "simulation.json"
ARM = SampleParameters(9, 3, 7)
OWN = (Path("a.toml"), Path("d"), Path("o"), Path("c"), 9000)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("keys", (KEYS, HOSTS, ())),
        ("keys --host a.org --host b.org", (KEYS, HOSTS, ["a.org", "b.org"])),
        ("sample-data", (SAMPLE, SampleParameters(), BOTH, 2)),
        (
            "sample-data --out arm --episodes 9 --eval-episodes 3 --seed 7 --scenes left --workers 4",
            (Path("arm"), ARM, "left", 4),
        ),
        ("demo", (DEMO, SAMPLE, RUNS, KEYS, 8443)),
        ("demo --config a.toml --data d --port 9000 --outputs o --certs c", OWN),
        ("resume run-1", ("run-1", None, None, RUNS, KEYS, 8443)),
        ("resume run-1 --config a.toml --data d --port 9000 --outputs o --certs c", ("run-1", *OWN)),
        ("rollback run-1 7", (RUNS / "run-1", 7)),
        ("report run-1 --outputs o", (Path("o/run-1"),)),
        ("simulate run-1", (POLICY, RESULT, 20, SEED, BOTH, None)),
        (
            "simulate --policy p --episodes 5 --scenes left --seed 3 --videos v",
            (Path("p"), Path("p/simulation.json"), 5, 3, "left", Path("v")),
        ),
        ("simulate --policy p --out r.json", (Path("p"), Path("r.json"), 20, SEED, BOTH, None)),
        ("compare a b", (Path("a"), Path("b"), 50, BOTH)),
        ("serve run-1", (POLICY, 8080)),
        ("serve --policy p --port 9", (Path("p"), 9)),
        ("push run-1", (RUNS / "run-1", None)),
        ("push run-1 --repo lab/so101 --outputs o", (Path("o/run-1"), "lab/so101")),
        (
            "invite lab-b --key AAAA --superlink fed.org:443",
            (KEYS, "lab-b", "AAAA", "fed.org:443", DEMO, None),
        ),
        ("revoke lab-b --control s:1", (KEYS, "lab-b", "s:1")),
        ("deliver run-1", ("run-1", RUNS, KEYS, None)),
        ("deliver run-1 --control s:1 --outputs o", ("run-1", Path("o"), KEYS, "s:1")),
        ("exporter", (RUNS, "127.0.0.1", 9400, None, None, ())),
    ],
)
def test_a_command_calls_its_room(
    line: str, expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    calls = _record(monkeypatch, ROOMS[line.split()[0]])
    assert main(line.split()) == 0
    assert [arguments for arguments, _ in calls] == [expected]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("compare a b --json", {"as_json": True}),
        ("compare a b", {"as_json": False}),
        ("push run-1", {"best": False, "public": False}),
        ("push run-1 --public", {"best": False, "public": True}),
        ("push run-1 --best", {"best": True, "public": False}),
    ],
)
def test_a_flag_reaches_the_room_of_its_command(
    line: str, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _record(monkeypatch, ROOMS[line.split()[0]])
    assert main(line.split()) == 0
    assert [given for _, given in calls] == [options]


def test_a_simulation_is_checked_without_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _record(monkeypatch, "server.evaluation.closed_loop.check_simulator")
    assert main(["simulate", "--check", "--scenes", "left"]) == 0
    assert calls == [(("left",), {})]


def test_the_default_seed_of_a_simulation_is_that_of_a_run() -> None:
    from server.evaluation.closed_loop import FIRST_SEED

    (seed,) = (option for option in get_command(app).commands["simulate"].params if option.name == "seed")
    assert seed.default == FIRST_SEED


def test_options_of_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = _record(monkeypatch, "certs.issue.issue_keys")
    assert main(["keys", "--site", "lab-b"]) == main(["keys", "--rotate"]) == 0
    assert [options for _, options in calls] == [
        {"site": "lab-b", "renew": False},
        {"site": None, "renew": True},
    ]
    for whole, code in ((True, 0), (False, 1)):
        _record(monkeypatch, "certs.issue.check_keys", whole)
        assert main(["keys", "--check"]) == code
    assert main(["keys", "--check", "--rotate"]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "resume run-1"])
def test_the_exit_code_of_a_run_is_the_commands(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for function in ("start_demo", "resume_demo"):
        _record(monkeypatch, f"server.deploy.demo.{function}", 1)
    assert main(command.split()) == 1


@pytest.mark.parametrize("command", ["simulate", "serve"])
@pytest.mark.parametrize("policy", [[], ["run-1", "--policy", "p"]])
def test_one_policy_has_to_be_named(
    command: str, policy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *policy]) == 2
    assert capsys.readouterr().err.startswith("error: name one policy: a run such as demo-")


@pytest.mark.parametrize("line", ["demo", "resume run-1", "invite x --key k --superlink s:1", "deliver r"])
def test_outside_of_its_clone_one_line_says_where_to_go(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert f"cd {REPOSITORY}\n" in capsys.readouterr().err
    monkeypatch.setattr(commands, "_CLONE", tmp_path)
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert f"is installed in {tmp_path}, without docker-compose.yml" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_line_of_help_an_example_and_refuses_unknown_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_command(app, main, "so100-server", "", name, capsys)


def test_the_list_of_commands_has_one_line_for_each() -> None:
    shown = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["--help"]).output
    for name, command in get_command(app).commands.items():
        (line,) = (line for line in shown.splitlines() if line.startswith(f"│ {name} "))
        assert command.help.splitlines()[0] in line


@pytest.mark.parametrize("module", ["server.cli", "client.cli"])
def test_help_imports_neither_torch_nor_flower(module: str) -> None:
    code = (
        f"import sys, {module} as cli\n"
        "for arguments in [['--help']] + [[name, '--help'] for name in sys.argv[1:]]:\n"
        "    assert cli.main(arguments) == 0\n"
        "heavy = {'torch', 'flwr', 'lerobot', 'numpy', 'cryptography', 'pydantic'} & sys.modules.keys()\n"
        "sys.exit(', '.join(heavy) or None)"
    )
    names = get_command(importlib.import_module(module).app).commands
    command = [sys.executable, "-c", code, *names]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "server.cli", "report", "nothing"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
