"""Errors a person can act on: one line that names the thing, the value and the fix."""

__all__ = ["ConfigError", "DatasetError", "FederationError", "PolicyError", "WireError", "one_line"]

_MOST_CHARACTERS = 500


class FederationError(Exception):
    """Base of every error this project raises on purpose. Its message is one line, fit to show as it is."""


class ConfigError(FederationError):
    """A run configuration names an unknown key or a value out of range."""


class DatasetError(FederationError):
    """A data set is missing, incomplete or does not fit the federation."""


class PolicyError(FederationError):
    """A policy cannot be built, or its weights do not fit the configured model."""


class WireError(FederationError):
    """A message from another party is malformed, tampered with or numerically unusable."""


def one_line(text: str) -> str:
    """What another party wrote, fit for a log: one line of a bounded length, without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 2 * _MOST_CHARACTERS])
    line = " ".join(line.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
