"""The federation's policy as LeRobot folders: `pretrained_model/`, the last, and `pretrained_model_best/`."""

from pathlib import Path
from typing import Any

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from federation.files import write_atomically
from federation.policy.build import build_processors, load_trainable
from federation.policy.folder import save_policy_folder
from server.model import GlobalModel
from server.output.model_card import model_card
from server.run.checkpoint_file import load_checkpoint
from server.run.checkpoints import Checkpoints

__all__ = ["export_best", "export_policy", "write_card"]


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


def export_best(
    folder: Path, policy: SmolVLAPolicy, checkpoints: Checkpoints, metrics: dict[str, Any]
) -> int:
    """Write the weights with the lowest held-out policy loss; returns their round."""
    best = load_checkpoint(checkpoints.best)
    load_trainable(policy, best.average or best.weights)
    card = model_card(metrics, best.round)
    save_policy_folder(folder, policy, build_processors(policy, best.statistics), card)
    return best.round


def write_card(folder: Path, metrics: dict[str, Any], round_: int) -> None:
    """Write the model card of the policy folder `folder`, which holds the weights after `round_`, again."""
    card = model_card(metrics, round_)
    write_atomically(folder / "README.md", lambda staging: staging.write_text(card, encoding="utf-8"))
