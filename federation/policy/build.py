"""The policy: LeRobot's own `SmolVLAPolicy`, built the same on every machine.

Server and SuperNodes each build it from the run configuration. What is frozen never travels, so it must be
equal everywhere: `tiny`, `small` and `smolvla` draw their weights from the run's seed on the CPU,
`pretrained` reads them from the Hub or a folder, and `frozen_fingerprint` proves the equality at the
handshake.
Weights are fp32 everywhere but on CUDA, where the forward pass runs under bf16 autocast and what it would
round each time is kept rounded (`round_frozen`).
"""

import contextlib
import hashlib
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor
from transformers.initialization import no_init_weights

from federation.data.description import ARM_DIM
from federation.data.statistics import Statistics
from federation.errors import PolicyError, one_line
from federation.files import expand_home
from federation.policy.adapter import add_adapter, describe_scaling
from federation.policy.vlm_folder import BUNDLED_VLM, vlm_folder
from federation.settings import PolicyConfig

__all__ = [
    "Processors",
    "autocast",
    "build_policy",
    "build_policy_config",
    "build_processors",
    "frozen_fingerprint",
    "load_trainable",
    "round_frozen",
    "select_device",
    "trainable_parameters",
]

_TOY_IMAGE_PIXELS = 64  # of `tiny` and `small`
_OLD_BUFFERS = "normalize_inputs"
_TOY_MAX_TOKENS = 96  # bytes, since the stand-in tokenizer has one token for each

Processors = tuple[Any, Any]
"""LeRobot's (preprocessor, postprocessor) pipelines."""


def select_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast on CUDA; nothing elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def build_policy(config: PolicyConfig, *, seed: int, device: torch.device, cache: Path) -> SmolVLAPolicy:
    """Build the policy `config` names, in fp32 on `device`, in evaluation mode.

    Args:
        seed: draws the weights of the sizes that have no pretrained ones, and an adapter's.
        cache: folder for the stand-in VLM folder of those sizes.

    Raises:
        PolicyError: the pretrained policy cannot be found, its weights do not fit its configuration, or the
            adapter does not fit it.
    """
    smolvla = build_policy_config(config, cache)
    if config.size == "pretrained":
        policy = _load_pretrained(config, smolvla)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = SmolVLAPolicy(smolvla)
    policy.float()
    if config.adapter == "lora":
        add_adapter(policy, config, seed)
    policy.config.device = str(device)
    return policy.to(device).eval()


def build_policy_config(config: PolicyConfig, cache: Path) -> SmolVLAConfig:
    """Return the configuration of the policy that `config` names, with the federation's features; no weights.

    Args:
        cache: as for `build_policy`.

    Raises:
        PolicyError: the pretrained policy cannot be found, or is no SmolVLA policy.
    """
    if config.size == "pretrained":
        smolvla = _pretrained_config(config)
    else:
        settings: dict[str, Any] = {}
        if config.size != "smolvla":
            settings = {
                "num_vlm_layers": -1,  # all that there are
                "resize_imgs_with_padding": (_TOY_IMAGE_PIXELS, _TOY_IMAGE_PIXELS),
                "tokenizer_max_length": _TOY_MAX_TOKENS,
            }
        if config.size == "small":  # a vision encoder that is drawn and frozen sees little
            settings |= {"freeze_vision_encoder": False, "train_expert_only": False}
        smolvla = SmolVLAConfig(
            vlm_model_name=str(vlm_folder(config.size, cache)),
            load_vlm_weights=False,
            device="cpu",
            **settings,
        )
    _apply(config, smolvla)
    return smolvla


def build_processors(policy: SmolVLAPolicy, statistics: Statistics) -> Processors:
    """LeRobot's pre- and postprocessor for `policy`, normalising with `statistics`."""
    processors: tuple[Any, Any] = make_pre_post_processors(policy.config, dataset_stats=statistics)
    return processors


