"""The check of the GPU path with the tiny policy on the CPU: the same code, but for two SuperNodes."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import check
from tests.gpu.setting import Setting

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """One that is prepared."""
    from tests.gpu.parts import prepare

    setting = Setting("cpu", "tiny", tmp_path_factory.mktemp("check"), 0)
    prepare(setting)
    return setting


def _rows(setting: Setting, part: str) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, setting.rows(part).read_text().splitlines())
    return {row.pop("what"): row for row in rows}


def test_what_was_prepared_names_what_was_imported(setting: Setting) -> None:
    (figures,) = _rows(setting, "prepare").values()
    assert figures["torch"].startswith("2.")
    assert "none" not in (figures["numpy"], figures["transformers"], figures["flwr"])


def test_steps_dense_and_of_an_adapter_are_measured_beside_lerobots(setting: Setting) -> None:
    from tests.gpu.parts import check_steps

    check_steps(setting)
    rows = _rows(setting, "a")
    assert rows.keys() == {"dense, batch 2", "lora, batch 2"}
    for figures in rows.values():
        assert figures["FedProx/LeRobot"] > 0
        assert figures["loss/fp32's"] == 1  # no autocast on a CPU


def test_the_sample_cache_is_filled_and_read(setting: Setting) -> None:
    from tests.gpu.parts import check_loading

    check_loading(setting)
    rows = _rows(setting, "c")
    assert rows.keys() == {"decoding", "from the cache"}
    assert all(0 <= figures["share waiting for samples"] <= 1 for figures in rows.values())
    assert "aim" in rows["from the cache"]


def test_a_chunk_is_timed_in_each_mode(setting: Setting) -> None:
    from tests.gpu.parts import check_inference

    check_inference(setting)
    rows = _rows(setting, "d")
    assert rows.keys() == {"fp32", "bf16", "compiled bf16"}
    assert all(figures["ms a chunk"] > 0 for figures in rows.values())


def fill(setting: Setting) -> None:
    """A part that measures one thing."""
    setting.report("a", "one", {"ms": 1.23456, "device": setting.device})


def fail(setting: Setting) -> None:
    """A part that fails after one figure."""
    setting.report("b", "before", {"ms": 2.0})
    raise RuntimeError("CUDA error: out of memory")


def crash(setting: Setting) -> None:
    """A part whose process ends at once, as of a signal."""
    os._exit(9)


def hang(setting: Setting) -> None:
    """A part that never ends."""
    setting.report("d", "before", {"ms": 3.0})
    time.sleep(600)


def test_a_part_that_fails_crashes_or_hangs_costs_no_other_and_its_figures_stand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, part in {"prepare": fill, "a": fill, "b": fail, "c": crash, "d": hang}.items():
        monkeypatch.setitem(check.PARTS, name, (f"{__name__}:{part.__name__}", 1.0))
    monkeypatch.setitem(check.PARTS, "d", (f"{__name__}:hang", 0.01))
    out = tmp_path / "out.json"
    command = ["--device", "cpu", "--size", "tiny", "--budget", "300", "--out", str(out)]
    assert check.main(command) == 1
    found = json.loads(out.read_text())
    parts = found["parts"]
    assert parts["a"][-1] == {"what": "one", "ms": 1.23456, "device": "cpu"}
    assert parts["b"][0]["what"] == "before"
    assert parts["b"][1]["error"] == "RuntimeError: CUDA error: out of memory"
    assert parts["c"] == [{"what": "ended", "error": "the process ended with code 9"}]
    assert parts["d"][-1]["error"].startswith("did not end in 3 s")
    assert found["card"]
    printed = capfd.readouterr().out
    assert "1.235" in printed
    assert "out of memory" in printed


def test_a_part_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check.main(["--parts", "ax"])
    assert ended.value.code == 2
    assert "there is no x" in capsys.readouterr().err
