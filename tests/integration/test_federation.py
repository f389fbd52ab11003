"""The real thing: SuperLink, SuperExec, SuperNodes, ServerApp and ClientApps as processes, over TLS."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from rich.console import Console
from safetensors.torch import load_file

from certs.issue import issue_all
from federation.config import RunConfig, flatten, parse_run_config
from federation.policy.folder import policy_digest
from server.deploy.demo import run_demo
from server.deploy.local_cluster import LocalCluster
from server.run.deliveries import read_deliveries
from server.run.recorded import EVENTS_FILE
from server.superlink.control import run_status, submit_run
from tests import REPOSITORY
from tests.conftest import TINY
from tests.integration.conftest import free_port
from tests.synthetic import record_dataset, split_video

pytestmark = pytest.mark.integration


@pytest.fixture
def port() -> int:
    return free_port()


# All that these tests start inherits it; another federation on this machine does not.
_MARK = "SO100_TEST_SESSION"
os.environ.setdefault(_MARK, uuid.uuid4().hex)


def _config(**changes: object) -> RunConfig:
    return parse_run_config(TINY | changes, "tests")


def _events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / EVENTS_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def demo(certs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished run of two rounds and what the demo printed."""
    outputs = tmp_path_factory.mktemp("outputs")
    console = Console(width=200, record=True)
    code = run_demo(
        _config(**{"run.name": "two-rounds", "run.deliver": "end"}),
        data,
        outputs,
        certs,
        free_port(),
        console,
    )
    printed = console.export_text()
    assert code == 0, printed
    return outputs / "two-rounds", printed


def test_two_rounds_of_two_sites_leave_a_complete_record(demo) -> None:
    folder, _ = demo
    metrics = json.loads((folder / "federated_metrics.json").read_text())
    assert metrics["status"] == "finished"
    assert sorted(metrics["nodes"]) == ["site-a", "site-b"]
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]
    for entry in metrics["rounds"]:
        assert sorted(entry["clients"]) == ["site-a", "site-b"]
        assert entry["num_examples"] == 2 * 3 * 4  # nodes x local steps x batch size
        assert entry["missing"] == []
        assert entry["refused"] == {}
        assert entry["update_norm"] > 0
        assert math.isfinite(entry["evaluation"]["policy_loss"])
    for number in (0, 1, 2):
        assert (folder / f"server_eval_round_{number}.json").is_file()
    for name in ("config.json", "server.log", "report.html", "plots/policy_loss.png"):
        assert (folder / name).stat().st_size > 0


def test_the_events_tell_the_run_in_order(demo) -> None:
    names = [event["event"] for event in _events(demo[0])]
    updates = ["update_received", "update_received", "replies_collected"]
    rounds = ["round_started", *updates, "evaluated", "round_finished"]
    assert names == [
        "run_started",
        "node_joined",
        "node_joined",
        "evaluated",
        *rounds,
        *rounds,
        "run_finished",
    ]


def test_the_demo_shows_nodes_rounds_and_the_report(demo) -> None:
    folder, printed = demo
    for text in ("site-a joined: 3 episodes, 120 frames", "round 2: held-out policy loss", "report.html"):
        assert text in printed
    assert str(folder / "report.html") in printed


