"""The federation's policy as a LeRobot `pretrained_model` folder."""

from pathlib import Path

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from federation.policy import build_processors, load_trainable
from server.rounds import GlobalModel

__all__ = ["export_policy"]


def export_policy(folder: Path, policy: SmolVLAPolicy, model: GlobalModel) -> None:
    """Write configuration, all weights and both processors, with the federation's statistics in them.

    `SmolVLAPolicy.from_pretrained(folder)` loads it.
    """
    load_trainable(policy, model.weights)
    preprocessor, postprocessor = build_processors(policy, model.statistics)
    policy.save_pretrained(folder)
    preprocessor.save_pretrained(folder)
    postprocessor.save_pretrained(folder)
