import json
import struct
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

from federation.config import RunConfig, parse_run_config
from federation.errors import ConfigError
from server.output import tensorboard, tracking
from server.output.tensorboard import ScalarWriter
from server.output.tracking import Tracking, evaluation_scalars, round_scalars
from tests.unit.server.monitoring.test_exporter import _entry, _evaluation

pytestmark = pytest.mark.slow

# What TensorBoard 2.21's own EventFileWriter wrote for Event(wall_time=1.5, step=300,
# summary=Summary(value=[Summary.Value(tag="loss", simple_value=0.25)])).
REFERENCE = bytes.fromhex(
    "1b000000000000001a0d9e1309000000000000f83f10ac022a0d0a0b0a046c6f7373150000803e9908deed"
)


def _records(file: Path) -> list[bytes]:
    """The events of a file, whose framing must be whole."""
    content, events, position = file.read_bytes(), [], 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        events.append(content[position + 12 : position + 12 + length])
        position += 12 + length + 4
    assert position == len(content)
    return events


def test_an_event_is_byte_for_byte_what_tensorboard_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard.time, "time", lambda: 1.5)
    writer = ScalarWriter(tmp_path)
    writer.log(300, {"loss": 0.25})
    writer.close()
    (file,) = tmp_path.iterdir()
    assert file.name == "events.out.tfevents.1.500.server"
    assert file.read_bytes().endswith(REFERENCE)
    assert _records(file)[0].endswith(b"brain.Event:2")


def test_a_full_disk_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ScalarWriter(tmp_path)
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(writer._file, "_writer", full)
        with pytest.raises(OSError, match="No space left"):
            writer.log(1, {"loss": 0.25})


def test_tensorboard_files_are_written_without_being_asked_for(tmp_path: Path) -> None:
    track = Tracking(tmp_path, RunConfig())
    track.log(0, evaluation_scalars(_evaluation(2.0)))
    track.log(1, round_scalars(_entry(1, evaluation=_evaluation(1.0))))
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert len(_records(file)) == 3  # before it is closed: a killed server loses none
    content = file.read_bytes()
    for tag in ("evaluation/policy_loss", "clients/policy_loss_mean", "seconds/upload", "bytes/up"):
        assert tag.encode() in content
    assert b"client_policy_loss/site-b" in content
    track.close()
    assert not (tmp_path / "wandb").exists()


def _rounds_of(file: Path) -> list[int]:
    """The round of each row in a file of W&B's, by W&B's own reader."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store, rounds = DataStore(), []
    store.open_for_scan(str(file))
    while (content := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(content)
        items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        rounds += [int(items["round"])] if "round" in items else []
    return rounds


def test_weights_and_biases_offline_leaves_a_run_to_sync_later(tmp_path: Path) -> None:
    folder = tmp_path / "run-1"
    folder.mkdir()
    settings = {"tracking.wandb": "offline", "tracking.wandb_project": "arms"}
    track = Tracking(folder, parse_run_config(settings, "tests"))
    for round_ in (0, 1, 0):
        track.log(round_, evaluation_scalars(_evaluation(2.0)))
        time.sleep(0.002)
    track.close()
    (file,) = folder.glob("wandb/offline-run-*-run-1/*.wandb")
    give_up_at = time.monotonic() + 240  # its own process writes it
    while b"evaluation/policy_loss" not in (content := file.read_bytes()):
        assert time.monotonic() < give_up_at, content
        time.sleep(0.5)
    for text in (b"arms", b"training.proximal_mu"):
        assert text in content
    assert _rounds_of(file) == [0, 1, 0]  # a round that is done again is not dropped
    assert str(tmp_path).encode() not in content


class FakeWandb:
    """Of `wandb`, what drops a step that is not beyond the last, a restart in the same run included."""

    rows: ClassVar[list[dict[str, float]]] = []
    axes: ClassVar[dict[str, str]] = {}
    last: ClassVar[int] = -1

    Settings = staticmethod(lambda **_: None)

    @classmethod
    def init(cls, **_: object) -> "FakeWandb":
        return cls()

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        if step_metric:
            self.axes[name] = step_metric

    def log(self, row: dict[str, float], step: int) -> None:
        if step > self.last:
            type(self).last = step
            self.rows.append(row)

    def finish(self) -> None: ...


def test_a_round_that_is_done_again_is_in_the_curves_of_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)
    for rounds in ([1, 2, 3, 2], [3, 4]):  # taken back to round 1; then the server restarts
        track = Tracking(tmp_path, parse_run_config({"tracking.wandb": "offline"}, "tests"))
        for round_ in rounds:
            track.log(round_, {"loss": 1.0})
            time.sleep(0.002)
        track.close()
    assert [row["round"] for row in FakeWandb.rows] == [1, 2, 3, 2, 3, 4]
    assert FakeWandb.axes == {"*": "round"}


def test_online_without_a_key_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="the server has no WANDB_API_KEY; set it, or choose"):
        Tracking(tmp_path, parse_run_config({"tracking.wandb": "online"}, "tests"))


def test_a_tracker_that_fails_is_given_up_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Broken:
        def __init__(self, folder: Path, config: RunConfig) -> None: ...

        def log(self, step: int, scalars: object) -> None:
            calls.append(step)
            raise OSError("disk full")

        def close(self) -> None:
            raise OSError("disk full")

    monkeypatch.setattr(tracking, "_WandbRun", Broken)
    track = Tracking(tmp_path, parse_run_config({"tracking.wandb": "offline"}, "tests"))
    for step in (1, 2):
        track.log(step, {"loss": 1.0})
    track.close()
    assert calls == [1]
    assert len(_records(next((tmp_path / "tensorboard").iterdir()))) == 3


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    track = Tracking(tmp_path, RunConfig())
    track.log(1, {"loss": 1.0})
    track.close()


def test_privacy_spent_is_a_curve_of_each_node_as_long_as_it_is_bounded() -> None:
    scalars = round_scalars(_entry(1, privacy={"epsilon": {"site-a": 2.5, "site-b": None}}))
    assert {tag: v for tag, v in scalars.items() if "privacy" in tag} == {
        "privacy_epsilon_of_updates_alone/site-a": 2.5
    }


def test_every_figure_is_a_number(tmp_path: Path) -> None:
    scalars = round_scalars(_entry(1, evaluation=_evaluation(1.0)))
    assert json.loads(json.dumps(scalars, allow_nan=False)) == scalars
