"""What a node answers when it is asked to join: read as a stranger's, within limits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from federation.data.description import ARM_DIM
from federation.data.statistics import MAX_EPISODES, MAX_FRAMES, Statistics, check_statistics
from federation.errors import FederationError, one_line
from federation.messages import ANSWER, STATISTICS
from federation.versions import check_versions, versions
from federation.wire.payload import record_to_statistics

__all__ = ["Node", "node_facts", "read_answer"]

_MAX_CHARACTERS = 100
_MAX_CAMERAS, _MAX_VERSIONS, _MAX_ADAPTER = 16, 32, 8
_MAX_FPS = 1000
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # it ends up in logs, metrics and reports


@dataclass(frozen=True)
class Node:
    """A node that joined, as it described itself."""

    node_id: int
    name: str
    fps: int
    episodes: int  # used
    frames: int  # of these
    cameras: tuple[str, ...]
    statistics: Statistics
    left_out: int = 0  # episodes that cannot be trained on
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    simulated: bool = False
    adapter: Mapping[str, str] = field(default_factory=dict)  # see `federation/policy/identity.py`


def read_answer(node_id: int, content: RecordDict) -> Node:
    """Return the node that describes itself in `content`.

    Raises:
        FederationError: it cannot take part, or its answer is not one of this version.
    """
    try:
        answer, arrays = content[ANSWER], content[STATISTICS]
        if not isinstance(answer, ConfigRecord) or not isinstance(arrays, ArrayRecord):
            raise TypeError("records of the right type")
        cameras = _read_list(answer, "cameras", _MAX_CAMERAS)
        installed = _read_pairs(answer, "versions", _MAX_VERSIONS)
        name = _read_text("name", answer["name"])
        if not _NAME.fullmatch(name):
            raise FederationError("the node's name must be of letters, digits, '.', '_' and '-'")
        check_versions(installed, versions())
        frames = _read_count(answer, "frames", 1, MAX_FRAMES)
        statistics = record_to_statistics(arrays)
        check_statistics(statistics, ARM_DIM, frames)
        return Node(
            node_id=node_id,
            name=name,
            fps=_read_count(answer, "fps", 1, _MAX_FPS),
            episodes=_read_count(answer, "episodes", 1, min(frames, MAX_EPISODES)),
            frames=frames,
            cameras=tuple(cameras),
            statistics=statistics,
            left_out=_read_count(answer, "left_out", 0, MAX_EPISODES),
            versions=installed,
            device=_read_text("device", answer["device"]),
            simulated=_as_bool(answer["simulated"]),
            adapter=_read_pairs(answer, "adapter", _MAX_ADAPTER) if "adapter" in answer else {},
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = one_line(error)
        raise FederationError(f"the node's answer lacks or garbles {reason}; install this version") from None


def _read_count(answer: ConfigRecord, name: str, minimum: int, maximum: int) -> int:
    value = answer[name]
    if type(value) is not int or not minimum <= value <= maximum:
        raise ValueError(f"{name}: must be a whole number from {minimum} to {maximum}")
    return value


def _read_list(answer: ConfigRecord, name: str, most: int) -> list[str]:
    values = answer[name]
    if not isinstance(values, list) or len(values) > most:
        raise ValueError(f"{name}: must be a list of {most} at most")
    return [_read_text(name, value) for value in values]


def _read_pairs(answer: ConfigRecord, name: str, most: int) -> dict[str, str]:
    return dict(part.split(" ", 1) for part in _read_list(answer, name, most))


def _read_text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _MAX_CHARACTERS:
        raise ValueError(f"{name}: must be text of {_MAX_CHARACTERS} characters at most")
    return value


def _as_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("simulated, which is true or false")
    return value


def node_facts(node: Node) -> dict[str, Any]:
    """Return what is recorded of a node that joined."""
    return {
        "node_id": str(node.node_id),  # 64 bits: more than a JSON number holds
        "fps": node.fps,
        "episodes": node.episodes,
        "left_out": node.left_out,
        "frames": node.frames,
        "cameras": list(node.cameras),
        "versions": dict(node.versions),
        "device": node.device,
        "simulated": node.simulated,
    }
