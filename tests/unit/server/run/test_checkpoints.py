import errno
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from federation import files
from federation.config import RunConfig, flatten
from federation.settings import AggregationConfig, CheckpointConfig, RunSection
from server.aggregation.collector import make_server_optimizer
from server.cli import main
from server.model import GlobalModel
from server.run import checkpoints as module
from server.run.checkpoint_file import CheckpointError, load_checkpoint
from server.run.checkpoints import Checkpoints, set_checkpoints_back
from server.run.records import RunRecord
from server.run.round_record import RoundRecord

FINGERPRINT = "f" * 64


def _model(value: float = 0.0, strategy: str = "fedprox") -> GlobalModel:
    weights = {"a": torch.full((3,), value), "b": torch.full((2, 2), value)}
    statistics = {"action": {"mean": np.array([0.1, 1 / 3]), "count": np.array([7])}}
    made = make_server_optimizer(AggregationConfig(strategy=strategy), weights)
    return GlobalModel(weights, statistics, FINGERPRINT, made, deque([1.5, 2.5], maxlen=32))


def _store(folder: Path, measured_on: str = "m", **changes: int) -> Checkpoints:
    return Checkpoints(folder, CheckpointConfig(**changes), flatten(RunConfig()), measured_on)


def _rounds(folder: Path) -> list[int]:
    return [int(file.stem[-4:]) for file in sorted(folder.glob("round_*"))]


def test_the_newest_every_nth_and_the_best_are_kept(tmp_path: Path) -> None:
    store = _store(tmp_path, keep=2, keep_every=3)
    for round_, loss in enumerate([5.0, 3.0, 1.0, 2.0, 4.0, 3.0, 2.0, None, 6.0]):
        store.save(round_, _model(round_), loss, RoundRecord(round_))
    assert _rounds(tmp_path) == [3, 6, 7, 8]
    best = load_checkpoint(store.best)
    assert (best.round, best.policy_loss) == (2, 1.0)
    assert load_file(store.best)["a"].tolist() == [
        2.0,
        2.0,
        2.0,
    ]  # any reader sees the weights by their names


def test_the_best_is_saved_between_the_rounds_that_are_saved_anyway(tmp_path: Path) -> None:
    store = _store(tmp_path, frequency=5)
    losses = [5.0, 4.0, 4.5, None, 6.0, 3.0, 2.0, 1.0, 2.5, 2.0]
    saved = []
    for round_, loss in enumerate(losses):
        if store.due(round_, loss, last=round_ == 9):
            store.save(round_, _model(round_), loss, RoundRecord(round_))
            saved.append(round_)
    assert saved == [0, 1, 5, 6, 7, 9]
    assert load_checkpoint(store.best).round == 7


def test_the_best_is_remembered_by_a_continuation(tmp_path: Path) -> None:
    _store(tmp_path).save(1, _model(1), 1.0, RoundRecord(1))
    _store(tmp_path).save(2, _model(2), 2.0, RoundRecord(1))
    assert load_checkpoint(tmp_path / "best.safetensors").round == 1


def test_losses_measured_on_something_else_are_not_compared(tmp_path: Path) -> None:
    """What the loss was on the old hold-out must not make every later round look worse, or better."""
    assert _store(tmp_path, "old").best_is_comparable  # a new run
    _store(tmp_path, "old").save(1, _model(1), 0.1, RoundRecord(1))
    assert _store(tmp_path, "old").best_is_comparable
    store = _store(tmp_path, "new")
    assert not store.best_is_comparable
    store.measured_anew(load_checkpoint(store.best), 0.9)
    store.save(2, _model(2), 0.8, RoundRecord(1))
    for same in (store, _store(tmp_path, "new")):
        assert (same.best_is_comparable, same.best_loss) == (True, 0.8)
    best = load_checkpoint(store.best)
    assert (best.round, best.policy_loss, best.measured_on) == (2, 0.8, "new")
    assert load_checkpoint(tmp_path / "round_0001.safetensors").policy_loss == 0.1
    set_checkpoints_back(tmp_path, 1)
    assert load_checkpoint(store.best).measured_on == "old"


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_damaged_best_is_named_and_the_best_of_the_others_takes_its_place(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path, keep=2)
    for round_, loss in enumerate([3.0, 0.5, 1.0, 2.0]):
        store.save(round_, _model(round_), loss, RoundRecord(1))
    store.best.unlink()
    if damage == "torn":
        store.best.write_bytes(b"torn")
    lines: list[str] = []
    monkeypatch.setattr(module._log, "error", lambda text, *values: lines.append(text % values))
    store = _store(tmp_path, keep=2)
    (line,) = lines
    assert "best.safetensors" in line
    assert "the best of the other checkpoints takes its place" in line
    assert (store.best_loss, load_checkpoint(store.best).round) == (1.0, 2)
    store.save(4, _model(4), 1.5, RoundRecord(1))
    assert load_checkpoint(store.best).round == 2


