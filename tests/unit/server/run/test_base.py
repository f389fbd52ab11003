from pathlib import Path
from typing import Any

import pytest

from federation.config import RunConfig, parse_run_config
from federation.errors import ConfigError
from server.run.base import locate_base
from server.run.records import RunRecord


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A run, demo-1, that has finished."""
    record = RunRecord(tmp_path, "demo-1", RunConfig())
    record.close("finished")
    for name in ("pretrained_model", "pretrained_model_best"):
        (record.folder / name).mkdir()
    return tmp_path


def _config(**changes: Any) -> RunConfig:
    return parse_run_config({"policy.pretrained": "run:demo-1"} | changes, "tests")


def test_the_best_of_the_run_is_started_from(outputs: Path) -> None:
    folder = outputs / "demo-1"
    assert locate_base(_config(), outputs).policy.pretrained == str(folder / "pretrained_model_best")
    (folder / "pretrained_model_best").rmdir()
    assert locate_base(_config(), outputs).policy.pretrained == str(folder / "pretrained_model")


def test_an_adapter_is_trained_over_what_the_sites_have(outputs: Path) -> None:
    local = locate_base(_config(**{"policy.adapter": "lora"}), outputs)
    assert local.policy.pretrained == str(outputs / "demo-1" / "pretrained_model")


def test_any_other_base_stays(outputs: Path) -> None:
    for changes in ({"policy.pretrained": "lab/so101"}, {"policy.size": "tiny"}):
        config = _config(**changes)
        assert locate_base(config, outputs) is config


@pytest.mark.parametrize("status", ["none", "running", "no export"])
def test_a_run_without_a_policy_is_named_before_anything_starts(status: str, outputs: Path) -> None:
    name = "demo-1"
    if status == "none":
        name = "demo-2"
    elif status == "running":
        name = "demo-3"
        (RunRecord(outputs, name, RunConfig()).folder / "pretrained_model").mkdir()
    else:
        (outputs / "demo-1" / "pretrained_model").rmdir()
    with pytest.raises(ConfigError, match=rf"policy.pretrained = 'run:{name}': .* no such run that has fin"):
        locate_base(_config(**{"policy.pretrained": f"run:{name}"}), outputs)
