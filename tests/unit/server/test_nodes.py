import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Error, RecordDict
from flwr.common.constant import ErrorCode

from federation.config import RunConfig
from federation.errors import FederationError
from federation.messages import QUERY_SHUT_OUT, REASON
from federation.policy.identity import describe_adapter
from federation.settings import FederationConfig, PolicyConfig
from server import nodes, waiting
from server.grid import exchange
from server.grid.exchange import Exchange, WaitPolicy
from server.nodes import NodeTable
from server.run.records import RunRecord
from tests.fake_grid import FakeGrid, RawReply, raw_reply
from tests.unit.server.replies import (
    NAN,
    OUT_OF_MEMORY,
    Rejection,
    answer_with_more_frames,
    installed,
    make_answer,
    make_reply,
    run_one_round,
)


def _table(grid: FakeGrid, record: RunRecord, min_nodes: int, timeout: float = 0.2) -> NodeTable:
    settings = FederationConfig(min_nodes=min_nodes, join_timeout_seconds=timeout)
    held_out = {"holdout": False}
    return NodeTable(grid, RunConfig(federation=settings), record, held_out)  # type: ignore[arg-type]


def test_nodes_are_asked_once_and_then_known(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=2)
    assert {node.name for node in table.wait_for_nodes().values()} == {"a", "b"}
    table.wait_for_nodes()
    assert len(grid.sent) == 2


def test_what_a_node_holds_now_counts_from_the_next_round_on(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=2)
    before = {node.name: node for node in table.wait_for_nodes().values()}
    frames = before["a"].frames
    table.note_holdings({"a": {"episodes": 9, "frames": frames + 50}, "b": {"frames": before["b"].frames}})
    after = {node.name: node for node in table.wait_for_nodes().values()}
    assert (after["a"].episodes, after["a"].frames) == (9, frames + 50)
    assert after["a"].statistics is before["a"].statistics
    assert after["b"] == before["b"]
    events = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    changed = [event for event in events if event["event"] == "node_changed"]
    assert [(event["node"], event["frames"]) for event in changed] == [("a", frames + 50)]


def test_a_late_node_joins_and_an_offline_one_is_left_out(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported)})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    grid.answers = {11: make_answer("b", reported)}
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]