def test_without_an_evaluated_checkpoint_the_newest_is_to_be_evaluated(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for round_ in (1, 2):
        store.save(round_, _model(round_), None, RoundRecord(1))
    store = _store(tmp_path)
    assert not store.best_is_comparable
    assert load_checkpoint(store.best).round == 2


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["torn", "empty", "a weight", "the metadata", "unsigned"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path)
    for round_ in (1, 2):
        store.save(round_, _model(round_), None, RoundRecord(round_))
    path = tmp_path / "round_0002.safetensors"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a weight":
        _flip(path, path.stat().st_size - 1)
    elif damage == "the metadata":
        _flip(path, path.read_bytes().index(b"norms") + 9)
    else:
        save_file(load_file(path), path)
    lines: list[str] = []
    monkeypatch.setattr(module._log, "error", lambda text, *values: lines.append(text % values))
    newest = store.newest()
    assert newest
    assert newest.round == 1
    assert "round_0002.safetensors" in lines[0]
    (tmp_path / "round_0001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"):
        store.newest()


def test_a_kill_while_the_best_is_linked_leaves_every_round_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path)
    store.save(1, _model(1), 3.0, RoundRecord(1))
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
    monkeypatch.setattr(Path, "replace", _killed_at(store.best, Path.replace))
    with pytest.raises(KeyboardInterrupt):
        store.save(2, _model(2), 2.0, RoundRecord(1))
    monkeypatch.undo()
    assert (tmp_path / "round_0002.safetensors").stat().st_nlink == 2
    monkeypatch.setattr(
        module, "remove_unfinished", lambda *_: None
    )  # nor does anybody before the next write
    _store(tmp_path).save(3, _model(3), 1.0, RoundRecord(1))
    assert [load_checkpoint(tmp_path / f"round_000{n}.safetensors").round for n in (1, 2, 3)] == [1, 2, 3]
    assert load_checkpoint(store.best).round == 3


@pytest.mark.parametrize("measured_on", ["m", "something else"])
def test_a_kill_before_the_best_is_linked_costs_no_best_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured_on: str
) -> None:
    store = _store(tmp_path)
    store.save(1, _model(1), 3.0, RoundRecord(1))
    monkeypatch.setattr(Path, "replace", _killed_at(store.best, Path.replace))
    with pytest.raises(KeyboardInterrupt):
        store.save(2, _model(2), 2.0, RoundRecord(2))
    monkeypatch.undo()
    store = _store(tmp_path, measured_on)
    newest = store.newest()
    assert newest
    assert (newest.round, store.best_loss, load_checkpoint(store.best).round) == (2, 2.0, 2)
    assert store.best_is_comparable == (measured_on == "m")
    if measured_on == "m":
        store.save(3, _model(3), 2.5, RoundRecord(3))
        assert load_checkpoint(store.best).round == 2