def test_the_exported_policy_is_the_last_checkpoint_comes_home_and_loads_with_lerobot(
    demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = demo
    assert (folder / "pretrained_model_best" / "model.safetensors").is_file()
    monkeypatch.chdir(folder / "pretrained_model")
    policy = SmolVLAPolicy.from_pretrained(".", strict=True)
    exported = policy_digest(folder / "pretrained_model")
    for site in ("site-a", "site-b"):
        home = folder.parent / ".scratch" / site / "policy"
        assert policy_digest(home) == exported
        monkeypatch.chdir(home)
        assert SmolVLAPolicy.from_pretrained(".", strict=True).config.chunk_size == policy.config.chunk_size
        assert read_deliveries(folder)[site]["error"] == ""
    assert "policy home" in (folder / "report.html").read_text()
    parameters = dict(policy.named_parameters())
    last = load_file(folder / "checkpoints" / "round_0002.safetensors")
    assert last
    assert all(parameters[name].equal(tensor) for name, tensor in last.items())


def test_nothing_is_left_running(demo) -> None:
    ours = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(_MARK) == os.environ[_MARK]:
                ours.append(process.info["cmdline"])
    # Of this process itself, should a test before have started one.
    assert [command for command in ours if "multiprocessing.resource_tracker" not in " ".join(command)] == []


def test_no_path_of_a_site_reaches_the_record_or_superlink(demo, data: Path) -> None:
    folder, _ = demo
    seen = [file.read_text(errors="replace") for file in folder.glob("*.json*")]
    seen += [(folder / "logs" / "superlink.log").read_text(), (folder / "server.log").read_text()]
    assert not any(str(data / "site-a") in text for text in seen)


def test_every_line_of_a_log_says_of_which_run_node_and_round_it_is(demo) -> None:
    folder, _ = demo
    for site in ("site-a", "site-b"):
        lines = (folder / "logs" / f"{site}.log").read_text(errors="replace").splitlines()
        ours = [line for line in lines if re.match(r"\d\d:\d\d:\d\d (INFO|WARNING|ERROR) .* \| ", line)]
        assert all(f" two-rounds {site} round " in line for line in ours)
        assert sum(f"round {number} | trained " in line for line in ours for number in (1, 2)) == 2
    for line in (folder / "server.log").read_text().splitlines():
        assert re.match(r"\d\d:\d\d:\d\d (INFO|WARNING) +two-rounds server round [0-2] \| ", line), line


def test_the_same_seed_gives_the_same_loss_curve(
    demo, certs: Path, data: Path, tmp_path: Path, port: int
) -> None:
    again = _config(**{"run.name": "again"})
    assert run_demo(again, data, tmp_path, certs, port, Console(quiet=True)) == 0
    for number in (0, 1, 2):
        first, second = (
            json.loads((folder / f"server_eval_round_{number}.json").read_text())
            for folder in (demo[0], tmp_path / "again")
        )
        assert first["policy_loss"] == second["policy_loss"]
        assert first["action_mse"] == second["action_mse"]


def test_a_site_that_cannot_take_part_is_refused_with_a_reason_and_the_others_train(
    certs: Path, data: Path, tmp_path: Path, port: int
) -> None:
    # Its files are whole and its tables right; only the pictures of its two videos make no batch.
    damaged = record_dataset(tmp_path / "site-b", episodes=4, frames=20)
    split_video(damaged, "wrist", (96, 64))
    sites = {"site-a": data / "site-a", "site-b": damaged}
    config = _config(**{"run.name": "one-site", "run.num_rounds": 1, "federation.min_nodes": 1})
    cluster = LocalCluster(sites, data / "holdout", tmp_path, certs, port, tmp_path / "scratch")
    with cluster:
        # A SuperNode with a key that nobody registered knocks as well.
        cluster.start_supernode("site-c", data / "site-a")
        run_id = submit_run(cluster.superlink, config)
        give_up_at = time.monotonic() + 900
        while not run_status(cluster.superlink, run_id).startswith("finished"):
            assert time.monotonic() < give_up_at
            time.sleep(1)
        events = _events(tmp_path / "one-site")
        serverapp = (cluster.logs / "superexec.log").read_text()
        assert run_status(cluster.superlink, run_id) == "finished:completed", (events, serverapp[-2000:])
        stranger = (cluster.logs / "site-c.log").read_text()
    assert [e["node"] for e in events if e["event"] == "node_joined"] == ["site-a"]
    reason = next(e["reason"] for e in events if e["event"] == "join_denied")
    assert "dataset <dataset>: the pictures of the camera wrist differ in size, 64x64 in videos/" in reason
    assert str(tmp_path) not in reason
    assert events[-1]["event"] == "run_finished"
    assert "SuperNode ID" not in stranger


def _demo_command(
    tmp_path: Path, certs: Path, data: Path, port: int, config: str
) -> subprocess.CompletedProcess:
    file = tmp_path / "run.toml"
    file.write_text(config)
    command = [sys.executable, "-m", "server.cli", "demo", "--config", str(file), "--data", str(data)]
    command += ["--certs", str(certs), "--outputs", str(tmp_path / "outputs"), "--port", str(port)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=False)


VALID = "[policy]\nsize = 'tiny'\n"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("data", r"no dataset in .*; make sample-data records the demo's"),
        ("camera", r"dataset .*site-a: lacks the camera front \(it has top, wrist\); record it, or change"),
        ("file", r"dataset .*site-b: meta/tasks.parquet is missing; copy it again"),
        ("key", r"run.toml: unknown key 'training.local_step': did you mean training.local_steps\?"),
        ("value", r"run.toml: training.local_steps = -3: must be at least 1"),
        ("port", r"port \d+ is in use: stop what holds it, or choose another PORT"),
        ("expired", r"expired .*make certs ROTATE=1"),
        ("no certificate", r"make certs"),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_starts(
    fault: str, message: str, certs: Path, data: Path, tmp_path: Path, port: int
) -> None:
    config, listener = VALID, None
    if fault == "data":
        data = tmp_path / "nowhere"
    elif fault == "camera":
        config += "cameras = 'top,front'\n"
    elif fault == "file":
        data = Path(shutil.copytree(data, tmp_path / "data"))
        (data / "site-b" / "meta" / "tasks.parquet").unlink()
    elif fault == "key":
        config += "[training]\nlocal_step = 3\n"
    elif fault == "value":
        config += "[training]\nlocal_steps = -3\n"
    elif fault == "port":
        listener = socket.create_server(("127.0.0.1", port))
    elif fault == "expired":
        certs = tmp_path / "expired"
        past = datetime.now(UTC) - timedelta(days=400)
        issue_all(certs, hosts=[], sites=["site-a", "site-b"], now=past)
    elif fault == "no certificate":
        certs = tmp_path / "none"
    result = _demo_command(tmp_path, certs, data, port, config)
    if listener:
        listener.close()
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert re.match(r"error: .*" + message, lines[0])
    assert not (tmp_path / "outputs").exists()


def test_ctrl_c_stops_everything_and_says_so(certs: Path, data: Path, tmp_path: Path, port: int) -> None:
    (tmp_path / "run.toml").write_text("".join(_sections(flatten(_config(**{"run.num_rounds": 50})))))
    command = [sys.executable, "-m", "server.cli", "demo", "--config", str(tmp_path / "run.toml")]
    command += ["--data", str(data), "--certs", str(certs), "--outputs", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    for line in process.stdout:
        if "joined" in line:
            break
    process.send_signal(2)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 130, errors
    assert "stopped; nothing is left running" in errors
    test_nothing_is_left_running(None)


def _sections(settings: dict[str, object]) -> Iterator[str]:
    for key, value in settings.items():
        section, name = key.split(".")
        if name != "name":
            yield f"[{section}]\n" if section not in _seen else ""
            _seen.add(section)
            yield f"{name} = {json.dumps(value)}\n"


_seen: set[str] = set()
