from importlib.metadata import version

import pytest

from federation.config import RunConfig, flatten
from federation.privacy_budget import NOT_COVERED
from server.output.model_card import model_card

EVALUATION = {"policy_loss": 1.5, "action_mse": 12.0, "frames": 40}
METRICS = {
    "run": "run-1",
    "config": flatten(RunConfig()),
    "nodes": {"lab-a": {"episodes": 10, "frames": 1000}, "lab-b": {"episodes": 7, "frames": 650}},
    "baseline": EVALUATION,
    "rounds": [{"round": n, "evaluation": {**EVALUATION, "policy_loss": 1 / n}} for n in (1, 2)],
}


def test_the_card_drives_the_arm_at_the_rate_of_the_recordings() -> None:
    card = model_card({**METRICS, "config": METRICS["config"] | {"policy.fps": 15}}, round_=1)
    assert "15 a second" in card
    assert card.count("height: 480, fps: 15}") == 4  # two commands of two cameras
    assert card.count("--fps=15") == 2


def test_the_card_of_an_earlier_round_does_not_borrow_later_figures() -> None:
    assert "| round 2 |" not in model_card(METRICS, round_=1)


def test_the_card_says_what_privacy_has_cost_and_what_that_does_not_cover() -> None:
    assert "rivacy" not in model_card(METRICS, round_=1)
    spent = {"mode": "local", "delta": 1e-5, "epsilon": {"site-a": 2.5}, "not_covered": NOT_COVERED}
    private = model_card({**METRICS, "privacy": spent}, round_=1)
    assert "site: epsilon 2.50 of the updates alone, at delta 1e-05, local noise. " + NOT_COVERED in private


def test_the_card_of_weights_that_went_back_has_the_figures_of_the_round_they_went_back_to() -> None:
    spike = {"round": 3, "evaluation": {**EVALUATION, "policy_loss": 9.0}, "rolled_back_to": 1}
    metrics = {**METRICS, "rounds": [*METRICS["rounds"], spike, {"round": 4}]}
    assert "| round 2 | 0.5000 |" in model_card(metrics, round_=2)
    for round_ in (3, 4):
        card = model_card(metrics, round_)
        assert f"weights after round {round_} of" in card
        assert "| round 1 | 1.0000 |" in card
        assert "| round 2 |" not in card
        assert "9.0000" not in card


def test_a_base_model_that_is_a_path_is_not_named() -> None:
    config = METRICS["config"] | {"policy.pretrained": "/srv/models/base"}
    assert "/srv" not in model_card({**METRICS, "config": config}, round_=1)


@pytest.mark.parametrize(("units", "option"), [("degrees", "true"), ("range", "false")])
def test_the_card_drives_the_arm_in_the_units_that_it_was_trained_in(units: str, option: str) -> None:
    card = model_card({**METRICS, "config": {**METRICS["config"], "policy.joint_units": units}}, round_=1)
    assert card.count(f"--robot.use_degrees={option}") == 2
    assert ("-100 to 100 of its range" in card) == (units == "range")


def test_of_many_sites_the_card_has_their_sum_and_range() -> None:
    nodes = {f"site-{n:02}": {"episodes": n, "frames": 100 * n} for n in range(1, 51)}
    card = model_card({**METRICS, "nodes": nodes}, round_=1)
    for row in ("| smallest | 1 | 100 |", "| largest | 50 | 5000 |", "| all 50 | 1275 | 127500 |"):
        assert row in card
    assert "site-07" not in card


def test_html_in_a_value_is_text_in_the_card() -> None:
    nodes = {"<img src=x>": {"episodes": 1, "frames": 100}}
    assert "| &lt;img src=x&gt; | 1 | 100 |" in model_card({**METRICS, "nodes": nodes}, round_=1)


LORA = {**METRICS, "config": METRICS["config"] | {"policy.adapter": "lora", "policy.lora_rank": 16}}


def test_without_an_adapter_none_is_named() -> None:
    assert "dapter" not in model_card(METRICS, round_=1)
    assert "lora" not in model_card(METRICS, round_=1)


def test_the_card_names_the_adapter_that_is_merged_into_the_weights() -> None:
    card = model_card(LORA, round_=1)
    assert "Trained was a LoRA adapter of rank 16 and alpha 16.\nIt is merged into these weights" in card
    assert "| `policy.lora_rank` | 16 |" in card
    assert "flower, lora, peft]" in card
    assert "base_model_relation" not in card
    assert "policy_server" in card


def test_the_card_of_the_adapter_alone_says_what_it_is_loaded_over() -> None:
    config = LORA["config"] | {"policy.lora_train": "b", "policy.lora_alpha": 32}
    card = model_card({**LORA, "config": config}, round_=1, alone=True)
    assert (
        "rank 16 and alpha 32, of whose two factors one stayed as it was drawn.\nThis folder holds it" in card
    )
    assert "base_model: lerobot/smolvla_base\nbase_model_relation: adapter\n" in card
    assert f'pip install "lerobot[smolvla,dataset,peft,feetech]=={version("lerobot")}"' in card
    assert "lerobot-rollout --policy.path=." in card
    assert "policy_server" not in card
