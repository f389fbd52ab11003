"""What a site's adapter and its base are, in a few words, so that another one is denied at the join.

The frozen fingerprint proves the same in a round, on the policy as it was built; a join builds none and
imports no torch. A base that is not on this machine yet is not described.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

from federation.errors import FederationError
from federation.files import expand_home, write_json
from federation.kept import load_kept
from federation.settings import PolicyConfig

__all__ = ["check_adapter", "describe_adapter"]

_FILE = "base.json"
_WEIGHTS = "model.safetensors"
_DIGITS = 16
_MAX_CHARACTERS = 60
_FIXES = {
    "base": "give it the server's policy, under the same policy.pretrained",
    "": "install the server's version",
}


def describe_adapter(config: PolicyConfig, scratch: Path) -> dict[str, str]:
    """Return what server and sites must share of an adapter; nothing of a run without one.

    Args:
        scratch: keeps the digest of a base in a folder, which takes seconds at full size.
    """
    if config.adapter == "none":
        return {}
    targets = config.lora_targets
    if len(targets) > _MAX_CHARACTERS:
        targets = hashlib.sha256(targets.encode()).hexdigest()[:_DIGITS]
    facts = {
        "rank": str(config.lora_rank),
        "alpha": str(config.lora_alpha or config.lora_rank),
        "targets": targets or "default",
        "train": config.lora_train,
    }
    base = _digest(expand_home(config.pretrained), scratch)
    return facts | ({"base": base} if base else {})


def check_adapter(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise a `FederationError` if a site would train another adapter, or one over another base."""
    for key in {**ours, **theirs}:
        there, here = theirs.get(key), ours.get(key)
        if there == here or (key == "base" and None in (there, here)):  # it may still have to be downloaded
            continue
        raise FederationError(
            f"its adapter has {key} {there or 'none'}, the server's {here or 'none'}: "
            f"{_FIXES.get(key, _FIXES[''])}"
        )


def _digest(base: str, scratch: Path) -> str:
    """Return the first digits of the SHA-256 of the weights of `base`; nothing if they are not here."""
    if not Path(base).is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(base, _WEIGHTS)  # a link to a file named after its SHA-256
        except ValueError:  # no Hub id either: building the policy reports it
            return ""
        return Path(cached).resolve().name[:_DIGITS] if isinstance(cached, str) else ""
    try:
        file = Path(base) / _WEIGHTS
        facts = file.stat()
        source = [str(file), facts.st_size, facts.st_mtime_ns]
        kept = load_kept(scratch / _FILE, lambda was: str(was["sha256"]) if was["source"] == source else None)
        if kept is not None:
            return kept
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()[:_DIGITS]
    except OSError:
        return ""
    with contextlib.suppress(OSError):  # it is taken again the next time
        write_json(scratch / _FILE, {"source": source, "sha256": found})
    return found
