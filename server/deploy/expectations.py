"""What a run expects of a site and what a round of it sends, for invitations: of the policy's own shapes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from federation.config import RunConfig
from federation.errors import PolicyError
from federation.invitation import Expectations
from federation.policy.memory import training_gigabytes
from federation.settings import PolicyConfig
from federation.versions import versions
from federation.wire.codec import encoded_bytes

__all__ = ["describe_run"]


def describe_run(config: RunConfig) -> Expectations:
    """Return what a site needs to know of the run; without sizes if the policy cannot be had here."""
    policy = config.policy
    try:
        shapes = trained_shapes(policy)
    except PolicyError:
        sizes: dict[str, int | None] = {}
    else:
        sizes = {
            "download_bytes": sum(encoded_bytes(shape, config.wire.download) for shape in shapes),
            "upload_bytes": sum(encoded_bytes(shape, config.wire.upload) for shape in shapes),
        }
    if policy.size in ("pretrained", "smolvla"):
        sizes["gpu_bytes"] = int(training_gigabytes(policy, config.training.batch_size) * 1e9)
    return Expectations(
        cameras=policy.cameras,
        empty_cameras=policy.empty_cameras,
        joint_units=policy.joint_units,
        fps=policy.fps,
        policy=policy.pretrained if policy.size == "pretrained" else policy.size,
        app=versions()["app"],
        **sizes,
    )


def trained_shapes(policy: PolicyConfig) -> Sequence[Sequence[int]]:
    """Return the shape of each tensor that travels; no weight is made or loaded.

    Raises:
        PolicyError: the configuration of the pretrained policy, or of its VLM, cannot be had.
    """
    import torch
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    from federation.policy.adapter import add_adapter
    from federation.policy.build import build_policy_config, trainable_parameters

    with tempfile.TemporaryDirectory() as cache:
        settings = build_policy_config(policy, Path(cache))
        try:
            with torch.device("meta"):
                model = SmolVLAPolicy(settings)
        except Exception as error:  # the VLM's folder is asked of the Hub
            raise PolicyError(
                f"the VLM {settings.vlm_model_name!r} cannot be had ({type(error).__name__})"
            ) from error
    if policy.adapter == "lora":
        add_adapter(model, policy, seed=0)
    return [tuple(parameter.shape) for parameter in trainable_parameters(model).values()]
