"""The benchmark that ran at full size on a GPU, with the tiny policy on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import step_time

pytestmark = pytest.mark.slow


def _run(monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *arguments: str) -> tuple[int, Any]:
    command = [
        "step_time",
        "--data",
        str(data / "site-a"),
        "--out",
        str(out),
        "--batch-sizes",
        "2",
        *arguments,
    ]
    monkeypatch.setattr("sys.argv", command)
    return step_time.main(), json.loads(out.read_text())["tiny, batch size 2"]


def test_all_parts_measure_the_tiny_policy_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    code, found = _run(monkeypatch, data, tmp_path / "out.json", "--pairs", "1", "--round-steps", "2")
    assert code == 0
    assert found["losses"]["autocast"] == found["losses"]["fp32"]  # no autocast on a CPU
    assert found["losses"]["gradient_cosine"] == pytest.approx(1)
    assert found["steps"]["fedprox_over_lerobot"] > 0
    assert found["round"]["steps"] == 2
    assert found["round"]["update_norm"] > 0
    assert (found["device"], found["torch"]) == ("cpu", torch.__version__)


def test_a_part_that_fails_costs_no_other_part(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    def fail(bench: step_time.Bench) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(step_time, "PARTS", {"losses": fail, "peak_memory": step_time.peak_memory})
    code, found = _run(monkeypatch, data, tmp_path / "out.json")
    assert code == 1
    assert found["losses"] == {"error": "RuntimeError: out of memory"}
    assert found["peak_memory"] == {}
