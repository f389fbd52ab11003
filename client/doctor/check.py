"""One line of the doctor's table, and what its checks share."""

from dataclasses import dataclass

__all__ = ["Check", "days_check", "plural"]

_WARN_DAYS = 14


@dataclass(frozen=True)
class Check:
    """One line of the table: `level` is "ok", "warning" or "error"; `text` has the value and the fix."""

    level: str
    what: str
    text: str


def days_check(what: str, text: str, left: float, fix: str) -> Check:
    """Return a warning with `fix` if a certificate has few days left, else "ok"."""
    return Check("warning", what, f"{text}; {fix}") if left < _WARN_DAYS else Check("ok", what, text)


def plural(count: int, noun: str) -> str:
    """Return `"1 jump"`, `"2 jumps"`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
