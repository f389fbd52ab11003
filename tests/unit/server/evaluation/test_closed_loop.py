"""Closed-loop evaluation of the simulated arm."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from federation.errors import ConfigError, PolicyError
from federation.settings import EvaluationConfig
from federation.versions import INSTALL_SIMULATOR
from server.evaluation import closed_loop, worker
from server.evaluation.intervals import sign_test, wilson_interval
from server.evaluation.worker import Simulations
from server.simulation.expert import plan_pick
from server.simulation.gym_so101 import MAX_STEPS, SO101PickConfig, SO101PickEnv
from tests import REPOSITORY

pytestmark = pytest.mark.slow

SEED = 1_000_000_000


@pytest.fixture(scope="module")
def env():
    env = SO101PickEnv(("site-a", "site-b"), image_size_px=32)
    yield env
    env.close()


def _drive(env: SO101PickEnv, plan: np.ndarray) -> tuple[float, bool, int]:
    total = 0.0
    for steps, targets in enumerate(plan, 1):
        _, reward, terminated, truncated, info = env.step(targets)
        assert reward >= 0
        total += reward
        if terminated or truncated:
            return total, info["is_success"], steps
    raise AssertionError("the plan ended first")


def test_the_expert_succeeds_and_comes_all_the_way(env: SO101PickEnv) -> None:
    env.reset(seed=SEED)
    start = env._progress
    plan = plan_pick(env.scene, SEED)
    total, success, steps = _drive(env, np.concatenate([plan, np.repeat(plan[-1:], MAX_STEPS, axis=0)]))
    assert success
    assert steps < MAX_STEPS
    assert total == pytest.approx(1 - start)


def test_an_arm_that_stays_put_fails_when_time_is_up(env: SO101PickEnv) -> None:
    env.reset(seed=SEED)
    plan = np.repeat(env.scene.joint_state()[None], MAX_STEPS, axis=0)
    total, success, steps = _drive(env, plan)
    assert (success, steps) == (False, MAX_STEPS)
    assert total < 0.3


def test_the_seed_decides_the_variant_and_the_observation(env: SO101PickEnv) -> None:
    first, _ = env.reset(seed=SEED)
    task = env.task_description
    env.reset(seed=SEED + 1)
    assert env.task_description != task
    again, _ = env.reset(seed=SEED)
    assert env.observation_space.contains(first)
    np.testing.assert_array_equal(first["pixels"]["top"], again["pixels"]["top"])
    assert env.render().shape == (32, 64, 3)


def test_lerobots_factory_makes_it_by_its_type_name() -> None:
    from lerobot.envs.factory import make_env, make_env_config

    vector = make_env(make_env_config("so101_pick", image_size_px=32), n_envs=2)["so101_pick"][0]
    observation, _ = vector.reset(seed=[4, 5])
    assert observation["pixels"]["wrist"].shape == (2, 32, 32, 3)
    assert vector.call("_max_episode_steps") == (MAX_STEPS, MAX_STEPS)
    vector.close()


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="'site-z' is unknown; choose from site-a"):
        SO101PickConfig(variants="site-a,site-z")


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_the_sign_test_is_the_exact_binomial_one() -> None:
    assert sign_test([1, 1, 1, 1, 1]) == pytest.approx(2 / 2**5)
    assert sign_test([1, 1, 1, 1, -1, 0, 0]) == pytest.approx(2 * 6 / 2**5)
    assert sign_test([0, 0]) == 1
    assert math.isclose(sign_test([3, -3]), 1)


def _simulations(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> tuple[Simulations, list]:
    """Simulations whose process is `module`'s text instead of the real one."""
    (folder / "server").mkdir()
    (folder / "server" / "cli.py").write_text(module)
    monkeypatch.setenv(worker.INSTALLATION, str(folder))
    done: list = []
    config = EvaluationConfig(sim_frequency=2, sim_episodes=3)
    return Simulations(folder, config, lambda round_, result: done.append((round_, result))), done


def test_evaluations_run_one_after_another_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import json, os, sys; json.dump({'seen': os.listdir('policy')}, open('result.json', 'w'))"
    simulations, done = _simulations(tmp_path, monkeypatch, code)
    for round_ in (0, 2):
        simulations.start(round_, lambda folder: (folder.mkdir(), (folder / "weights").touch()))
    simulations.wait()
    assert done == [(0, {"seen": ["weights"]}), (2, {"seen": ["weights"]})]
    assert not list(tmp_path.glob("simulation/*/policy"))


def test_a_failed_evaluation_is_logged_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simulations, done = _simulations(tmp_path, monkeypatch, "raise SystemExit('no OpenGL here')")
    monkeypatch.setattr(worker._log, "propagate", True)
    simulations.start(0, lambda folder: folder.mkdir())
    simulations.wait()
    assert done == []
    assert "simulation after round 0 failed (1): no OpenGL here" in caplog.text


