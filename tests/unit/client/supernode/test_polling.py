import importlib
import inspect
from types import SimpleNamespace

import pytest

from client.supernode import polling
from client.supernode.polling import shorten_waits


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A main loop of Flower's with a clock of its own: `now`, and the seconds of each `sleep`."""
    module = SimpleNamespace(now=100.0, slept=[], message=None)
    module._pull_and_store_message = lambda **_: module.message
    module._push_messages = lambda **_: setattr(module, "now", module.now + 600)  # it waits for the training
    clock = SimpleNamespace(monotonic=lambda: module.now, sleep=module.slept.append)
    monkeypatch.setattr(polling, "time", clock)
    shorten_waits(module)
    return module


def test_an_idle_site_waits_as_long_as_flower_does(flower: SimpleNamespace) -> None:
    assert flower._pull_and_store_message(state=None) is None
    flower.time.sleep(3)
    assert flower.slept == [3]


def test_after_a_message_it_waits_less_for_half_a_minute(flower: SimpleNamespace) -> None:
    flower.message = 7
    assert flower._pull_and_store_message(state=None) == 7
    flower.time.sleep(0.5)
    flower._push_messages(state=None)  # ten minutes later: the half minute begins with the reply
    flower.time.sleep(3)
    flower.now += 29
    flower.time.sleep(3)
    flower.now += 2
    flower.time.sleep(3)
    assert flower.slept == [0.3, 0.3, 0.3, 3]


def test_a_shorter_sleep_stays_as_it_is(flower: SimpleNamespace) -> None:
    flower._push_messages()
    flower.time.sleep(0.1)
    assert flower.slept == [0.1]


def test_flowers_main_loop_has_what_is_replaced() -> None:
    """It calls both by keyword, and takes nothing else from `time`."""
    module = importlib.import_module("flwr.supernode.start_client_internal")
    source = inspect.getsource(module)
    assert source.count("time.") - source.count("time.sleep(") - source.count("time.\n") == 0
    loop = inspect.getsource(module.start_client_internal)
    assert "_pull_and_store_message(\n                state=state" in loop
    assert "_push_messages(\n                state=state" in loop