def test_a_node_that_still_works_on_an_earlier_round_is_asked_nothing_more(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_MIN_WAIT_SECONDS", 0.05)
    grid = FakeGrid({10: [make_answer("a", reported), None], 11: [make_answer("b", reported), make_reply()]})
    table = _table(grid, record, min_nodes=2)
    table.wait_for_nodes()
    policy = WaitPolicy(60.0, quorum=0.5, straggler_factor=1.0)
    sent = Exchange(grid, RecordDict, "train", "1", policy).send([10, 11])  # type: ignore[arg-type]
    list(sent.replies())
    table.late.watch(sent)
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    grid.answers[10] = make_reply()
    assert [node.name for node in table.wait_for_nodes().values()] == ["a", "b"]


def test_no_round_starts_with_fewer_free_nodes_than_make_an_update(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_POLL_INTERVAL_SECONDS", 0.02)
    grid = FakeGrid({10 + i: make_answer(name, reported) for i, name in enumerate("abcd")})
    settings = FederationConfig(min_nodes=4, fraction_fit=0.5, min_updates=2)
    table = NodeTable(grid, RunConfig(federation=settings), record, {"holdout": False})  # type: ignore
    busy = iter([{12, 13}, {12, 13}, {13}])
    monkeypatch.setattr(table.late, "busy_nodes", lambda _: next(busy))
    # Half of two free ones would be one.
    assert [node.name for node in table.wait_for_nodes().values()] == ["a", "b", "c"]


def test_a_node_that_does_not_answer_holds_the_others_up_for_a_moment_only(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_JOIN_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(nodes, "_POLL_INTERVAL_SECONDS", 0.02)
    grid = FakeGrid({10: None, 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1, timeout=60.0)
    started = time.monotonic()
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    assert 0.3 <= time.monotonic() - started < 30
    assert len(grid.sent) == 2
    grid.answers[10] = make_answer("a", reported)
    assert [node.name for node in table.wait_for_nodes().values()] == ["b", "a"]
    assert len(grid.sent) == 2


def test_nodes_that_lose_each_question_hold_the_others_up_for_a_moment_only(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_JOIN_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(nodes, "_POLL_INTERVAL_SECONDS", 0.02)
    lost = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "lost")
    grid = FakeGrid({10: lost, 11: make_answer("b", reported), 12: lost})
    table = _table(grid, record, min_nodes=1, timeout=60.0)
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits again"))
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]


def test_what_is_checked_meanwhile_ends_the_wait(record) -> None:
    def check() -> None:
        raise FederationError("no such policy")

    with pytest.raises(FederationError, match="no such policy"):
        _table(FakeGrid({}), record, min_nodes=1).wait_for_nodes(check)


@pytest.mark.parametrize(
    "answer",
    [
        lambda reported: Error(1, "dataset x: no meta/info.json"),
        lambda reported: RecordDict(),
        lambda reported: make_answer("x", reported, fps=None),
        lambda reported: make_answer("x", reported, frames="many"),
        lambda reported: make_answer("x", reported, frames=float("inf")),
        lambda reported: make_answer("x", reported, frames=1000),
        lambda reported: make_answer("x", reported, simulated=1),
        lambda reported: make_answer("x", reported, simulated=True),
        lambda reported: make_answer("x\nnode y joined", reported),
        lambda reported: make_answer("x", reported, versions=installed(lerobot="0.4.4")),
        lambda reported: make_answer("x", reported, versions=installed(app="0123456789abcdef")),
        lambda reported: make_answer("x", reported, versions=["lerobot"]),
        lambda reported: make_answer("x", reported, versions=installed() * 9),
        lambda reported: make_answer("x", reported, cameras=["top"] * 99),
        lambda reported: make_answer("x", reported, cameras="top"),
        lambda reported: make_answer("x", reported, fps=30.5),
        lambda reported: make_answer("x", reported, fps=0),
        lambda reported: make_answer("x", reported, episodes=121),
        lambda reported: make_answer("x", reported, left_out=-1),
        lambda reported: make_answer("x", reported | {f"f{i}": reported["action"] for i in range(20)}),
        lambda reported: make_answer("x", {f: n | {"mean": np.zeros(10**5)} for f, n in reported.items()}),
        lambda reported: make_answer("x", {10**5 * "x": reported["action"]}),
        lambda reported: make_answer("x", {"action": reported["action"]}),
        lambda reported: make_answer(
            "x", reported | {"action": reported["action"] | {"std": np.full(6, 1e9)}}
        ),
    ],
    ids=[
        "error",
        "empty",
        "no fps",
        "frames are no number",
        "endless frames",
        "other frames than those of its statistics",
        "neither simulated nor not",
        "simulated where the held-out data is not",
        "a name of two lines",
        "other versions",
        "other code",
        "a version without a number",
        "endless versions",
        "endless cameras",
        "cameras are no list",
        "half a frame a second",
        "no frame a second",
        "more episodes than frames",
        "fewer than no episodes left out",
        "endless statistics",
        "statistics of endless joints",
        "statistics with an endless name",
        "no state",
        "impossible deviation",
    ],
)
def test_a_node_that_cannot_take_part_is_refused_and_the_others_go_on(record, reported, answer) -> None:
    grid = FakeGrid({10: answer(reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    assert "join_denied" in (record.folder / "events.jsonl").read_text()
    assert len((record.folder / "events.jsonl").read_text()) < 5000
    told = [m for m in grid.sent.values() if m.metadata.message_type == QUERY_SHUT_OUT]
    # A node that could not take part knows; one that the server does not want is told, for its own log.
    assert [m.metadata.dst_node_id for m in told] == ([] if isinstance(grid.answers[10], Error) else [10])
    assert all("\n" not in m.content[REASON]["text"] for m in told)


def test_a_refused_node_that_restarts_is_asked_again(record, reported) -> None:
    grid = FakeGrid(
        {10: [Error(2, "no dataset"), make_answer("a", reported)], 11: make_answer("b", reported)}
    )
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    grid.online_since = {10: "later", 11: "t0"}
    assert [node.name for node in table.wait_for_nodes().values()] == ["b", "a"]


def test_a_node_that_restarts_is_asked_again_once_and_its_new_answer_counts(record, reported) -> None:
    answers = [make_answer("a", reported)] * 2 + [answer_with_more_frames("a", reported)]
    answers.append(make_answer("a", reported, versions=installed(lerobot="0.4.4")))
    grid = FakeGrid({10: answers, 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1)

    def asked_and_frames(since: str) -> tuple[int, dict[str, int]]:
        grid.online_since = {10: since, 11: "t0"}
        joined = table.wait_for_nodes()
        return len(grid.sent), {node.name: node.frames for node in joined.values()}

    assert asked_and_frames("t0") == (2, {"a": 120, "b": 120})
    assert asked_and_frames("t0") == (2, {"a": 120, "b": 120})
    assert asked_and_frames("t1") == (3, {"a": 120, "b": 120})
    assert asked_and_frames("t2") == (4, {"a": 400, "b": 120})
    grid.answers[10].append(None)  # told why it takes no part
    assert asked_and_frames("t3") == (6, {"b": 120})
    assert asked_and_frames("t3") == (6, {"b": 120})


def test_a_node_that_was_cut_off_and_has_no_time_to_answer_still_takes_part(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_JOIN_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(nodes, "_POLL_INTERVAL_SECONDS", 0.02)
    grid = FakeGrid({10: [make_answer("a", reported), None]})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    grid.online_since = {10: "later"}
    for _ in range(2):
        assert [node.name for node in table.wait_for_nodes().values()] == ["a"]
    assert len(grid.sent) == 2
    grid.answers[10][1] = answer_with_more_frames("a", reported)
    assert [node.frames for node in table.wait_for_nodes().values()] == [400]


def test_a_node_that_answers_late_again_and_again_has_one_grace_only(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_JOIN_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(nodes, "_POLL_INTERVAL_SECONDS", 0.02)
    answer = make_answer("a", reported)
    grid = FakeGrid({10: [answer, None, answer, None], 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1, timeout=60.0)
    assert len(table.wait_for_nodes()) == 2
    time.sleep(0.3)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits again"))
    for moment in ("later", "later still", "at last"):
        grid.online_since = {10: moment, 11: "t0"}
        assert len(table.wait_for_nodes()) == 2


def _suspended(record: RunRecord) -> list[dict]:
    lines = (record.folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == "node_suspended"]


def test_three_refusals_in_a_row_suspend_a_node_and_a_restart_lifts_it(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    for round_, refused in enumerate(({"a": NAN}, {"a": NAN}, {}, {"a": NAN}, {"a": NAN}), 1):
        table.count_rejections(round_, refused, {"a", "b"} - refused.keys())
    assert len(table.wait_for_nodes()) == 2
    table.count_rejections(6, {"a": NAN}, {"b"})
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]
    (event,) = _suspended(record)
    assert (event["node"], event["until_round"]) == ("a", 10)
    assert event["reason"] == "3 updates in a row rejected, the last because NaN"
    told = [m for m in grid.sent.values() if m.metadata.message_type == QUERY_SHUT_OUT]
    assert "until round 10, or until its SuperNode restarts" in told[0].content[REASON]["text"]
    grid.online_since = {11: "t0"}  # away
    assert len(table.wait_for_nodes()) == 1
    grid.online_since = {10: "later", 11: "t0"}
    assert len(table.wait_for_nodes()) == 2
    table.count_rejections(7, {"a": NAN}, {"b"})
    assert len(table.wait_for_nodes()) == 2  # it begins anew


def test_a_node_whose_owner_forbids_the_round_is_suspended_at_once(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    table.count_rejections(1, {"a": Rejection("owner_rule", "rule gigabytes-a-day = 5: used up")}, {"b"})
    (event,) = _suspended(record)
    assert (event["node"], event["until_round"]) == ("a", 5)
    assert event["reason"] == "rule gigabytes-a-day = 5: used up"
    assert [node.name for node in table.wait_for_nodes().values()] == ["b"]


def test_a_suspended_node_is_tried_again_by_itself_after_ever_longer(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    asked = []
    for round_ in range(1, 140):
        is_there = "a" in {node.name for node in table.wait_for_nodes().values()}
        asked += [round_] * is_there
        table.count_rejections(round_, {"a": OUT_OF_MEMORY} if is_there else {}, {"b"})
    assert asked == [1, 2, 3, 7, 14, 27, 52, 101]  # 3, 6, 12, 24, 48, 48 rounds between
    assert [event["until_round"] for event in _suspended(record)] == [7, 14, 27, 52, 101, 150]


def test_a_node_that_is_tried_again_and_succeeds_begins_anew(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    for round_ in range(1, 20):
        names = {node.name for node in table.wait_for_nodes().values()}
        refused = {"a": OUT_OF_MEMORY} if "a" in names and round_ not in (7, 8) else {}
        table.count_rejections(round_, refused, names - refused.keys())
    assert [event["until_round"] for event in _suspended(record)] == [7, 15, 22]


def test_a_node_that_the_others_are_too_few_without_is_not_suspended(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=2)
    for round_ in range(1, 10):
        assert len(table.wait_for_nodes()) == 2
        table.count_rejections(round_, {"a": OUT_OF_MEMORY}, {"b"})
    assert _suspended(record) == []


def test_a_suspended_node_is_called_back_when_the_others_become_too_few(record, reported) -> None:
    grid = FakeGrid({i: make_answer(name, reported) for i, name in enumerate("abc", start=10)})
    table = _table(grid, record, min_nodes=2)
    for round_ in range(1, 4):
        assert len(table.wait_for_nodes()) == 3
        table.count_rejections(round_, {"a": OUT_OF_MEMORY}, {"b", "c"})
    assert len(table.wait_for_nodes()) == 2
    grid.online_since = {10: "t0", 11: "t0"}
    assert len(table.wait_for_nodes()) == 2


def test_a_refusal_for_the_norm_is_no_strike_and_an_error_of_the_exchange_is_no_refusal(
    record, statistics, reported
) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("b", reported)})
    table = _table(grid, record, min_nodes=1)
    table.wait_for_nodes()
    updates = FakeGrid({10: make_reply(1e6), 11: make_reply(1.0), 12: make_reply(1.0)}, not_sent=(12,))
    for round_ in range(1, 9):
        entry, _ = run_one_round(updates, record, statistics, "a", "b", "c")
        assert (list(entry.rejected), entry.missing) == (["a"], ["c"])
        table.count_rejections(round_, entry.rejected, entry.clients)
    assert len(table.wait_for_nodes()) == 2


def test_a_node_that_could_not_be_asked_to_join_is_asked_again(record, reported) -> None:
    class Unlucky(FakeGrid):
        def push_messages(self, messages):
            pushed = super().push_messages(messages)
            self.not_sent = ()
            return pushed

    table = _table(Unlucky({10: make_answer("a", reported)}, not_sent=(10,)), record, min_nodes=1)
    assert [node.name for node in table.wait_for_nodes().values()] == ["a"]


def test_two_nodes_of_the_same_name_are_not_both_taken(record, reported) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("a", reported)})
    assert len(_table(grid, record, min_nodes=1).wait_for_nodes()) == 1
    assert "the name a is taken" in (record.folder / "events.jsonl").read_text()


def _wait_in_vain(table: NodeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(20))
    with monkeypatch.context() as patched:
        patched.setattr(nodes.time, "sleep", lambda _: next(looks))
        with pytest.raises(StopIteration):
            table.wait_for_nodes()


def test_a_node_cannot_take_the_name_of_another_that_is_away(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = FakeGrid({10: make_answer("a", reported), 11: make_answer("a", reported)})
    grid.registered = {10: "a", 11: "b"}
    table = _table(grid, record, min_nodes=1)
    assert list(table.wait_for_nodes()) == [10]
    grid.online_since = {11: "later"}
    _wait_in_vain(table, monkeypatch)
    grid.online_since = {10: "later", 11: "later"}
    assert list(table.wait_for_nodes()) == [10]
    assert "its key was registered as b" in (record.folder / "events.jsonl").read_text()


def test_nor_with_an_answer_that_is_read_once_it_is_off_itself(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds back a part of its answer until then, when SuperLink does not list its key's name any more."""
    monkeypatch.setattr(nodes, "_JOIN_GRACE_SECONDS", 0.0)
    whole = raw_reply(make_answer("b", reported))
    held_back = RawReply(whole.tree, dict.fromkeys(whole.contents, b""))
    answers = iter([held_back])
    grid = FakeGrid({10: make_answer("a", reported), 12: make_answer("b", reported)})
    grid.answers[11] = lambda _: next(answers, None)
    grid.registered = {10: "a", 11: "c", 12: "b"}
    grid.online_since = {10: "t0", 11: "t0"}
    table = _table(grid, record, min_nodes=2, timeout=60.0)
    _wait_in_vain(table, monkeypatch)
    grid.online_since = {10: "t0"}
    held_back.contents.update(whole.contents)
    _wait_in_vain(table, monkeypatch)
    grid.online_since = {10: "t0", 11: "later", 12: "t1"}
    assert {id_: node.name for id_, node in table.wait_for_nodes().items()} == {10: "a", 12: "b"}
    assert "its key was registered as c" in (record.folder / "events.jsonl").read_text()


def test_too_few_nodes_are_waited_for_and_reported_ever_more_seldom(
    record, reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = FakeGrid(
        {10: make_answer("a", reported), 11: Error(2, "no dataset"), 12: make_answer("c", reported)}
    )
    grid.registered = {10: "a", 11: "b", 12: "c"}
    grid.online_since = {10: "t0", 11: "t0"}
    table = _table(grid, record, min_nodes=2, timeout=60.0)
    hours = 10
    clock = iter(range(0, 3600 * hours, 10))
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(nodes.time, "sleep", lambda _: None)

    def events(kind: str) -> list[dict]:
        lines = map(json.loads, (record.folder / "events.jsonl").read_text().splitlines())
        return [event for event in lines if event["event"] == kind]

    with pytest.raises(StopIteration):  # the time is over; the wait is not
        table.wait_for_nodes()
    reports = events("waiting_for_nodes")
    assert (reports[0]["joined"], reports[0]["min_nodes"]) == (1, 2)
    assert reports[0]["denied"].keys() == {"b"}
    assert "no dataset" in reports[0]["denied"]["b"]
    assert 10 < len(reports) < 20  # after 1, 2, 4, ... minutes, then every hour
    assert events("waiting_ended") == []

    grid.online_since = {10: "t0", 11: "t0", 12: "t0"}
    clock = iter(range(0, 3600, 10))
    assert len(table.wait_for_nodes()) == 2
    assert len(events("waiting_for_nodes")) == len(reports)  # nobody had to wait long


def test_a_node_with_another_adapter_is_denied_by_name(
    record, reported, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDERATION_SCRATCH", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"base")
    policy = PolicyConfig(pretrained=str(tmp_path), adapter="lora", lora_rank=8)
    ours = [f"{name} {value}" for name, value in describe_adapter(policy, tmp_path).items()]
    grid = FakeGrid(
        {
            10: make_answer("a", reported, adapter=ours),
            11: make_answer("b", reported, adapter=["rank 4", *ours[1:]]),
            12: make_answer("c", reported, adapter=[*ours[:-1], "base 0000000000000000"]),
            13: make_answer("d", reported),
        }
    )
    settings = FederationConfig(min_nodes=1, join_timeout_seconds=0.2)
    table = NodeTable(grid, RunConfig(federation=settings, policy=policy), record)  # type: ignore[arg-type]
    assert [node.name for node in table.wait_for_nodes().values()] == ["a"]
    events = map(json.loads, (record.folder / "events.jsonl").read_text().splitlines())
    reasons = sorted(event["reason"] for event in events if event["event"] == "join_denied")
    assert [reason.split(":")[0] for reason in reasons] == [
        f"its adapter has base 0000000000000000, the server's {ours[-1].split()[1]}",
        "its adapter has rank 4, the server's 8",
        "its adapter has rank none, the server's 8",
    ]
