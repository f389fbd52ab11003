from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from client.state import round_state
from client.state.feedback import add_residual, keep_residual
from client.state.progress import ProgressFile
from client.state.round_state import drop_round_state
from federation.wire.codec import decode, encode


def _round(
    scratch: Path, run: str, wanted: torch.Tensor, *, round_: int, feedback: bool = True
) -> torch.Tensor:
    """Send `wanted` as int8; return what arrives."""
    update = {"w": wanted.clone()}
    if feedback:
        add_residual(scratch, run, round_, update)
    arrived = decode(encode(update["w"], "int8"), wanted.shape, "int8")
    if feedback:
        keep_residual(scratch, run, round_, {"w": update["w"] - arrived})
    return arrived


def test_with_feedback_the_sum_of_the_updates_arrives(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(500, generator=generator) for _ in range(50)]
    sent = sum(steps)
    error = {
        feedback: (
            sum(
                _round(tmp_path, "run", step, round_=round_, feedback=feedback)
                for round_, step in enumerate(steps, start=1)
            )
            - sent
        ).norm()
        for feedback in (True, False)
    }
    one_step = (decode(encode(steps[0], "int8"), (500,), "int8") - steps[0]).norm()
    assert error[True] < 2 * one_step
    assert error[False] > 4 * one_step


def test_where_the_server_divides_by_the_root_of_the_steps_so_it_does_the_residual(tmp_path: Path) -> None:
    keep_residual(tmp_path, "run", 1, {"w": torch.full((3,), 8.0)}, steps=4)
    update = {"w": torch.zeros(3)}
    add_residual(tmp_path, "run", 2, update, steps=16)
    assert update["w"].tolist() == [16, 16, 16]
    add_residual(tmp_path, "run", 2, update)  # partial work was switched off
    assert update["w"].tolist() == [16, 16, 16]


def test_a_residual_belongs_to_its_run(tmp_path: Path) -> None:
    keep_residual(tmp_path, "first", 1, {"w": torch.ones(3)})
    update = {"w": torch.zeros(3)}
    add_residual(tmp_path, "second", 2, update)
    assert update["w"].tolist() == [0, 0, 0]
    keep_residual(tmp_path, "second", 2, {"w": torch.ones(3)})
    assert len(list((tmp_path / "feedback").iterdir())) == 1


def test_the_servers_name_of_a_run_chooses_no_path_on_the_site(tmp_path: Path) -> None:
    keep_residual(tmp_path / "scratch", "../../escaped", 1, {"w": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["feedback"]


def test_a_damaged_or_unfitting_residual_is_dropped(tmp_path: Path) -> None:
    keep_residual(tmp_path, "run", 1, {"w": torch.ones(4)})
    update = {"w": torch.zeros(3)}
    add_residual(tmp_path, "run", 2, update)
    next((tmp_path / "feedback").iterdir()).write_bytes(b"torn")
    add_residual(tmp_path, "run", 2, update)
    assert update["w"].tolist() == [0, 0, 0]


def test_a_round_done_again_takes_the_same_residual_once_more(tmp_path: Path) -> None:
    steps = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    first = [_round(tmp_path, "run", step, round_=round_) for round_, step in enumerate(steps, start=1)]
    again = _round(tmp_path, "run", steps[2], round_=3)
    assert again.equal(first[2])
    assert len(list((tmp_path / "feedback").iterdir())) == 2


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_on_a_full_disk_no_residual_is_kept_and_none_counts_twice(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_residual(tmp_path, "run", 1, {"w": torch.ones(3)})

    def full(tensors: dict, file: Path) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(round_state, "save_file", full)
    keep_residual(tmp_path, "run", 2, {"w": torch.ones(3)})
    update = {"w": torch.zeros(3)}
    add_residual(tmp_path, "run", 3, update)
    assert update["w"].tolist() == [0, 0, 0]
    assert list((tmp_path / "feedback").iterdir()) == []


def test_progress_that_cannot_be_written_does_not_end_the_training(tmp_path: Path) -> None:
    ProgressFile(tmp_path / "gone", round_=1, local_steps=1).update(1, 0.5)


def test_after_a_rollback_no_residual_of_a_later_round_is_taken(tmp_path: Path) -> None:
    for round_ in (7, 8):
        keep_residual(tmp_path, "run", round_, {"w": torch.ones(3)})
    update = {"w": torch.zeros(3)}
    add_residual(tmp_path, "run", 3, update)
    assert update["w"].tolist() == [0, 0, 0]
    keep_residual(tmp_path, "run", 3, {"w": torch.ones(3)})
    assert len(list((tmp_path / "feedback").iterdir())) == 1


def test_what_undone_rounds_left_is_taken_by_none_however_late_the_site_is_back(tmp_path: Path) -> None:
    for round_ in (2, 5):
        keep_residual(tmp_path, "run", round_, {"w": torch.full((3,), float(round_))})
    (tmp_path / "progress.json").touch()
    drop_round_state(tmp_path, "another", [5])
    drop_round_state(tmp_path, "run", [4, 5])  # round 5 went back to round 3
    update = {"w": torch.zeros(3)}
    add_residual(tmp_path, "run", 7, update)
    assert update["w"].tolist() == [2, 2, 2]  # round 5 alone had taken it
    drop_round_state(tmp_path, "run", [2])
    assert list((tmp_path / "feedback").iterdir()) == []
