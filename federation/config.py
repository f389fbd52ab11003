"""Read a run configuration: typed, frozen, validated once at the edge.

A run is described by one TOML file (see `configs/`). Flower carries it as a flat mapping
(`"training.local_steps" -> 30`), so this module reads both forms. Server and SuperNodes parse the same
mapping with the same code, hence a value that is refused is refused everywhere, before anything starts.
What belongs to one machine (paths, devices) is not here: it is in that machine's node configuration or
environment.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from federation.config_rules import find_broken_rule
from federation.errors import ConfigError, one_line
from federation.settings import RunConfig

__all__ = ["RunConfig", "flatten", "load_run_config", "parse_run_config"]

Scalar = bool | int | float | str
_SECTIONS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(RunConfig)}
_FIELDS = {
    f"{section}.{name}": field
    for section, cls in _SECTIONS.items()
    for name, field in cls.__pydantic_fields__.items()
}
_LIMITS = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be greater than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be a finite number",
    "int_size": "must fit into 64 bits",
}


def flatten(config: RunConfig) -> dict[str, Scalar]:
    """Every setting of `config` under its dotted key, as Flower's run configuration wants it."""
    return {
        f"{section}.{key}": value
        for section, settings in dataclasses.asdict(config).items()
        for key, value in settings.items()
    }


def parse_run_config(settings: Mapping[str, Any], source: str) -> RunConfig:
    """Build a `RunConfig` from dotted keys; absent keys take their defaults.

    Args:
        settings: e.g. `{"training.local_steps": 30}`.
        source: where the settings come from, named in errors: a file, or "the run configuration".

    Raises:
        ConfigError: unknown key, wrong type or value out of range.
    """
    by_section: dict[str, dict[str, Scalar]] = {section: {} for section in _SECTIONS}
    for key, value in settings.items():
        if key not in _FIELDS:
            close = difflib.get_close_matches(key, _FIELDS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known sections: {', '.join(_SECTIONS)}"
            raise ConfigError(f"{source}: unknown key {key!r}: {hint}")
        section, name = key.split(".")
        by_section[section][name] = value
    config = RunConfig(**{name: _section(name, values, source) for name, values in by_section.items()})
    if broken := find_broken_rule(config):
        raise ConfigError(f"{source}: {broken}")
    return config


def load_run_config(path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a TOML run configuration such as `configs/demo.toml`.

    Args:
        overrides: dotted keys that win over the file.

    Raises:
        ConfigError: the file is missing, is not TOML, or holds something `parse_run_config` refuses.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; choose one of configs/*.toml") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {one_line(error)}") from None
    flat: dict[str, Any] = {}
    for section, settings in tree.items():
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: {section} stands outside a section; put it under [run] or another")
        flat.update({f"{section}.{key}": value for key, value in settings.items()})
    return parse_run_config(flat | dict(overrides or {}), str(path))


def _section(section: str, values: Mapping[str, Any], source: str) -> Any:
    try:
        return _SECTIONS[section](**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key, value = f"{section}.{first['loc'][0]}", first["input"]
    raise ConfigError(
        f"{source}: {key} = {value!r}: {_rule(key, value, first['type'], first.get('ctx', {}))}"
    )


def _rule(key: str, value: Any, broken: str, context: Mapping[str, Any]) -> str:
    """Return the rule of `key` that `value` breaks, from pydantic's name and context of it."""
    kind = type(_FIELDS[key].default)
    if type(value) is not kind:
        return f"must be of type {kind.__name__}"
    if broken == "literal_error":
        return f"must be one of {', '.join(get_args(_FIELDS[key].annotation))}"
    return _LIMITS[broken].format(**context)