def trainable_parameters(policy: SmolVLAPolicy) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained and travel: the action expert and the projections, by name.

    Of a policy with an adapter, the adapter's.
    """
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable(policy: SmolVLAPolicy, weights: Mapping[str, Tensor]) -> None:
    """Overwrite the trainable parameters with `weights` (same names and shapes, fp32).

    Raises:
        PolicyError: a name is missing or unknown, or a shape differs. The policy is left untouched.
    """
    parameters = trainable_parameters(policy)
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())
        raise PolicyError(f"weights do not fit the policy: {len(odd)} names differ, the first is {odd[0]}")
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise PolicyError(
                f"weights do not fit the policy: {name} has shape {tuple(weights[name].shape)}, "
                f"expected {tuple(parameter.shape)}"
            )
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


@torch.no_grad()
def round_frozen(policy: SmolVLAPolicy) -> None:
    """Keep in bf16, in place, the frozen weights that `autocast` rounds to it whenever they are used.

    These are the linear layers' and the convolutions', three quarters of the frozen values at full size. What
    the policy computes under `autocast` stays the same to the bit, with half their memory and no rounding at
    each use. The fingerprint is another one: take `frozen_fingerprint` before.
    """
    for module in policy.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()


def frozen_fingerprint(policy: SmolVLAPolicy) -> str:
    """SHA-256 over names, shapes and values of all frozen tensors and the names and shapes of the others.

    Two policies with the same fingerprint differ at most in their trainable values.
    """
    digest = hashlib.sha256(describe_scaling(policy).encode())
    trainable = trainable_parameters(policy)
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if name not in trainable:
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()


def _pretrained_config(config: PolicyConfig) -> SmolVLAConfig:
    where = expand_home(config.pretrained)
    _check_whole(where)
    try:
        smolvla = SmolVLAConfig.from_pretrained(where)
    except Exception as error:  # the Hub client raises a dozen types; all mean: not to be had
        raise PolicyError(
            f"policy.pretrained = {where!r}: no policy configuration found there ({one_line(error)}); "
            "give a Hub id or a folder with config.json and model.safetensors"
        ) from error
    if not isinstance(smolvla, SmolVLAConfig):
        raise PolicyError(f"policy.pretrained = {where!r}: is a {smolvla.type} policy; must be smolvla")
    smolvla.load_vlm_weights = False  # they are in the policy's own safetensors
    if config.vlm:
        smolvla.vlm_model_name = expand_home(config.vlm)
    elif smolvla.vlm_model_name == BUNDLED_VLM and Path(where).is_dir():  # an earlier run's policy
        smolvla.vlm_model_name = str(Path(where) / "vlm")
    return smolvla


def _check_whole(where: str) -> None:
    """Raise a `PolicyError` if the folder `where` holds an adapter without the policy that it adapts."""
    folder = Path(where)
    if (folder / "adapter_config.json").is_file() and not (folder / "model.safetensors").is_file():
        raise PolicyError(
            f"policy.pretrained = {where!r}: holds a LoRA adapter (adapter_config.json), not a whole policy; "
            "merge it into the policy that it was trained from, with peft's merge_and_unload, and save that"
        )


def _load_pretrained(config: PolicyConfig, smolvla: SmolVLAConfig) -> SmolVLAPolicy:
    where = expand_home(config.pretrained)
    try:
        # Random values for every weight, which are then overwritten, cost ten seconds at full size.
        with no_init_weights():
            return SmolVLAPolicy.from_pretrained(where, config=smolvla, strict=True)
    except Exception as error:
        reason, fix = one_line(error), "it needs model.safetensors and the VLM folder"
        if _OLD_BUFFERS in str(error):
            reason = f"LeRobot before 0.4 saved it, with {_OLD_BUFFERS} among its weights"
            fix = (
                "convert it with python -m lerobot.processor.migrate_policy_normalization "
                f"--pretrained-path={shlex.quote(where)} and name the folder that this writes; it also "
                "needs the VLM folder"
            )
        raise PolicyError(
            f"policy.pretrained = {where!r}: cannot be loaded ({reason}); "
            f"{fix} {smolvla.vlm_model_name!r} (policy.vlm)"
        ) from error


def _apply(config: PolicyConfig, smolvla: SmolVLAConfig) -> None:
    """Give `smolvla` the federation's features; weights do not depend on any of them."""
    smolvla.device = "cpu"  # weights are drawn and loaded on the CPU, so that they are the same everywhere
    smolvla.chunk_size = smolvla.n_action_steps = config.chunk_size
    smolvla.empty_cameras = 0
    width, height = smolvla.resize_imgs_with_padding or (512, 512)
    camera = PolicyFeature(type=FeatureType.VISUAL, shape=(3, height, width))
    smolvla.input_features = {
        OBS_STATE: PolicyFeature(type=FeatureType.STATE, shape=(ARM_DIM,)),
        **{f"{OBS_IMAGES}.{name}": camera for name in config.camera_names},
    }
    smolvla.output_features = {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(ARM_DIM,))}
