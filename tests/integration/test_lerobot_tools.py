"""LeRobot's own tools, unchanged and as processes, take an exported folder with nothing else of ours."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from federation.data.statistics import Statistics
from federation.policy.build import build_policy, build_processors, trainable_parameters
from federation.policy.folder import save_adapter_folder, save_policy_folder
from federation.settings import PolicyConfig
from server.output.model_card import model_card
from tests import REPOSITORY
from tests.unit.server.output.test_model_card import METRICS

# Imported by Python at its start: what only this project installs is not there.
ONLY_LEROBOT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"flwr", "client", "tests"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def folders(cache: Path, statistics: Statistics, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs export: `whole` of the tiny policy, and over that base `merged` and `adapter`."""
    folder, cpu = tmp_path_factory.mktemp("elsewhere"), torch.device("cpu")
    tiny = build_policy(PolicyConfig(size="tiny"), seed=0, device=cpu, cache=cache)
    save_policy_folder(folder / "whole", tiny, build_processors(tiny, statistics), "card")
    lora = PolicyConfig(pretrained=str(folder / "whole"), adapter="lora", lora_rank=2)
    adapted = build_policy(lora, seed=0, device=cpu, cache=cache)
    with torch.no_grad():
        for parameter in trainable_parameters(adapted).values():
            parameter.fill_(0.05)
    save_policy_folder(folder / "merged", adapted, build_processors(adapted, statistics), "card")
    save_adapter_folder(folder / "adapter", adapted, build_processors(adapted, statistics), "card")
    return folder


@pytest.mark.parametrize("kind", ["whole", "merged", "adapter"])
def test_lerobot_eval_drives_the_simulated_arm_with_it(folders: Path, kind: str, tmp_path: Path) -> None:
    """The arm is a plugin here: `federation` and `server.simulation`, without Flower and the rest."""
    plugin = tmp_path / "plugin"
    for package in ("federation", "server/simulation"):
        shutil.copytree(REPOSITORY / package, plugin / package, ignore=shutil.ignore_patterns("__pycache__"))
    (plugin / "sitecustomize.py").write_text(ONLY_LEROBOT)
    command = [Path(sys.executable).with_name("lerobot-eval"), "--policy.path=.", "--policy.device=cpu"]
    command += ["--env.type=so101_pick", "--env.discover_packages_path=server.simulation.gym_so101"]
    command += ["--env.image_size_px=32", "--eval.n_episodes=1", "--eval.batch_size=1"]
    ended = subprocess.run(
        [*command, f"--output_dir={tmp_path / 'eval'}"],
        cwd=folders / kind,
        env=os.environ | {"PYTHONPATH": str(plugin), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert result["overall"]["n_episodes"] == 1
    assert list((tmp_path / "eval").rglob("*.mp4"))


@pytest.mark.parametrize(
    ("kind", "tool"),
    [
        ("merged", "lerobot-rollout"),
        ("adapter", "lerobot-rollout"),
        ("merged", "python -m lerobot.async_inference.robot_client"),
    ],
)
def test_the_commands_of_the_model_card_get_as_far_as_the_arm(folders: Path, kind: str, tool: str) -> None:
    """There is none, nor its driver: an option that LeRobot does not know would end them before."""
    blocks = "\n".join(
        re.findall(r"```\n(.*?)```", model_card(METRICS, 2, alone=kind == "adapter"), re.DOTALL)
    )
    (command,) = [line for line in blocks.replace("\\\n", " ").splitlines() if line.startswith(tool)]
    scripts = Path(sys.executable).parent
    ended = subprocess.run(
        shlex.split(command),
        cwd=folders / kind,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode != 0
    assert re.search(r"feetech-servo-sdk|/dev/ttyACM0", ended.stderr), ended.stderr[-3000:]
    assert "unrecognized arguments" not in ended.stderr
