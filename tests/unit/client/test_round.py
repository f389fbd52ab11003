"""A train request is answered once, in time or not at all."""

import dataclasses
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors import SafetensorError

from client import round as round_module
from client.recordings.sources import Source
from client.round import answer_train_request, read_request
from client.rules.owner import OwnerRules, RuleError
from client.site import Site
from client.state import kept_reply
from client.state.kept_reply import keep_reply, load_reply, scratch_for_one
from federation.config import RunConfig, parse_run_config
from federation.errors import FederationError
from federation.messages import CONFIG, HEADER, METRICS, UPDATE, WEIGHTS
from federation.wire.payload import Header, open_payload

CONFIGURED = {"policy.size": "tiny"}
NOISY = {"privacy.mode": "local"}


def _config(**changes: Any) -> RunConfig:
    return parse_run_config(CONFIGURED | changes, "tests")


def _message(ttl: float = 60.0, sha256: str = "0" * 64, **changes: Any) -> Message:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower stamps a message with them
    order = {"run": "r", "round": 3, "fingerprint": "f", "proximal_mu": 0.001, "undone": []} | changes
    header = ConfigRecord(vars(Header("bf16", "r", 3, "", sha256)))
    content = RecordDict({CONFIG: ConfigRecord(order), HEADER: header, WEIGHTS: ArrayRecord()})  # type: ignore
    return Message(content, 1, "train", ttl=ttl)


