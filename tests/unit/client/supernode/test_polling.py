import importlib
import inspect
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

from client.supernode import polling
from client.supernode.polling import ask_often, shorten_waits


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


def test_a_client_app_has_its_message_soon_after_its_supernode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first object comes at the fiftieth question: Flower's own steps would last for minutes."""
    program = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    module = SimpleNamespace(pull_and_inflate_object_from_tree=program.pull_and_inflate_object_from_tree)
    monkeypatch.setattr(polling, "_ASK_SECONDS", 0.001)
    ask_often(module)
    sent = RecordDict({"config": ConfigRecord({"round": 3})})
    contents = {key: part.deflate() for key, part in get_all_nested_objects(sent).items()}
    tree, asked = get_object_tree(sent), []

    def pull(object_id: str) -> bytes:
        asked.append(object_id)
        if len(asked) < 50:
            raise ObjectUnavailableError(object_id)
        return contents[object_id]

    received = module.pull_and_inflate_object_from_tree(tree, pull, lambda _: None, return_type=RecordDict)
    assert received == sent
    assert len(asked) >= 50
    source = inspect.getsource(program)
    assert source.count("pull_and_inflate_object_from_tree(") == 1  # by its name in the module
