import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.output.export import write_cards
from server.output.predictions import (
    PLOT_FILE,
    PREDICTIONS_FILE,
    draw_predictions,
    note_predictions,
    read_predictions,
    write_plot,
)
from tests.unit.server.output.test_model_card import METRICS

FOUND = {
    "dataset": "holdout",
    "fps": 10,
    "recorded": [[float(joint)] * 6 for joint in range(20)],
    "predicted": [[joint + 0.5] * 6 for joint in range(20)],
}
MODEL: Any = SimpleNamespace(evaluated={})


def _evaluator(answer: Any) -> Any:
    def predict(weights: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(predict=predict)


def test_what_is_predicted_is_kept_and_drawn(tmp_path: Path) -> None:
    note_predictions(tmp_path, _evaluator(FOUND), MODEL, 6)
    found = read_predictions(tmp_path)
    assert found == FOUND | {"round": 6}
    figure = draw_predictions(found)
    panels = figure.axes
    assert (panels[0].get_title(), len(panels)) == ("shoulder_pan", 6)
    recorded, predicted = panels[3].lines
    assert list(recorded.get_xdata())[:3] == [0.0, 0.1, 0.2]
    assert list(recorded.get_ydata())[3] == 3.0
    assert list(predicted.get_ydata())[3] == 3.5
    write_plot(tmp_path, tmp_path / PLOT_FILE)
    assert (tmp_path / PLOT_FILE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("fault", [OSError("no picture"), FOUND | {"predicted": [[float("nan")] * 6]}])
def test_what_fails_costs_the_plot_alone(fault: Any, tmp_path: Path) -> None:
    note_predictions(tmp_path, _evaluator(fault), MODEL, 6)
    assert read_predictions(tmp_path) is None
    write_plot(tmp_path, tmp_path / PLOT_FILE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"round": 1}'])
def test_a_damaged_file_is_no_plot(content: str, tmp_path: Path) -> None:
    (tmp_path / PREDICTIONS_FILE).write_text(content)
    assert read_predictions(tmp_path) is None


def test_the_card_beside_the_last_weights_shows_it(tmp_path: Path) -> None:
    for name in ("pretrained_model", "pretrained_model_best"):
        (tmp_path / name).mkdir()
    (tmp_path / PREDICTIONS_FILE).write_text(json.dumps(FOUND | {"round": 2}))
    write_cards(tmp_path, METRICS, 2, 1)
    assert (tmp_path / "pretrained_model" / PLOT_FILE).is_file()
    cards = [(tmp_path / f"pretrained_model{end}" / "README.md").read_text() for end in ("", "_best")]
    assert [f"({PLOT_FILE})" in card for card in cards] == [True, False]