def test_the_best_is_none_of_a_round_that_is_done_again(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for round_, loss in enumerate([3.0, 2.0, 2.5, 1.0]):
        store.save(round_, _model(round_), loss, RoundRecord(round_))
    store.measured_anew(load_checkpoint(store.best), 1.0)  # a file of its own
    (tmp_path / "round_0003.safetensors").write_bytes(b"torn")
    store = _store(tmp_path)
    assert store.best_loss == 1.0
    newest = store.newest()
    assert newest
    assert (newest.round, store.best_loss, load_checkpoint(store.best).round) == (2, 2.0, 1)


def _killed_at(target: Path, replace: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    def stop(source: Path, path: Path) -> Path:
        if path == target:
            raise KeyboardInterrupt
        return replace(source, path)

    return stop


def test_litter_of_a_killed_server_is_removed_by_the_next(tmp_path: Path) -> None:
    litter = tmp_path / ".round_0002.safetensors.abc.part"
    litter.mkdir()
    (litter / "round_0002.safetensors").touch()
    _store(tmp_path)
    assert not litter.exists()


def test_a_checkpoint_under_the_name_of_another_round_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = _recorded_run(tmp_path, 3)
    second, third = (folder / "checkpoints" / f"round_000{n}.safetensors" for n in (2, 3))
    second.unlink()
    second.write_bytes(third.read_bytes())
    assert _roll_back(folder, "2") == 2
    assert "round_0002.safetensors holds round 3, not the round in its name" in capsys.readouterr().err


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert _store(tmp_path / "new").newest() is None


@pytest.mark.parametrize("moment", ["write", "flush", "move"])
def test_a_full_disk_costs_the_round_in_hand_and_says_so(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path, keep=1)
    store.save(1, _model(1), 1.0, RoundRecord(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "write":

        def torn(tensors: object, path: Path, metadata: object) -> None:
            path.write_bytes(b"half a checkpoint")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(module, "save_file", torn)
    elif moment == "flush":
        monkeypatch.setattr("federation.files.os.fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CheckpointError, match=r"No space left .* round 2 is not saved, earlier ones are"):
        store.save(2, _model(2), 0.5, RoundRecord(2))
    monkeypatch.undo()
    newest = store.newest()
    assert newest
    assert newest.round == 1
    assert load_checkpoint(store.best).round == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.safetensors", "round_0001.safetensors"]


def _recorded_run(tmp_path: Path, rounds: int) -> Path:
    """The folder of a run of `rounds` rounds whose losses rise after the second."""
    record = RunRecord(tmp_path, "run-1", RunConfig(run=RunSection(name="run-1")))
    store = _store(record.folder / "checkpoints", keep=10)
    for round_ in range(1, rounds + 1):
        entry = RoundRecord(round_)
        store.save(round_, _model(round_), 1.0 + abs(2 - round_) - 2 * (round_ == rounds), entry)
        record.round_finished(entry)
    record.close("finished")
    record.write_final_event()
    record._lock.close()
    return record.folder


def _roll_back(folder: Path, round_: str) -> int:
    return main(["rollback", folder.name, round_, "--outputs", str(folder.parent)])


def test_a_rollback_sets_later_rounds_aside(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = _recorded_run(tmp_path, 4)
    assert _roll_back(folder, "3") == 0
    assert "make resume RUN=run-1" in capsys.readouterr().out
    assert _rounds(folder / "checkpoints") == [1, 2, 3]
    assert _rounds(folder / "checkpoints" / "set_aside") == [4]
    assert load_checkpoint(folder / "checkpoints" / "best.safetensors").round == 2
    metrics = json.loads((folder / "federated_metrics.json").read_text())
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2, 3]
    assert (metrics["status"], metrics["reason"]) == (
        "failed",
        "rolled back to round 3 by the operator: resume it",
    )


@pytest.mark.parametrize("damaged", ["best", "round_0001"])
def test_a_rollback_does_not_stop_halfway_at_a_damaged_file(tmp_path: Path, damaged: str) -> None:
    folder = _recorded_run(tmp_path, 3)
    path = folder / "checkpoints" / f"{damaged}.safetensors"
    path.unlink()  # it may have another name
    path.write_bytes(b"torn")
    assert _roll_back(folder, "2") == 0
    assert _rounds(folder / "checkpoints") == [1, 2]
    assert _rounds(folder / "checkpoints" / "set_aside") == [3]
    assert load_checkpoint(folder / "checkpoints" / "best.safetensors").round == 2
    metrics = json.loads((folder / "federated_metrics.json").read_text())
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]


@pytest.mark.parametrize(
    ("round_", "message"),
    [("9", "no checkpoint of round 9; there are those of rounds 1, 2"), ("2", "damaged")],
)
def test_a_rollback_to_nowhere_changes_nothing(
    tmp_path: Path, round_: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    folder = _recorded_run(tmp_path, 2)
    _flip(folder / "checkpoints" / "round_0002.safetensors", -1)
    before = (folder / "federated_metrics.json").read_text()
    assert _roll_back(folder, round_) == 2
    assert message in capsys.readouterr().err
    assert (folder / "federated_metrics.json").read_text() == before


def test_the_checkpoints_of_a_rolled_back_run_are_an_error_to_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there are those of rounds none"):
        set_checkpoints_back(tmp_path, 1)
