"""Log lines that say who speaks: `18:40:02 INFO  site-a round 3 | trained 30 steps ...`."""

import logging
import sys
from pathlib import Path

__all__ = ["configure", "get_logger", "speak_as"]

_ROOT = "so100"
_FORMAT = "%(asctime)s %(levelname)-7s %(node)s round %(round)s | %(message)s"
_speaker = {"node": "-", "round": "-"}


def get_logger(name: str) -> logging.Logger:
    """The project's logger for module `name`."""
    return logging.getLogger(f"{_ROOT}.{name}")


def speak_as(*, node: str | None = None, round_: int | None = None) -> None:
    """Set the node and the round that every later line of this process carries."""
    if node is not None:
        _speaker["node"] = node
    if round_ is not None:
        _speaker["round"] = str(round_)


def configure(file: Path | None = None) -> None:
    """Send the project's lines to standard error, and to `file` as well if given. Repeatable."""
    logger = logging.getLogger(_ROOT)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.addFilter(_add_speaker)
        handler.setFormatter(
            logging.Formatter(
                "%(asctime)s %(levelname)-7s %(node)s round %(round)s | %(message)s", "%H:%M:%S"
            )
        )
        logger.addHandler(handler)


def _add_speaker(record: logging.LogRecord) -> bool:
    record.node, record.round = _speaker["node"], _speaker["round"]
    return True
