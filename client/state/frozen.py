"""The fingerprint of the policy's frozen weights, taken once for each policy: at full size that is 1.4 GB."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from federation.config import RunConfig
from federation.files import expand_home, fingerprint, write_json
from federation.kept import load_kept
from federation.logs import get_logger
from federation.policy.build import frozen_fingerprint
from federation.versions import versions

__all__ = ["kept_fingerprint"]

_FILE = "frozen.json"
_WEIGHTS = "model.safetensors"
_log = get_logger("client.state.frozen")


def kept_fingerprint(policy: SmolVLAPolicy, config: RunConfig, scratch: Path) -> str:
    """Return `frozen_fingerprint(policy)`, from `scratch` if that was taken of the same weights.

    They are the same if the policy section of `config`, its seed, the code and the versions of all packages
    are, and the policy's files have the same names, sizes and modification times.

    Args:
        policy: as `build_policy` returned it for `config`.
    """
    source = _describe_source(config)
    file = scratch / _FILE
    kept = load_kept(file, lambda was: str(was["fingerprint"]) if was["source"] == source else None)
    if source is not None and kept is not None:
        return kept
    found = frozen_fingerprint(policy)
    if source is not None:
        try:
            write_json(file, {"source": source, "fingerprint": found})
        except OSError as error:
            _log.warning("the fingerprint of the frozen weights is not kept: %s", error.strerror)
    return found


def _describe_source(config: RunConfig) -> list[Any] | None:
    """Return all that the frozen weights depend on, as JSON has it; None if it cannot be known."""
    files = ""
    if config.policy.size == "pretrained":
        where = expand_home(config.policy.pretrained)
        if Path(where).is_dir():
            files = fingerprint(Path(where))
        else:
            cached = try_to_load_from_cache(where, _WEIGHTS)  # a link to a file named after its content
            if not isinstance(cached, str):
                return None
            files = str(Path(cached).resolve())
    section = json.loads(json.dumps(dataclasses.asdict(config.policy)))
    return [section, config.run.seed, versions(), files]
