from pathlib import Path

import torch

from client.feedback import add_residual, keep_residual
from federation.codec import decode, encode


def _round(scratch: Path, run: str, wanted: torch.Tensor, *, feedback: bool) -> torch.Tensor:
    """Send `wanted` as int8; return what arrives."""
    update = {"w": wanted.clone()}
    if feedback:
        add_residual(scratch, run, update)
    arrived = decode(encode(update["w"], "int8"), wanted.shape, "int8")
    if feedback:
        keep_residual(scratch, run, {"w": update["w"] - arrived})
    return arrived


def test_with_feedback_the_sum_of_the_updates_arrives(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(500, generator=generator) for _ in range(50)]
    sent = sum(steps)
    error = {
        feedback: (sum(_round(tmp_path, "run", step, feedback=feedback) for step in steps) - sent).norm()
        for feedback in (True, False)
    }
    one_step = (decode(encode(steps[0], "int8"), (500,), "int8") - steps[0]).norm()
    assert error[True] < 2 * one_step
    assert error[False] > 4 * one_step


def test_a_residual_belongs_to_its_run(tmp_path: Path) -> None:
    keep_residual(tmp_path, "first", {"w": torch.ones(3)})
    update = {"w": torch.zeros(3)}
    add_residual(tmp_path, "second", update)
    assert update["w"].tolist() == [0, 0, 0]
    keep_residual(tmp_path, "second", {"w": torch.ones(3)})
    assert len(list((tmp_path / "feedback").iterdir())) == 1


def test_the_servers_name_of_a_run_chooses_no_path_on_the_site(tmp_path: Path) -> None:
    keep_residual(tmp_path / "scratch", "../../escaped", {"w": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["feedback"]


def test_a_damaged_or_unfitting_residual_is_dropped(tmp_path: Path) -> None:
    keep_residual(tmp_path, "run", {"w": torch.ones(4)})
    update = {"w": torch.zeros(3)}
    add_residual(tmp_path, "run", update)
    next((tmp_path / "feedback").iterdir()).write_bytes(b"torn")
    add_residual(tmp_path, "run", update)
    assert update["w"].tolist() == [0, 0, 0]
