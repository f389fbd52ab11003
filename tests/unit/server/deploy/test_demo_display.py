"""What `make demo` shows, in a terminal of 80 columns, for two, eight and fifty sites."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from client.state.progress import PROGRESS_FILE, ProgressFile
from server.deploy.demo_display import RunDisplay, print_summary

WIDTH = 80
COUNTS = (2, 8, 50)


def _names(count: int) -> list[str]:
    return [f"site-{number:02}" for number in range(count)]


def _display(console: Console, scratch: Path, count: int, baseline: float | None = None) -> RunDisplay:
    return RunDisplay(
        console, _names(count), lambda site: scratch / site / PROGRESS_FILE, 20, 200, baseline, 0.0
    )


def _train(scratch: Path, site: str, round_: int, local_steps: int, step: int, loss: float) -> None:
    (scratch / site).mkdir(exist_ok=True)
    ProgressFile(scratch / site, round_=round_, local_steps=local_steps).update(step, loss)


def _bars(display: RunDisplay) -> list[tuple[str, float, float | None, str]]:
    return [(t.description, t.completed, t.total, t.fields["note"]) for t in display._progress.tasks]


def test_the_bar_of_a_site_is_as_long_as_the_steps_that_it_takes(tmp_path: Path) -> None:
    display = _display(Console(width=WIDTH), tmp_path, 2)
    display.show_progress()
    assert _bars(display)[1] == ("site-00", 0, 200, "")
    _train(tmp_path, "site-00", 2, 37, 12, 0.5)
    display.show_progress()
    assert _bars(display)[1] == ("site-00", 12, 37, "round 2, policy loss 0.500")


def test_many_sites_share_a_bar_with_the_mean_of_those_in_the_newest_round(tmp_path: Path) -> None:
    display = _display(Console(width=WIDTH), tmp_path, 50)
    assert _bars(display)[1] == ("all sites", 0, 50 * 200, "")
    _train(tmp_path, "site-00", 1, 200, 200, 9.0)  # has not begun round 2
    _train(tmp_path, "site-01", 2, 100, 30, 0.5)
    _train(tmp_path, "site-02", 2, 300, 40, 1.5)
    display.show_progress()
    expected = ("all sites", 70, 100 + 300 + 48 * 200, "round 2, mean policy loss 1.000")
    assert _bars(display)[1] == expected


@pytest.mark.parametrize("count", COUNTS)
def test_no_line_of_the_bars_is_wider_than_the_terminal_or_cut(tmp_path: Path, count: int) -> None:
    console = Console(width=WIDTH, force_terminal=True, color_system=None)
    display = _display(console, tmp_path, count)
    display.show_event({"event": "update_received", "node": "site-00"})
    for name in _names(count):
        _train(tmp_path, name, 20, 200, 200, 1.234)
    display.show_progress()
    with console.capture() as printed:
        console.print(display._progress.get_renderable())
    lines = printed.get().splitlines()
    assert len(lines) == (1 + count if count <= 8 else 2)
    assert max(map(len, lines)) <= WIDTH
    assert all("policy loss 1.234" in line for line in lines[1:])
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed.get()


def test_a_long_name_costs_no_figure(tmp_path: Path) -> None:
    console = Console(width=WIDTH, force_terminal=True, color_system=None)
    name = "site-" + "x" * 58
    display = RunDisplay(console, [name], lambda _: tmp_path / name / PROGRESS_FILE, 20, 200, None, 0.0)
    _train(tmp_path, name, 20, 200, 200, 1.234)
    display.show_progress()
    with console.capture() as printed:
        console.print(display._progress.get_renderable())
    assert "site-xxxxxx\N{HORIZONTAL ELLIPSIS}" in printed.get()
    assert "200/200 round 20, policy loss 1.234" in printed.get()


def test_every_kind_of_event_has_its_line(tmp_path: Path) -> None:
    console = Console(width=WIDTH)
    why = "node [7] has no [bold]data"
    events: list[dict[str, Any]] = [
        {"event": "run_started"},
        {"event": "node_joined", "node": "site-00", "episodes": 3, "frames": 120},
        {"event": "join_denied", "reason": why},
        {"event": "waiting_for_nodes", "joined": 1, "min_nodes": 2},
        {"event": "run_resumed", "after_round": 4},
        {"event": "evaluated", "round": 4, "policy_loss": 1.0, "action_mse": 9.0},
        {"event": "round_started", "round": 5},
        {"event": "reply_timed_out", "round": 5, "node": "site-01", "reason": "no reply in time"},
        {"event": "node_suspended", "node": "site-01", "until_round": 9, "reason": why},
        {"event": "round_finished", "round": 5},
    ]
    with console.capture() as printed, _display(console, tmp_path, 2, baseline=2.0) as display:
        for event in events:
            display.show_event(event)
    assert [line for line in printed.get().splitlines() if line][:7] == [
        "site-00 joined: 3 episodes, 120 frames",
        f"a join was denied: {why}",
        "1 of 2 nodes have joined",
        "goes on after round 4",
        "round 4: held-out policy loss 1.0000 (-50.0 %), action MSE 9.0",
        "round 5: site-01: no reply in time",
        f"site-01 is suspended until round 9: {why}",
    ]
    assert _bars(display)[0] == ("round", 5, 20, "")


def _metrics(count: int, rounds: int) -> dict[str, Any]:
    losses = {name: 0.5 + number / 100 for number, name in enumerate(_names(count))}
    entries: list[dict[str, Any]] = [
        {
            "round": n,
            "clients": {name: {"policy_loss": loss} for name, loss in losses.items()},
            "evaluation": {"policy_loss": 1.0 + n / 10_000, "action_mse": 1234.5},
        }
        for n in range(1, rounds + 1)
    ]
    entries[-1]["rolled_back_to"] = 1
    del entries[-1]["clients"]["site-00"]
    return {
        "run": "demo-20261126-184002",
        "status": "finished",
        "reason": "",
        "config": {},
        "nodes": {name: {} for name in losses},
        "baseline": {"policy_loss": 2.0, "action_mse": 90.0},
        "rounds": entries,
    }


def _summary(folder: Path, metrics: dict[str, Any], width: int = WIDTH) -> str:
    (folder / "federated_metrics.json").write_text(json.dumps(metrics))
    with (console := Console(width=width)).capture() as printed:
        print_summary(folder, console)
    return printed.get().partition("report:")[0]


@pytest.mark.parametrize("count", COUNTS)
def test_every_loss_stands_whole_at_80_columns(tmp_path: Path, count: int) -> None:
    printed = _summary(tmp_path, _metrics(count, 3))
    for text in ("2.0000", "1.0001", "1.0002", "1.0003 reverted", "1234.5"):
        assert text in printed
    assert max(map(len, printed.splitlines())) <= WIDTH
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed


def test_two_sites_have_a_column_each(tmp_path: Path) -> None:
    printed = _summary(tmp_path, _metrics(2, 3))
    assert "site-00" in printed
    assert "missing" in printed


def test_more_sites_have_mean_best_worst_and_how_many_took_part(tmp_path: Path) -> None:
    printed = _summary(tmp_path, _metrics(8, 3))
    assert "mean" in printed
    assert "worst" in printed
    assert re.search(r"0\.5400 │ +0\.5100 │ +0\.5700 │ +7 of 8 │", printed)
    assert "site-00" in _summary(tmp_path, _metrics(8, 3), width=200)


def test_a_narrow_terminal_keeps_the_held_out_loss(tmp_path: Path) -> None:
    assert "1.0003 reverted" in _summary(tmp_path, _metrics(8, 3), width=40)


def test_a_round_without_any_update_has_no_losses(tmp_path: Path) -> None:
    metrics = _metrics(50, 3)
    metrics["rounds"][1]["clients"] = {}
    assert "0 of 50" in _summary(tmp_path, metrics)


def test_a_run_whose_figures_before_training_were_lost_has_a_table(tmp_path: Path) -> None:
    assert "1.0001" in _summary(tmp_path, _metrics(2, 3) | {"baseline": None})


def test_the_end_shows_every_evaluated_round_and_what_the_arm_did(tmp_path: Path) -> None:
    entries = [{"round": n, "clients": {"site-a": {"policy_loss": 0.5}}} for n in range(1, 41)]
    entries[39] |= {"evaluation": {"policy_loss": 0.25, "action_mse": 9.0}}
    metrics = {
        "run": "run-1",
        "status": "finished",
        "reason": "",
        "config": {},
        "nodes": {"site-a": {}},
        "baseline": {"policy_loss": 2.0, "action_mse": 90.0},
        "rounds": entries,
        "simulated": [{"round": 40, "success_rate": 0.95, "interval": [0.76, 0.99], "episodes": 20}],
    }
    for shown, rows in ((40, 2), (20, 21)):
        (tmp_path / "federated_metrics.json").write_text(json.dumps(metrics | {"rounds": entries[-shown:]}))
        with (console := Console(width=120)).capture() as printed:
            print_summary(tmp_path, console)
        assert printed.get().count("│\n") == rows
        assert "round 40: 95% of 20 simulated episodes succeed (95 % interval 76% to 99%)" in printed.get()
