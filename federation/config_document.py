"""The settings of a run as a page for readers, and as the block of pyproject.toml that Flower reads.

python -m federation.config_document > docs/configuration.md
python -m federation.config_document --flower
"""

import dataclasses
import json
import sys
from typing import Any

from pydantic import TypeAdapter

from federation.config import flatten
from federation.settings import RunConfig

__all__ = ["flower_defaults", "markdown"]

_HEAD = """# Configuration

A run is configured by one TOML file: [`configs/demo.toml`](../configs/demo.toml),
[`smolvla.toml`](../configs/smolvla.toml), [`smolvla-lora.toml`](../configs/smolvla-lora.toml),
[`arm.toml`](../configs/arm.toml). A key that the file does not set has its default; an unknown key is
refused, with the nearest known one. What belongs to one machine (paths, devices) is not here.

Made by `python -m federation.config_document` from [`federation/settings.py`](../federation/settings.py); a
test keeps it current. Settings that do not go together are refused too:
[`federation/config_rules.py`](../federation/config_rules.py). What differential privacy does not cover:
[SECURITY.md](../SECURITY.md#what-is-not-covered).
"""
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}


def markdown() -> str:
    """Return `docs/configuration.md`: a table for each section."""
    sections = TypeAdapter(RunConfig).json_schema()["$defs"]
    parts = [_HEAD]
    for section in dataclasses.fields(RunConfig):
        schema = sections[section.type.__name__]  # type: ignore[union-attr]
        parts.append(f"\n## {section.name}\n\n{schema['description']}\n\n")
        parts.append("| key | type | default | limits | meaning |\n|---|---|---|---|---|\n")
        parts += [_row(f"{section.name}.{key}", of) for key, of in schema["properties"].items()]
    return "".join(parts)


def flower_defaults() -> str:
    """Return the tables `[tool.flwr.app.config.SECTION]` of pyproject.toml, with every setting."""
    lines, current = [], ""
    for dotted, value in flatten(RunConfig()).items():
        section, key = dotted.split(".")
        if section != current:
            current = section
            lines += ["", f"[tool.flwr.app.config.{section}]"]
        lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines[1:]) + "\n"


def _row(key: str, setting: dict[str, Any]) -> str:
    choices = ", ".join(f"`{choice}`" for choice in setting.get("enum", ()))
    limits = ", ".join(f"{words} {setting[name]:g}" for name, words in _LIMITS.items() if name in setting)
    columns = _TYPES[setting["type"]], f"`{json.dumps(setting['default'])}`", choices or limits
    return f"| `{key}` | {' | '.join(columns)} | {setting['description']} |\n"


if __name__ == "__main__":
    print(flower_defaults() if "--flower" in sys.argv[1:] else markdown(), end="")
