"""The simulated arm, its expert, and the datasets that they record."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from federation.data.simulated import SIMULATED_ROBOT
from server.cli import main
from server.simulation import picks
from server.simulation import recording as sample_data
from server.simulation.expert import plan_pick, play
from server.simulation.recording import SampleDataError, SampleParameters, ensure_sample_data
from server.simulation.scenes import FOREIGN, VARIANTS
from server.simulation.so101 import (
    FPS,
    HOME_NOISE_DEG,
    HOME_TARGETS,
    JOINT_LIMITS,
    SimulationError,
    SO101Scene,
)
from tests import REPOSITORY

pytestmark = pytest.mark.slow

SEEDS = range(1000, 1020)
FOREIGN_1_FOV_DEG = 42.18520642958061  # as recorded in the benchmarks' demonstrations
TINY = SampleParameters(episodes=1, eval_episodes=2, seed=3, image_size_px=32)


@pytest.fixture(scope="module", params=[name for name in VARIANTS if name not in FOREIGN[1:]])
def scene(request):
    return SO101Scene(VARIANTS[request.param])


@pytest.fixture(scope="module")
def site_a():
    return SO101Scene(VARIANTS["site-a"])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "sample"
    return out, ensure_sample_data(out, TINY, workers=1)


def open_dataset(root: Path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset(f"local/{root.name}", root=root, video_backend="pyav")


def column(dataset, name: str) -> np.ndarray:
    return np.asarray(dataset.hf_dataset.with_format("numpy")[name])


# The arm and the expert


def test_the_expert_picks_up_the_cube_in_nine_of_ten_scenes(scene):
    successes = 0
    for seed in SEEDS:
        scene.reset(seed)
        successes += play(scene, plan_pick(scene, seed))
    assert successes >= 0.9 * len(SEEDS)


def test_foreign_scenes_have_nothing_of_a_site_and_stay_as_they_are():
    sites = [variant for name, variant in VARIANTS.items() if name not in FOREIGN]
    for name in FOREIGN:
        assert VARIANTS[name].task not in {site.task for site in sites}
        assert VARIANTS[name].cube_rgb not in {site.cube_rgb for site in sites}
    assert VARIANTS["foreign-1"].top_camera.fov_deg == pytest.approx(FOREIGN_1_FOV_DEG)


def test_an_arm_that_stays_home_does_not_succeed(scene):
    scene.reset(0)
    assert not play(scene, np.tile(HOME_TARGETS, (2 * FPS, 1)))


def test_a_pick_beside_the_cube_does_not_succeed(scene):
    scene.reset(5)
    plan = plan_pick(scene, 5)
    plan[:, 0] += 25.0
    assert not play(scene, plan)


def test_success_ends_when_the_cube_is_dropped(scene):
    scene.reset(5)
    plan = plan_pick(scene, 5)
    assert play(scene, plan)
    let_go = plan[-1].copy()
    let_go[5] = 80.0
    assert not play(scene, np.tile(let_go, (FPS, 1)))


def test_the_same_seed_gives_the_same_episode(site_a):
    runs = []
    for _ in range(2):
        site_a.reset(7)
        plan = plan_pick(site_a, 7)
        play(site_a, plan)
        runs.append((plan, site_a.data.qpos.copy()))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


def test_another_seed_gives_another_scene_and_another_pace(site_a):
    plans = []
    for seed in (1, 2):
        site_a.reset(seed)
        plans.append(plan_pick(site_a, seed))
    assert len(plans[0]) != len(plans[1])
    assert np.abs(plans[0][-1] - plans[1][-1]).max() > 1.0


def test_planning_leaves_the_scene_as_it_was(site_a):
    site_a.reset(4)
    before = site_a.data.qpos.copy()
    plan_pick(site_a, 4)
    np.testing.assert_array_equal(site_a.data.qpos, before)


def test_state_and_targets_are_degrees_and_gripper_percent(site_a):
    site_a.reset(0)
    state = site_a.joint_state()
    assert state.shape == (6,)
    assert state.dtype == np.float32
    assert np.abs(state - HOME_TARGETS).max() <= HOME_NOISE_DEG + 1e-4
    goal = np.array([20.0, -30.0, 30.0, 50.0, -45.0, 60.0])
    play(site_a, np.tile(goal, (2 * FPS, 1)))
    np.testing.assert_allclose(site_a.joint_state(), goal, atol=3.0)  # sag under the arm's own weight


def test_a_target_beyond_the_travel_is_held_at_the_limit(site_a):
    site_a.reset(0)
    site_a.step(np.array([500.0, 0, 0, 0, 0, 130.0]))
    ctrl = site_a.from_radians(site_a.data.ctrl)
    assert ctrl[0] == pytest.approx(JOINT_LIMITS[0, 1])
    assert ctrl[5] == pytest.approx(100.0)


@pytest.mark.parametrize("targets", [np.zeros(5), np.full(6, np.nan), np.zeros((1, 6))])
def test_targets_that_are_not_six_finite_numbers_are_refused(site_a, targets):
    site_a.reset(0)
    with pytest.raises(ValueError, match="joint_targets"):
        site_a.step(targets)


def test_an_image_size_out_of_range_is_refused():
    with pytest.raises(ValueError, match="image_size_px is 4"):
        SO101Scene(VARIANTS["site-a"], image_size_px=4)


def test_a_machine_that_cannot_draw_says_which_packages_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    scene = SO101Scene(VARIANTS["site-a"])
    scene.reset(0)
    with pytest.raises(SimulationError, match=r"MUJOCO_GL='nothing'.*libegl1 libosmesa6"):
        scene.observe()


# The recorded datasets


def test_recorded_data_sets_open_in_lerobot_with_an_so100_followers_features(recorded):
    out, counts = recorded
    for name, episodes in (("site-a", 1), ("site-b", 1), ("holdout", 2)):
        dataset = open_dataset(out / name)
        assert dataset.fps == FPS
        assert dataset.meta.robot_type == SIMULATED_ROBOT
        assert dataset.num_episodes == episodes == counts[name]["episodes"]
        assert dataset.num_frames == counts[name]["frames"]
        assert sorted(dataset.meta.camera_keys) == ["observation.images.top", "observation.images.wrist"]
        for key in ("action", "observation.state"):
            assert tuple(dataset.features[key]["shape"]) == (6,)
            assert dataset.features[key]["names"][::5] == ["shoulder_pan.pos", "gripper.pos"]
        item = dataset[dataset.num_frames // 2]
        for key in dataset.meta.camera_keys:
            assert item[key].shape == (3, 32, 32)
            assert item[key].std() > 0.05  # not one flat colour


def test_sites_have_their_own_wording_and_the_holdout_has_both(recorded):
    out, _ = recorded
    tasks = {name: set(open_dataset(out / name).meta.tasks.index) for name in sample_data.DATASETS}
    assert tasks["site-a"] == {VARIANTS["site-a"].task}
    assert tasks["site-b"] == {VARIANTS["site-b"].task}
    assert tasks["holdout"] == tasks["site-a"] | tasks["site-b"]


def test_an_action_leads_the_state_that_follows_it(recorded):
    out, _ = recorded
    dataset = open_dataset(out / "site-a")
    states, actions = column(dataset, "observation.state"), column(dataset, "action")
    lag_after = np.abs(actions[:-1, :5] - states[1:, :5]).mean()
    lag_before = np.abs(actions[:-1, :5] - states[:-1, :5]).mean()
    assert lag_after < lag_before
    assert lag_after < 3.0
    assert (actions >= JOINT_LIMITS[:, 0]).all()
    assert (actions <= JOINT_LIMITS[:, 1]).all()


def test_the_same_parameters_record_the_same_values_and_frames(recorded, tmp_path):
    out, counts = recorded
    again = tmp_path / "again"
    assert ensure_sample_data(again, TINY, workers=1) == counts
    first, second = open_dataset(out / "site-b"), open_dataset(again / "site-b")
    for key in ("observation.state", "action"):
        np.testing.assert_array_equal(column(first, key), column(second, key))
    for key in first.meta.camera_keys:
        assert (first[40][key] == second[40][key]).all()


def test_two_workers_record_what_one_does(recorded, tmp_path):
    out, counts = recorded
    assert ensure_sample_data(tmp_path / "two", TINY, workers=2) == counts
    for name in sample_data.DATASETS:
        one, two = open_dataset(out / name), open_dataset(tmp_path / "two" / name)
        np.testing.assert_array_equal(column(one, "observation.state"), column(two, "observation.state"))


# The folder


def test_a_second_run_returns_at_once_without_heavy_imports(recorded):
    out, _ = recorded
    manifest = out / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert ensure_sample_data(out, TINY) is None
    assert manifest.stat().st_mtime_ns == before
    script = (
        "import sys; from pathlib import Path; from server.simulation.recording import *\n"
        f"assert ensure_sample_data(Path({str(out)!r}), SampleParameters(1, 2, 3, 32)) is None\n"
        "print([name for name in ('mujoco', 'lerobot', 'torch', 'numpy') if name in sys.modules])"
    )
    root = REPOSITORY
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True, timeout=30
    )
    assert run.stdout.strip() == "[]"


def fake_recording(monkeypatch, record=None):
    """Stand in for the minutes of simulation: three datasets of one file each."""

    def write_info_files(root, parameters, datasets, workers):
        for name in datasets:
            (root / name / "meta").mkdir(parents=True)
            info = {"robot_type": SIMULATED_ROBOT, "total_episodes": 1, "total_frames": 1}
            (root / name / "meta" / "info.json").write_text(json.dumps(info | {"seed": parameters.seed}))
        return {name: {"episodes": 1, "frames": 1, "attempts": 1} for name in datasets}

    monkeypatch.setattr(sample_data, "_record_all", record or write_info_files)


def test_other_parameters_replace_our_own_sample_data(monkeypatch, tmp_path):
    fake_recording(monkeypatch)
    out = tmp_path / "sample"
    assert ensure_sample_data(out, SampleParameters(seed=1)) is not None
    assert ensure_sample_data(out, SampleParameters(seed=2)) is not None
    assert json.loads((out / "site-a" / "meta" / "info.json").read_text())["seed"] == 2
    assert json.loads((out / "manifest.json").read_text())["parameters"]["seed"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["sample"]


def test_sample_data_with_a_data_set_missing_is_recorded_again(monkeypatch, tmp_path):
    fake_recording(monkeypatch)
    out = tmp_path / "sample"
    ensure_sample_data(out, SampleParameters())
    (out / "holdout" / "meta" / "info.json").unlink()
    assert ensure_sample_data(out, SampleParameters()) is not None
    assert ensure_sample_data(out, SampleParameters()) is None


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "not json", '{"kind": "something else"}'])
def test_a_folder_that_is_not_ours_is_refused_and_untouched(monkeypatch, tmp_path, capsys, manifest):
    fake_recording(monkeypatch)
    (tmp_path / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    assert main(["sample-data", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert error.count("\n") == 1


def test_other_data_sets_can_be_recorded(tmp_path, monkeypatch):
    fake_recording(monkeypatch)
    out = tmp_path / "study"
    datasets = {"site-c": ("site-c",), "holdout": ("site-a", "site-c")}
    recorded = ensure_sample_data(out, TINY, datasets=datasets)
    assert list(recorded) == ["site-c", "holdout"]
    assert ensure_sample_data(out, TINY, datasets=datasets) is None


def test_the_command_records_other_scenes_and_tells_recordings_of_others_apart(monkeypatch, tmp_path):
    fake_recording(monkeypatch)
    out = tmp_path / "arm"
    assert main(["sample-data", "--out", str(out), "--scenes", "left, right"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["scenes"] == {"site-a": ["left"], "site-b": ["right"], "holdout": ["left", "right"]}
    assert main(["sample-data", "--out", str(out)]) == 0
    assert json.loads((out / "manifest.json").read_text())["scenes"]["site-a"] == ["site-a"]


def test_sample_data_of_before_scenes_were_named_is_not_recorded_again(monkeypatch, tmp_path):
    fake_recording(monkeypatch)
    ensure_sample_data(tmp_path / "sample", TINY)
    path = tmp_path / "sample" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["scenes"]
    path.write_text(json.dumps(manifest))
    assert ensure_sample_data(tmp_path / "sample", TINY) is None


def test_the_easier_scenes_keep_the_cube_in_their_patch():
    for name, side in (("left", 1), ("right", -1)):
        scene = SO101Scene(VARIANTS[name])
        for seed in range(20):
            scene.reset(seed)
            x, y, _ = scene.data.body("cube").xpos
            assert 8 <= side * np.degrees(np.arctan2(y, x)) <= 20
            assert 0.22 <= np.hypot(x, y) <= 0.245


def test_a_file_of_someone_else_inside_our_folder_is_not_deleted(monkeypatch, tmp_path):
    fake_recording(monkeypatch)
    out = tmp_path / "sample"
    ensure_sample_data(out, SampleParameters(seed=1))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SampleDataError, match=r"notes\.txt"):
        ensure_sample_data(out, SampleParameters(seed=2))
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "cause", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")]
)
def test_an_interrupted_recording_leaves_nothing_that_looks_complete(monkeypatch, tmp_path, cause):
    def record_half(root, parameters, datasets, workers):
        (root / "site-a" / "meta").mkdir(parents=True)
        (root / "site-a" / "meta" / "info.json").write_text("{}")
        raise cause

    fake_recording(monkeypatch, record_half)
    out = tmp_path / "sample"
    with pytest.raises(type(cause)):
        ensure_sample_data(out, SampleParameters())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_sample_data_whole(monkeypatch, tmp_path):
    fake_recording(monkeypatch)
    out = tmp_path / "sample"
    ensure_sample_data(out, SampleParameters(seed=1))

    def fail(root, parameters, datasets, workers):
        raise KeyboardInterrupt

    fake_recording(monkeypatch, fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_sample_data(out, SampleParameters(seed=2))
    assert ensure_sample_data(out, SampleParameters(seed=1)) is None


def test_an_expert_that_keeps_failing_is_an_error_and_not_an_endless_loop(monkeypatch):
    monkeypatch.setattr("server.simulation.expert.play", lambda scene, plan: False)
    with pytest.raises(SampleDataError, match="20 picks failed"):
        picks._record_episode(picks.Job("site-a", "site-a", (0, 0)), TINY)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--episodes", "0"], "episodes is 0"),
        (["--eval-episodes", "-1"], "eval_episodes is -1"),
        (["--seed", "-5"], "seed is -5"),
        (["--workers", "0"], "workers is 0"),
        (["--scenes", "left,moon"], "scene 'moon' is unknown; choose from site-a"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(tmp_path, capsys, arguments, named):
    assert main(["sample-data", "--out", str(tmp_path / "sample"), *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_terminated_recording_cleans_up(tmp_path):
    root = REPOSITORY
    command = [sys.executable, "-m", "server.cli", "sample-data", "--out", str(tmp_path / "sample")]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL, env=os.environ) as recording:
        deadline = time.monotonic() + 240
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(tmp_path.iterdir())
        recording.terminate()
        assert recording.wait(timeout=240) == 143
    assert list(tmp_path.iterdir()) == []


LOST_STOP = """
import os, signal, sys, weakref
from server.cli import main
from server.simulation import recording

class Gone: pass

def stop(_):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(3): pass

def episodes(*_):
    gone = Gone()
    reference = weakref.ref(gone, stop)
    del gone
    print("went on")
    yield None

recording.record_episodes = episodes
sys.exit(main(["sample-data", "--episodes", "1", "--eval-episodes", "1", "--out", sys.argv[1]]))
"""


def test_a_stop_that_python_drops_in_a_callback_still_ends_the_recording(tmp_path):
    command = [sys.executable, "-c", LOST_STOP, str(tmp_path / "sample")]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (143, "went on\n"), ended.stderr
    assert list(tmp_path.iterdir()) == []
