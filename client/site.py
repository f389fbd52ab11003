"""The site's own settings, from `--node-config`: what belongs to one machine and to its owner."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context

from client.recordings.sources import Source, parse_sources
from client.rules.owner import NO_RULES, OwnerRules, read_rules, rules_file
from federation.errors import ConfigError
from federation.logs import get_logger

__all__ = ["SAMPLE_CACHE_GB", "Site", "read_site"]

SAMPLE_CACHE_GB = 20.0
_FORMER_RULES = ("min-noise", "max-epsilon")  # of an earlier release: not to be dropped unseen
_log = get_logger("client.site")


@dataclass(frozen=True)
class Site:
    """None of it leaves the site but the name and camera names."""

    name: str
    sources: tuple[Source, ...]  # its recordings
    scratch: Path
    sample_cache_gb: float  # disk for decoded samples
    rules: OwnerRules = NO_RULES  # what its owner insists on
    policy: Path | None = None  # where the policy is delivered to; None: `policy` in scratch

    @property
    def policy_folder(self) -> Path:
        """Return the folder of the policy of the last run that sent one."""
        return self.policy or self.scratch / "policy"


def read_site(context: Context) -> Site:
    """Return the settings of the SuperNode that runs this; make the scratch folder.

    Raises:
        ConfigError: a key is missing or has a value that cannot be used.
    """
    settings = context.node_config
    for key in ("name", "dataset", "scratch"):
        if not isinstance(settings.get(key), str) or not settings[key]:
            raise ConfigError(
                f"node configuration: {key} is missing; start the SuperNode with "
                '--node-config \'name="site-a" dataset="/data" scratch="/scratch"\''
            )
    for key in _FORMER_RULES:
        if settings.get(key):
            raise ConfigError(f"node configuration: {key} is a rule of rules.toml now: so100-site rules")
    cache_gb = settings.get("sample-cache-gb", SAMPLE_CACHE_GB)
    if not isinstance(cache_gb, int | float) or not 0 <= cache_gb < math.inf:
        raise ConfigError(
            f"node configuration: sample-cache-gb = {cache_gb!r}: must be a number of gigabytes, 0 for none"
        )
    scratch = Path(str(settings["scratch"]))
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)  # decoded frames lie there
    except OSError as error:
        _log.error("scratch %s: %s", scratch, error)
        raise ConfigError(f"node configuration: scratch cannot be written ({error.strerror})") from None
    return Site(
        name=str(settings["name"]),
        sources=_read_sources(settings),
        scratch=scratch,
        sample_cache_gb=float(cache_gb),
        rules=read_rules(rules_file()),
        policy=Path(str(settings["policy"])) if settings.get("policy") else None,
    )


def _read_sources(settings: Mapping[str, Any]) -> tuple[Source, ...]:
    try:
        return parse_sources(settings)
    except ConfigError as error:  # it may name a recording, which the server is not to know
        _log.error("%s", error)
        text = "its recordings cannot be told: the log of this SuperNode names the fault"
        raise ConfigError(f"node configuration: dataset: {text}") from None
