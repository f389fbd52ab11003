"""The federation's policy as LeRobot folders: `pretrained_model/`, the last, and `pretrained_model_best/`.

An adapter is merged into both of them, and stands alone in `adapter/` and `adapter_best/` beside them.
"""

from pathlib import Path
from typing import Any

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from federation.data.statistics import Statistics
from federation.files import write_atomically
from federation.policy.adapter import has_adapter
from federation.policy.build import build_processors, load_trainable
from federation.policy.folder import save_adapter_folder, save_policy_folder
from server.model import GlobalModel
from server.output.model_card import model_card
from server.output.predictions import PLOT_FILE, write_plot
from server.run.checkpoint_file import load_checkpoint
from server.run.checkpoints import Checkpoints

__all__ = ["export_best", "export_last", "export_policy", "write_cards"]


def export_policy(
    folder: Path, policy: SmolVLAPolicy, model: GlobalModel, metrics: dict[str, Any], round_: int
) -> None:
    """Write `model` as a complete policy folder, with the federation's statistics in its processors.

    Args:
        metrics: the run's record, for the model card.
        round_: after which `model` is.
    """
    load_trainable(policy, model.evaluated)
    card = model_card(metrics, round_)
    save_policy_folder(folder, policy, build_processors(policy, model.statistics), card)


def export_last(
    folder: Path, policy: SmolVLAPolicy, model: GlobalModel, metrics: dict[str, Any], round_: int
) -> None:
    """Write `model` to the run's `folder`, under the names of the last weights."""
    export_policy(folder / "pretrained_model", policy, model, metrics, round_)
    _export_adapter(folder / "adapter", policy, model.statistics, metrics, round_)


def export_best(
    folder: Path, policy: SmolVLAPolicy, checkpoints: Checkpoints, metrics: dict[str, Any]
) -> int:
    """Write the weights with the lowest held-out policy loss to the run's `folder`; returns their round."""
    best = load_checkpoint(checkpoints.best)
    load_trainable(policy, best.average or best.weights)
    card = model_card(metrics, best.round)
    processors = build_processors(policy, best.statistics)
    save_policy_folder(folder / "pretrained_model_best", policy, processors, card)
    _export_adapter(folder / "adapter_best", policy, best.statistics, metrics, best.round)
    return best.round


def write_cards(folder: Path, metrics: dict[str, Any], last: int, best: int | None) -> None:
    """Write the model cards of what was exported to the run's `folder` again.

    Args:
        last, best: rounds after which the last and the best weights are; None: none were found.
    """
    write_plot(folder, folder / "pretrained_model" / PLOT_FILE)
    for ending, round_ in (("", last), ("_best", best)):
        if round_ is not None:
            is_drawn = (folder / f"pretrained_model{ending}" / PLOT_FILE).is_file()
            card = model_card(metrics, round_, plot=PLOT_FILE if is_drawn else "")
            _write_card(folder / f"pretrained_model{ending}", card)
            _write_card(folder / f"adapter{ending}", model_card(metrics, round_, alone=True))


def _write_card(folder: Path, card: str) -> None:
    if folder.is_dir():
        write_atomically(folder / "README.md", lambda staging: staging.write_text(card, encoding="utf-8"))


def _export_adapter(
    folder: Path, policy: SmolVLAPolicy, statistics: Statistics, metrics: dict[str, Any], round_: int
) -> None:
    """Write the adapter of `policy`, if it has one, by itself."""
    if has_adapter(policy):
        card = model_card(metrics, round_, alone=True)
        save_adapter_folder(folder, policy, build_processors(policy, statistics), card)