def test_the_newest_round_takes_the_place_of_the_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import json, os, time\n"
        "while not os.path.exists('../../go'): time.sleep(0.01)\n"
        "json.dump({}, open('result.json', 'w'))"
    )
    simulations, done = _simulations(tmp_path, monkeypatch, code)
    monkeypatch.setattr(worker._log, "propagate", True)
    for round_ in (0, 2, 4):
        simulations.start(round_, lambda folder: folder.mkdir())
    exports = sorted(folder.parent.name for folder in tmp_path.glob("simulation/*/policy"))
    (tmp_path / "go").touch()
    simulations.wait()
    assert exports == ["round_0", "round_4"]
    assert [round_ for round_, _ in done] == [0, 4]
    assert "no simulation after round 2: that of an earlier round still runs, round 4 is next" in caplog.text


def test_an_export_that_fails_costs_its_simulation_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simulations, done = _simulations(tmp_path, monkeypatch, "open('result.json', 'w').write('{}')")
    monkeypatch.setattr(worker._log, "propagate", True)

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    simulations.start(0, full)
    simulations.start(2, lambda folder: folder.mkdir())
    simulations.wait()
    assert done == [(2, {})]
    assert "no simulation after round 0: export failed: [Errno 28] No space left on device" in caplog.text


def test_a_run_that_fails_leaves_no_evaluation_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulations, done = _simulations(tmp_path, monkeypatch, "import time; time.sleep(600)")
    for round_ in (0, 2):
        simulations.start(round_, lambda folder: folder.mkdir())
    simulations.stop()
    simulations.wait()
    assert done == []
    assert not list(tmp_path.glob("simulation/*/policy"))


def test_an_evaluation_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    """Else it would write its videos and its result beside those of the next server."""
    reader, writer = os.pipe()
    code = (
        "import time\n"
        "from server import cli\n"
        "from server.evaluation import closed_loop\n"
        "closed_loop.simulate = lambda *_: (print('drives', flush=True), time.sleep(600))\n"
        "cli.main(['simulate', '--policy', '.', '--out', 'result.json', '--end-with-stdin'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    assert process.stdout
    assert process.stdout.readline() == b"drives\n"
    os.close(writer)
    assert process.wait(240) == 1


def test_the_result_of_an_earlier_server_is_not_taken_for_that_of_a_failed_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "simulation" / "round_2").mkdir(parents=True)
    (tmp_path / "simulation" / "round_2" / "result.json").write_text("{}")
    simulations, done = _simulations(tmp_path, monkeypatch, "raise SystemExit('no OpenGL here')")
    simulations.start(2, lambda folder: folder.mkdir())
    simulations.wait()
    assert done == []


def test_what_a_killed_server_exported_is_cleared_and_the_videos_stay(tmp_path: Path) -> None:
    folder = tmp_path / "simulation" / "round_2"
    for name in ("policy", ".policy.part"):
        (folder / name).mkdir(parents=True)
    (folder / "episode_0.mp4").touch()
    Simulations(tmp_path, EvaluationConfig(sim_frequency=2), lambda *_: None)
    assert [path.name for path in folder.iterdir()] == ["episode_0.mp4"]


def test_evaluations_are_due_before_between_and_at_the_end(tmp_path: Path) -> None:
    simulations = Simulations(tmp_path, EvaluationConfig(sim_frequency=2), lambda *_: None)
    assert [round_ for round_ in range(6) if simulations.due(round_, last=round_ == 5)] == [0, 2, 4, 5]
    assert not Simulations(tmp_path, EvaluationConfig(), lambda *_: None).due(5, last=True)


def test_a_missing_simulator_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closed_loop, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"mujoco is not installed; run {re.escape(INSTALL_SIMULATOR)}"):
        closed_loop.check_simulator("site-a")


def test_the_installation_is_checked_before_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app that Flower unpacks for a run has no simulated arm; the installation beside it has."""
    monkeypatch.setenv(worker.INSTALLATION, str(REPOSITORY))
    worker.require_simulator("left,right")
    with pytest.raises(ConfigError, match="sim_frequency: scene 'site-z' is unknown; choose from site-a"):
        worker.require_simulator("left,site-z")
    monkeypatch.setenv(worker.INSTALLATION, str(tmp_path))
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no simulated arm; set FEDERATION_INSTALLATION"):
        worker.require_simulator("left")


def test_the_command_drives_a_policy_and_writes_what_it_saw(
    policy, weights, statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from federation.policy.build import build_processors
    from federation.policy.folder import save_policy_folder

    save_policy_folder(tmp_path / "policy", policy, build_processors(policy, statistics), "card")
    monkeypatch.setattr("server.simulation.gym_so101.environment.MAX_STEPS", 3)
    monkeypatch.setattr(SO101PickEnv, "_max_episode_steps", 3)
    closed_loop.evaluate_policy(tmp_path / "policy", tmp_path / "r.json", 2, SEED, "site-a,site-b")
    result = json.loads((tmp_path / "r.json").read_text())
    assert [e["seed"] for e in result["per_episode"]] == [SEED, SEED + 1]
    assert (result["success_rate"], result["expert_success_rate"]) == (0, 1)
    assert "success 0%" in capsys.readouterr().out


def test_a_folder_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no policy there"):
        closed_loop.evaluate_policy(tmp_path, tmp_path / "r.json", 2, SEED, "site-a,site-b")
