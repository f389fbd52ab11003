from pathlib import Path
from typing import Any

import pytest

from federation.config import flatten, parse_run_config
from federation.errors import ConfigError
from federation.policy.earlier_run import earlier_run, start_from


def _config(**policy: Any) -> Any:
    return parse_run_config({f"policy.{key}": value for key, value in policy.items()}, "tests")


def test_only_a_run_that_is_named_is_one() -> None:
    assert earlier_run(_config(pretrained="run:demo-1.2_b")) == "demo-1.2_b"
    assert earlier_run(_config(pretrained="lab/run")) == ""
    assert earlier_run(_config(size="tiny", pretrained="run:demo-1")) == ""


def test_the_folder_takes_the_place_of_the_name_and_nothing_else_changes() -> None:
    config = _config(pretrained="run:demo-1")
    local = start_from(config, Path("/outputs/demo-1/pretrained_model"))
    changed = {key for key, value in flatten(local).items() if flatten(config)[key] != value}
    assert changed == {"policy.pretrained"}
    assert local.policy.pretrained == "/outputs/demo-1/pretrained_model"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_a_name_that_no_run_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"policy.pretrained = 'run:.*: names no run; "):
        _config(pretrained=f"run:{name}")
