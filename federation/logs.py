"""Log lines that say who speaks: one line an event, with the run, the node and the round in each.

    18:40:02 INFO    demo-20261123-184002 site-a round 3 | trained 30 steps ...
    {"time": "2026-11-23T18:40:02.120Z", "level": "INFO", "run": "demo-20261123-184002", ...}

A machine chooses through its environment: `FEDERATION_LOG_FORMAT` (`text` or `json`) for standard error,
`FEDERATION_LOG_LEVEL` for both. A log file is for people and stays text.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from federation.errors import printable

__all__ = ["bind_context", "configure", "get_logger"]

_ROOT = "so100"
_FORMAT = "%(asctime)s %(levelname)-7s %(run)s %(node)s round %(round)s | %(message)s"
_FORMATS = ("text", "json")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_speaker: dict[str, str | int] = {"run": "-", "node": "-", "round": "-"}


def get_logger(name: str) -> logging.Logger:
    """Return the project's logger for module `name`."""
    return logging.getLogger(f"{_ROOT}.{name}")


def bind_context(*, run: str | None = None, node: str | None = None, round_: int | None = None) -> None:
    """Set the run, the node and the round that every later line of this process carries."""
    given = {"run": run, "node": node, "round": round_}
    _speaker.update({key: value for key, value in given.items() if value is not None})


def configure(file: Path | None = None) -> None:
    """Send the project's lines to standard error, and to `file` as well if given. Repeatable.

    A format or level that does not exist is said in a warning and the default taken: a site trains on with a
    misspelt log level.
    """
    chosen, wrong_format = _choice("FEDERATION_LOG_FORMAT", _FORMATS, "text")
    level, wrong_level = _choice("FEDERATION_LOG_LEVEL", _LEVELS, "INFO")
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    text = _TextFormatter(_FORMAT, "%H:%M:%S")
    handlers: list[tuple[logging.Handler, logging.Formatter]] = [
        (logging.StreamHandler(sys.stderr), _JsonFormatter() if chosen == "json" else text)
    ]
    if file is not None:
        handlers.append((logging.FileHandler(file, encoding="utf-8"), text))
    for handler, formatter in handlers:
        handler.addFilter(_add_speaker)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    for warning in (wrong_format, wrong_level):
        if warning:
            logger.warning("%s", warning)


class _TextFormatter(logging.Formatter):
    """For people, at a terminal: what a dataset or a library says must not repaint it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; a traceback is the field `exception`, its line breaks escaped."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "run": record.__dict__["run"],
            "node": record.__dict__["node"],
            "round": record.__dict__["round"],
            "logger": record.name.removeprefix(f"{_ROOT}."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # What nobody has set yet is "-" for people and null for programs.
        return json.dumps({k: None if v == "-" else v for k, v in line.items()}, ensure_ascii=False)


def _choice(variable: str, choices: tuple[str, ...], default: str) -> tuple[str, str]:
    """Return the environment's choice and "", or the default and a warning."""
    value = os.environ.get(variable) or default
    for choice in choices:
        if value.upper() == choice.upper():
            return choice, ""
    return default, f"{variable} = {value!r}: must be one of {', '.join(choices)}; {default} is taken"


def _add_speaker(record: logging.LogRecord) -> bool:
    record.__dict__.update(_speaker)
    return True
