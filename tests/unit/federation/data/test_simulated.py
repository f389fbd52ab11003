"""What `make demo` and `docker compose up` do with data of a simulated arm beside data of a real one."""

import json
import shutil
from pathlib import Path

import pytest

from federation.config import RunConfig
from federation.data.description import describe_dataset
from federation.data.simulated import SIMULATED_ROBOT, check_one_kind
from federation.errors import DatasetError
from server.deploy.demo import _check_data
from server.evaluation.datasets import find_evaluation_datasets


def _as_simulated(dataset: Path) -> None:
    file = dataset / "meta" / "info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"robot_type": SIMULATED_ROBOT}))


@pytest.mark.parametrize(
    ("sites", "held_out"),
    [
        ({"lab-a": True, "lab-b": True}, {"holdout": True}),
        ({"lab-a": False, "lab-b": False}, {"one": False, "two": False}),
        ({}, {"holdout": True}),
    ],
)
def test_one_kind_of_data_goes_together(sites: dict[str, bool], held_out: dict[str, bool]) -> None:
    check_one_kind(sites, held_out)


@pytest.mark.parametrize(
    ("sites", "held_out", "recorded", "simulated"),
    [
        ({"lab-a": False, "lab-b": True}, {}, "lab-a", "lab-b"),
        ({"lab-a": False}, {"holdout": True}, "lab-a", "held-out dataset holdout"),
        ({"lab-a": True}, {"holdout": False}, "held-out dataset holdout", "lab-a"),
        ({}, {"one": False, "two": True}, "held-out dataset one", "held-out dataset two"),
    ],
)
def test_two_kinds_are_refused_by_name_with_what_to_set(sites, held_out, recorded, simulated) -> None:
    with pytest.raises(DatasetError) as refused:
        check_one_kind(sites, held_out)
    assert str(refused.value) == (
        f"recorded on an arm: {recorded}; on a simulated one: {simulated}; they are never mixed: name your "
        "own data in all of SITE_A_DATA, SITE_B_DATA and EVALUATION_DATA (without containers: the folder in "
        "DATA), or in none"
    )


def test_a_data_set_says_whether_it_is_simulated_and_lerobot_opens_it(data: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    marked = Path(shutil.copytree(data / "site-a", tmp_path / "site-a"))
    assert not describe_dataset(marked).simulated
    _as_simulated(marked)
    assert describe_dataset(marked).simulated
    dataset = LeRobotDataset("local/site-a", root=marked, video_backend="pyav")
    assert dataset.meta.robot_type == SIMULATED_ROBOT
    assert len(dataset) == describe_dataset(marked).frames


@pytest.mark.parametrize("simulated", ["site-b", "holdout"])
def test_the_demo_refuses_a_mixture_before_anything_starts(
    data: Path, tmp_path: Path, simulated: str
) -> None:
    mixed = Path(shutil.copytree(data, tmp_path / "data"))
    _as_simulated(mixed / simulated)
    with pytest.raises(DatasetError, match=f"on a simulated one: .*{simulated}"):
        _check_data(RunConfig(), mixed)


def test_the_server_refuses_held_out_data_of_both_kinds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("site-a", "holdout"):
        shutil.copytree(data / name, tmp_path / "evaluation" / name)
    _as_simulated(tmp_path / "evaluation" / "site-a")
    monkeypatch.setenv("FEDERATION_EVALUATION", str(tmp_path / "evaluation"))
    with pytest.raises(DatasetError, match="on a simulated one: held-out dataset site-a"):
        find_evaluation_datasets(RunConfig())
