"""Errors a person can act on: one line that names the thing, the value and the fix; for programs, a code."""

from enum import IntEnum

__all__ = [
    "CertificateError",
    "ConfigError",
    "DatasetError",
    "FederationError",
    "PolicyError",
    "RejectionCode",
    "WireError",
    "first_cause",
    "one_line",
    "printable",
]

_MAX_CHARACTERS = 500
_MAX_CHARACTERS_OF_ERROR = 200  # it becomes part of a message, which is to fit as a whole


class RejectionCode(IntEnum):
    """Why an update is rejected: the error code of a site's reply, and in lower case the label of a metric.

    Flower's own error codes (`flwr.common.constant.ErrorCode`) are small numbers: none is one of these.
    """

    NON_FINITE = 1001, "NaN or infinity in the loss or the update"
    NOT_CURRENT = 1002, "an update of another run, round or base"
    MALFORMED = 1003, "a wrong shape, name, count, hash or size, or bytes that cannot be read"
    NORM = 1004, "an update far larger than those of the others, or than training can make it"
    FROZEN_WEIGHTS = 1005, "another pretrained policy or other versions"
    APP_REFUSED = 1006, "the site does not let this app's code in"
    OWNER_RULE = 1007, "a rule of the site's owner forbids it"
    DATASET = 1008, "the node's dataset cannot be used"
    NODE_FAILED = 1009, "anything else that went wrong on the node"

    meaning: str

    def __new__(cls, number: int, meaning: str) -> "RejectionCode":
        """Make a member of its number and what it means."""
        member = int.__new__(cls, number)
        member._value_, member.meaning = number, meaning
        return member

    @property
    def label(self) -> str:
        """E.g. `non_finite`."""
        return self.name.lower()


class FederationError(Exception):
    """Base of every error this project raises on purpose. Its message is one line, fit to show as it is.

    Args:
        code: of this one error, where it is another than that of its class.
    """

    code = RejectionCode.NODE_FAILED

    def __init__(self, message: str, code: RejectionCode | None = None) -> None:
        super().__init__(message)
        self.code = code or type(self).code


class CertificateError(FederationError):
    """A certificate or key is missing, malformed or cannot be used."""


class ConfigError(FederationError):
    """A run configuration names an unknown key or a value out of range."""


class DatasetError(FederationError):
    """A dataset is missing, incomplete or does not fit the federation."""

    code = RejectionCode.DATASET


class PolicyError(FederationError):
    """A policy cannot be built, or its weights do not fit the configured model."""


class WireError(FederationError):
    """A message from another party is malformed, tampered with or numerically unusable."""

    code = RejectionCode.MALFORMED


def first_cause(error: BaseException) -> BaseException:
    """Return what made `error` be raised: some libraries give no reason in an error raised from another."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def printable(text: str) -> str:
    """Return `text` without what would move a terminal's cursor or repaint it; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(said: str | BaseException) -> str:
    """Return what another party wrote or a library raised, fit for a log and for a message of ours.

    That is one line of a bounded length, without control characters; of an error without text, as
    `MemoryError()`, its type.
    """
    most = _MAX_CHARACTERS if isinstance(said, str) else _MAX_CHARACTERS_OF_ERROR
    text = said if isinstance(said, str) else str(said).strip() or type(said).__name__
    line = "".join(c if c.isprintable() else " " for c in text[: 2 * most])
    line = " ".join(line.split())
    return line if len(line) <= most else f"{line[:most]}..."
