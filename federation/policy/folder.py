"""A LeRobot `pretrained_model` folder that holds all that loading it needs.

SmolVLA's configuration and its tokenizer step name a VLM: a Hub id, or a path. A path of the machine that
trained would be worth nothing elsewhere, so such a VLM (configuration and tokenizer, a few hundred kB; the
weights are in the policy's own safetensors) is copied into the folder and named `./vlm`. LeRobot resolves
that from the working directory: its tools are started inside the folder, with `--policy.path=.`; a folder
whose VLM is a Hub id loads from everywhere. `load_policy_folder` loads both from everywhere.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from federation.errors import PolicyError, one_line
from federation.files import write_folder
from federation.policy.adapter import has_adapter, merged_weights, save_adapter
from federation.policy.build import Processors, select_device
from federation.policy.vlm_folder import BUNDLED_VLM

__all__ = ["load_policy_folder", "name_vlm", "policy_digest", "save_adapter_folder", "save_policy_folder"]

_FILE = "model.safetensors"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.onnx", ".git*")


def save_policy_folder(
    folder: Path,
    policy: SmolVLAPolicy,
    processors: Processors,
    card: str,
    seal: Callable[[Path], object] = lambda staging: None,
) -> None:
    """Write configuration, all weights, both processors, the VLM if it is a local one, and the model card.

    An adapter is merged into the weights: whoever loads them needs no PEFT. The folder appears whole or not
    at all; one that is there is replaced. The same policy makes the same file of weights on every machine.

    Args:
        seal: called with the finished folder before it is put in place; what it raises leaves the one before.
    """

    def fill(staging: Path) -> None:
        policy.save_pretrained(staging, state_dict=merged_weights(policy) if has_adapter(policy) else None)
        _complete(staging, policy, processors, card)
        seal(staging)

    write_folder(folder, fill)


def policy_digest(folder: Path) -> str:
    """Return the SHA-256 of the file of weights in `folder`.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    with (folder / _FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_adapter_folder(folder: Path, policy: SmolVLAPolicy, processors: Processors, card: str) -> None:
    """Write what `save_policy_folder` does with the adapter alone in the place of all weights.

    LeRobot's tools load it over the base that it names.
    """

    def fill(staging: Path) -> None:
        policy.config.save_pretrained(staging)
        save_adapter(staging, policy)
        _complete(staging, policy, processors, card)

    write_folder(folder, fill)


def _complete(staging: Path, policy: SmolVLAPolicy, processors: Processors, card: str) -> None:
    """Add to configuration and weights what else a policy folder holds."""
    for processor in processors:
        processor.save_pretrained(staging)
    vlm = Path(policy.config.vlm_model_name)
    if vlm.is_dir():
        shutil.copytree(vlm, staging / "vlm", ignore=shutil.ignore_patterns(*_WEIGHTS))
        name_vlm(staging, BUNDLED_VLM)
    (staging / "README.md").write_text(card, encoding="utf-8")
    for path in staging.rglob("*.safetensors"):
        path.chmod(0o644)  # else another user's LeRobot, or a web server, cannot read them


def name_vlm(folder: Path, name: str) -> None:
    """Let the configuration and the tokenizer step in `folder` name the VLM `name`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vlm_model_name"] = name
    _write(folder / "config.json", config)
    path = folder / "policy_preprocessor.json"
    pipeline = json.loads(path.read_text(encoding="utf-8"))
    for step in pipeline["steps"]:
        if "tokenizer_name" in step.get("config", {}):
            step["config"]["tokenizer_name"] = name
    _write(path, pipeline)


def load_policy_folder(folder: Path, device: torch.device | None = None) -> tuple[SmolVLAPolicy, Processors]:
    """Return the policy of `folder` in evaluation mode, and its processors, from any working directory.

    Args:
        device: to load onto; None takes what this machine has.

    Raises:
        PolicyError: `folder` holds no SmolVLA policy, or weights that do not fit its configuration.
    """
    device = device or select_device()
    if not (folder / "config.json").is_file():
        raise PolicyError(f"{folder}: no policy there; give a pretrained_model folder with config.json")
    try:
        config = SmolVLAConfig.from_pretrained(folder)
        config.device = str(device)
        if config.vlm_model_name == BUNDLED_VLM:
            config.vlm_model_name = str(folder / "vlm")
        policy = SmolVLAPolicy.from_pretrained(folder, config=config, strict=True)
        processors = make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides={
                "device_processor": {"device": str(device)},
                "tokenizer_processor": {"tokenizer_name": config.vlm_model_name},
            },
        )
    except Exception as error:  # LeRobot, transformers and safetensors each raise their own
        raise PolicyError(f"{folder}: the policy cannot be loaded ({one_line(error)})") from error
    return policy.eval(), processors


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
