"""An adapter of low rank in the policy (LoRA, Hu et al., ICLR 2022), put there by LeRobot's hook and PEFT.

A layer's weights W stay as they are and count as `W + alpha / rank * B A`, with A of shape (rank, inputs)
and B of (outputs, rank). A is drawn from the run's seed and B is zero, so the policy begins as its base. With
both trained, the mean over the sites is taken of A and of B, and that of the products differs from the
product of the means; where A stays as it was drawn (FFA-LoRA, Sun et al., ICLR 2024) the two are equal, and
half as much travels.

The policy itself carries the adapter: its layers are replaced, it stays a `SmolVLAPolicy`, and its trainable
parameters are the adapter's.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Linear

from federation.errors import PolicyError, one_line
from federation.files import expand_home
from federation.settings import PolicyConfig

__all__ = ["add_adapter", "describe_scaling", "has_adapter", "merged_weights", "save_adapter"]

_NAME = "default"  # PEFT's, of the only adapter
_PREFIX = "base_model.model."  # of names in PEFT's files
_WEIGHTS = "model.safetensors"


def add_adapter(policy: SmolVLAPolicy, config: PolicyConfig, seed: int) -> None:
    """Put the adapter that `config` asks for into `policy`, in place; from now on nothing else is trained.

    Args:
        policy: fp32 on the CPU, so that A is the same everywhere.
        seed: draws A.

    Raises:
        PolicyError: `policy.lora_targets` fits no layer, or one that can have no adapter.
    """
    base = expand_home(config.pretrained)
    settings = policy.config
    claimed = settings.pretrained_path, settings.load_vlm_weights
    # The hook adapts only what was loaded from somewhere, and warns of a VLM that was not: it came with all.
    settings.pretrained_path, settings.load_vlm_weights = Path(base), True
    overrides = {
        "method_type": "lora",
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha or config.lora_rank,  # left out, it is 8 for every rank
        "target_modules": config.lora_targets or None,
    }
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy.wrap_with_peft(peft_cli_overrides=overrides)
    except ValueError as error:
        raise _no_adapter(config, one_line(error)) from error
    finally:
        settings.pretrained_path, settings.load_vlm_weights = claimed
        settings.use_peft = False  # of the merged weights; an adapter's folder sets it
    for name, layer in _adapted_layers(policy).items():
        if not isinstance(layer.get_base_layer(), Linear):  # PEFT takes others too
            raise _no_adapter(config, f"{name} is no linear layer")
    adapter = _config_of(policy)
    adapter.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    adapter.revision = _revision(base)
    if config.lora_train == "b":
        for name, parameter in policy.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)


def _no_adapter(config: PolicyConfig, reason: str) -> PolicyError:
    return PolicyError(
        f"policy.lora_targets = {config.lora_targets!r}: no adapter can be made ({reason}); it "
        "must match whole names of linear layers, e.g. '.*lm_expert.*\\.(q|v)_proj'"
    )


def _adapted_layers(policy: SmolVLAPolicy) -> dict[str, Any]:
    return {name: layer for name, layer in policy.named_modules() if isinstance(layer, LoraLayer)}


def has_adapter(policy: SmolVLAPolicy) -> bool:
    """Return whether `add_adapter` has been at `policy`."""
    return hasattr(policy, "peft_config")


def describe_scaling(policy: SmolVLAPolicy) -> str:
    """Return how much the adapter counts, which no tensor shows; nothing without an adapter."""
    return f"alpha {_config_of(policy).lora_alpha}" if has_adapter(policy) else ""


@torch.no_grad()
def merged_weights(policy: SmolVLAPolicy) -> dict[str, Tensor]:
    """Return the state of a policy without adapter that computes what `policy` does.

    Adapted weights are on the CPU.
    """
    layers = _adapted_layers(policy)
    merged = {}
    for name, tensor in policy.state_dict().items():
        owner, is_adapted, kind = name.partition(".base_layer.")
        if ".lora_" in name:
            continue
        if is_adapted and kind == "weight":
            tensor = tensor.cpu() + _product(layers[owner])
        merged[f"{owner}.{kind}" if is_adapted else name] = tensor
    return merged


def _product(layer: Any) -> Tensor:
    """Return what the adapter adds to a layer's weights, the same bits on every machine.

    A product of matrices is summed in another order by each processor and library. Here each rank is
    multiplied and then added by itself, which is rounded alike everywhere.
    """
    a, b = (factors[_NAME].weight.cpu() for factors in (layer.lora_A, layer.lora_B))
    total = torch.zeros(b.shape[0], a.shape[1])
    for column, row in zip(b.T, a, strict=True):
        total += column[:, None] * row[None, :]
    total *= layer.scaling[_NAME]
    return total


def save_adapter(folder: Path, policy: SmolVLAPolicy) -> None:
    """Write the adapter alone, as PEFT does: its configuration names the base, and its revision."""
    weights = {
        _PREFIX + name.replace(f".{_NAME}.", "."): tensor.detach().cpu().contiguous()
        for name, tensor in policy.state_dict().items()
        if ".lora_" in name
    }
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    _config_of(policy).save_pretrained(str(folder))
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"use_peft": True}
    file.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def _config_of(policy: SmolVLAPolicy) -> LoraConfig:
    config: LoraConfig = policy.peft_config[_NAME]
    return config


def _revision(base: str) -> str | None:
    """Return the commit that the Hub's `base` was loaded at; None of a folder."""
    if Path(base).is_dir():
        return None
    cached = try_to_load_from_cache(base, _WEIGHTS)  # in a folder named after it
    return Path(cached).parent.name if isinstance(cached, str) else None
