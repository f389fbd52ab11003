"""Errors a person can act on: one line that names the thing, the value and the fix."""

__all__ = ["ConfigError", "DatasetError", "FederationError", "PolicyError", "WireError", "one_line"]

_MOST_CHARACTERS = 500
_MOST_OF_AN_ERROR = 200  # it becomes part of a message, which is to fit as a whole


class FederationError(Exception):
    """Base of every error this project raises on purpose. Its message is one line, fit to show as it is."""


class ConfigError(FederationError):
    """A run configuration names an unknown key or a value out of range."""


class DatasetError(FederationError):
    """A dataset is missing, incomplete or does not fit the federation."""


class PolicyError(FederationError):
    """A policy cannot be built, or its weights do not fit the configured model."""


class WireError(FederationError):
    """A message from another party is malformed, tampered with or numerically unusable."""


def one_line(said: str | BaseException) -> str:
    """What another party wrote or a library raised, fit for a log and for a message of ours.

    That is one line of a bounded length, without control characters; of an error without text, as
    `MemoryError()`, its type.
    """
    most = _MOST_CHARACTERS if isinstance(said, str) else _MOST_OF_AN_ERROR
    text = said if isinstance(said, str) else str(said).strip() or type(said).__name__
    line = "".join(c if c.isprintable() else " " for c in text[: 2 * most])
    line = " ".join(line.split())
    return line if len(line) <= most else f"{line[:most]}..."