def _reply() -> RecordDict:
    update = ArrayRecord({f"{i:06d}": Array(np.arange(i + 3, dtype=np.uint8)) for i in range(3)})
    header = ConfigRecord(vars(Header("int8", "r", 3, "b", "s")))
    return RecordDict(
        {UPDATE: update, HEADER: header, METRICS: MetricRecord({"policy_loss": 0.1, "num_examples": 12})}
    )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site("site-a", (Source(str(tmp_path / "data")),), tmp_path, 1.0)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds that were really trained."""
    rounds: list[int] = []

    def train(message: Message, request: Any, config: RunConfig, site: Site) -> RecordDict:
        rounds.append(request.round)
        return _reply()

    monkeypatch.setattr(round_module, "_train", train)
    return rounds


def test_a_request_that_comes_again_is_answered_with_the_reply_that_was_kept(site, trained) -> None:
    first = answer_train_request(_message(), _config(), site)
    time.sleep(0.01)
    second = answer_train_request(_message(), _config(), site)
    assert trained == [3]
    assert first[UPDATE] == second[UPDATE] == _reply()[UPDATE]
    assert first[HEADER] == second[HEADER]
    times = [reply[METRICS].pop("received_at") for reply in (first, second)]
    assert times[0] < times[1]  # the server reckons the transfer with the times of this asking
    assert all(reply[METRICS].pop("answered_at") >= 0 for reply in (first, second))
    assert first[METRICS] == second[METRICS]


@pytest.mark.parametrize(
    ("message", "config"),
    [
        (_message(sha256="1" * 64), _config()),
        (_message(proximal_mu=0.002), _config()),
        (_message(steps=7), _config()),
        (_message(round=4), _config()),
        (_message(run="another"), _config()),
        (_message(undone=[2]), _config()),
        (_message(), _config(**{"training.local_steps": 7})),
        (_message(), _config(**{"wire.upload": "bf16"})),
        (_message(), _config(**{"run.seed": 1})),
        (_message(), _config(**NOISY)),
    ],
    ids=["weights", "mu", "fewer", "round", "run", "undone", "steps", "codec", "seed", "privacy"],
)
def test_another_request_is_trained_anew(site, trained, message: Message, config: RunConfig) -> None:
    answer_train_request(_message(), _config(), site)
    answer_train_request(message, config, site)
    assert len(trained) == 2


def test_a_reply_that_was_kept_stays_once_the_owner_asks_for_noise(site, trained) -> None:
    answer_train_request(_message(), _config(), site)
    for rules in (OwnerRules(min_noise=1.0), OwnerRules(max_epsilon=8.0)):
        with pytest.raises(RuleError, match=r"privacy\.mode = 'none'"):
            answer_train_request(_message(), _config(), dataclasses.replace(site, rules=rules))
    assert trained == [3]


def test_what_does_not_decide_the_answer_may_change(site, trained) -> None:
    answer_train_request(_message(), _config(), site)
    changed = _config(**{"run.resume": True, "run.name": "r", "evaluation.eval_mode": "full"})
    answer_train_request(_message(ttl=5.0), changed, site)
    assert trained == [3]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_reply_of_its_own_noise_that_cannot_be_kept_does_not_leave(
    site, trained, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(round_module, "keep_reply", full)
    assert answer_train_request(_message(), _config(), site)[UPDATE] == _reply()[UPDATE]
    with pytest.raises(FederationError, match="cannot be kept on scratch"):
        answer_train_request(_message(), _config(**NOISY), site)


def test_a_damaged_reply_is_dropped(tmp_path: Path) -> None:
    keep_reply(tmp_path, "key", _reply())
    assert load_reply(tmp_path, "key") == _reply()
    assert load_reply(tmp_path, "another") is None
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    assert load_reply(tmp_path, "key") is None
    file.write_bytes(b"")
    assert load_reply(tmp_path, "key") is None


def test_one_process_at_a_time_has_the_scratch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_reply, "_SECONDS_BETWEEN_TRIES", 0.01)
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with scratch_for_one(tmp_path, time.monotonic()):
            entered.set()
            leave.wait()
            left.set()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with pytest.raises(FederationError, match="still trains"), scratch_for_one(tmp_path, time.monotonic()):
        pass
    threading.Timer(0.1, leave.set).start()
    with scratch_for_one(tmp_path, time.monotonic() + 60):
        assert left.is_set()
    thread.join()


def test_a_request_is_answered_with_the_scratch_held(site, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any) -> RecordDict:
        with pytest.raises(FederationError, match="still trains"):
            scratch_for_one(site.scratch, time.monotonic()).__enter__()
        return _reply()

    monkeypatch.setattr(round_module, "_train", train)
    answer_train_request(_message(), _config(), site)
    with scratch_for_one(site.scratch, time.monotonic()):  # it is free again
        pass


def test_training_stops_at_the_step_after_which_nobody_waits(site, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def run(components: Any, round_: int, num_rounds: int, on_step: Any) -> None:
        for step in (1, 2, 3):
            taken.append(step)
            on_step(step, SimpleNamespace(policy_loss=0.5))

    monkeypatch.setattr("client.training.run_training_loop", run)
    late = dataclasses.replace(read_request(_message(), _config()), stop_at=time.monotonic() - 1)
    components: Any = SimpleNamespace(steps=3, samples=None, device=SimpleNamespace(type="cpu"))
    with pytest.raises(FederationError, match="passed after 1 of 3 steps"):
        round_module._run_steps(late, _config(), site, components)
    assert taken == [1]


def test_a_batch_beyond_the_gpus_memory_is_one_line(site, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def run(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("client.training.run_training_loop", run)
    components: Any = SimpleNamespace(steps=3, samples=None, device=SimpleNamespace(type="cpu"))
    with pytest.raises(FederationError) as caught:
        round_module._run_steps(read_request(_message(), _config()), _config(), site, components)
    assert "not enough memory for training.batch_size = 16" in str(caught.value)
    assert "lower it and raise training.gradient_accumulation_steps" in str(caught.value)


def test_a_site_stops_when_nobody_waits_any_more() -> None:
    request = read_request(_message(ttl=60.0), _config())
    request.check_deadline(1, 3)
    late = read_request(_message(ttl=0.001), _config())
    time.sleep(0.01)
    with pytest.raises(FederationError, match=r"passed after 1 of 3 steps: raise"):
        late.check_deadline(1, 3)


def test_a_clock_that_is_behind_gives_no_more_time_than_the_message_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = _message(ttl=60.0)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 300)
    assert read_request(message, _config()).stop_at <= time.monotonic() + 60


@pytest.mark.parametrize("mu", [-1.0, float("nan"), float("inf"), "1"])
def test_a_mu_that_is_no_number_of_at_least_0_is_refused(mu: object) -> None:
    with pytest.raises(FederationError, match="the server asks for proximal_mu"):
        read_request(_message(proximal_mu=mu), _config())


@pytest.mark.parametrize("steps", [0, -1, 201, 1.5, "3", True])
def test_steps_that_the_run_does_not_have_are_not_trained(site, trained, steps: object) -> None:
    with pytest.raises(FederationError, match=r"the server asks for .* steps: must be from 1 to 200"):
        answer_train_request(_message(steps=steps), _config(), site)
    assert trained == []


def _sent(site: Site, update: dict[str, torch.Tensor], **privacy: Any) -> dict[str, torch.Tensor]:
    """What leaves the site of `update`, under noise of its own."""
    config = _config(**NOISY, **{"wire.upload": "fp32"}, **privacy)
    shapes = {name: tensor.shape for name, tensor in update.items()}
    reply = round_module._pack(read_request(_message(), config), config, site, update, "base")
    received = open_payload(reply[UPDATE], reply[HEADER], shapes, Header("fp32", "r", 3, "base"))
    return dict(received.tensors())


def test_local_noise_is_added_to_an_update_that_was_clipped_as_a_whole(site: Site) -> None:
    update = {"a": torch.tensor([30.0]), "b": torch.tensor([[40.0]])}
    sent = _sent(site, update, **{"privacy.clip_norm": 2.0, "privacy.noise_multiplier": 1e-6})
    assert [sent["a"].item(), sent["b"].item()] == pytest.approx([1.2, 1.6], abs=1e-3)


def test_the_noise_is_what_epsilon_is_computed_from(site: Site) -> None:
    settings = {"privacy.clip_norm": 0.1, "privacy.noise_multiplier": 5.0}
    sent = _sent(site, {"a": torch.zeros(20_000)}, **settings)
    assert float(sent["a"].std()) == pytest.approx(0.5, rel=0.05)
