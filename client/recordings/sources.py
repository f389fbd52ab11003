"""Which recordings a site trains on, as its owner names them.

A recording is a folder (or a folder of some), `owner/name` of LeRobot's cache, or `hf:owner/name@revision` of
the Hub. They stand in the node configuration, or in a list of which it names the file: that file is read for
every message, so what its owner adds is used from the next round on.
"""

import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.data.cameras import parse_camera_names
from federation.errors import ConfigError

__all__ = [
    "HUB",
    "Source",
    "cached_folder",
    "check_together",
    "local_path",
    "make_sources",
    "parse_hub_name",
    "parse_sources",
    "read_list",
    "sessions_of",
    "settle",
    "split_sources",
    "write_list",
]

HUB = "hf:"
_LIST = ".toml"  # what the name of a list ends with
_NAMED_SESSIONS = 3
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")
_KEYS: dict[str, tuple[type, ...]] = {"data": (str,), "cameras": (str,), "weight": (int, float)}


@dataclass(frozen=True)
class Source:
    """What the owner says of a recording, or of a folder of some."""

    data: str
    cameras: Mapping[str, str] = field(default_factory=dict)  # the policy's camera -> its own
    weight: float = 0.0  # how often its frames are drawn, beside the other recordings'; 0: by their number


def make_sources(
    data: Sequence[str], cameras: Sequence[str] = (), weights: Sequence[str] = ()
) -> tuple[Source, ...]:
    """Return the recordings `data`.

    Args:
        cameras: texts as `parse_camera_names` takes them: one for all, or one for each.
        weights: numbers above 0: none, or one for each.

    Raises:
        ConfigError: their numbers do not match, a recording is named twice, or one of them is malformed.
    """
    if not data and any(cameras):
        raise ConfigError(
            f"camera-names = {next(filter(None, cameras))!r}: given for no recording; name all recordings "
            "with it, by --data"
        )
    if len(cameras) not in (0, 1, len(data)):
        raise ConfigError(
            f"camera-names: given {len(cameras)} times for {len(data)} recordings; give it once for all, or "
            "once for each, in their order"
        )
    if len(weights) not in (0, len(data)):
        raise _some_weights(len(weights), len(data))
    names = list(cameras) or [""]
    sources = tuple(
        Source(
            name,
            parse_camera_names(names[number % len(names)]),
            _parse_weight(weights[number]) if weights else 0.0,
        )
        for number, name in enumerate(data)
    )
    check_together(sources)
    return sources


def check_together(sources: Sequence[Source]) -> None:
    """Raise a `ConfigError` if one is named twice or malformed, or some have a weight and others none."""
    names = [source.data for source in sources]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), ""):
        raise ConfigError(f"recording {twice}: is named twice; name it once")
    for name in names:
        if name.startswith(HUB):
            parse_hub_name(name)
    weighted = sum(1 for source in sources if source.weight)
    if weighted not in (0, len(sources)):
        raise _some_weights(weighted, len(sources))


def parse_sources(settings: Mapping[str, Any]) -> tuple[Source, ...]:
    """Return the recordings that a node configuration names: `dataset`, `cameras` and `weights`.

    Raises:
        ConfigError: one of these is malformed.
    """
    text = str(settings["dataset"])
    if text.endswith(_LIST) and not Path(text).is_dir():
        return read_list(Path(text))
    return split_sources([text], *([str(settings.get(key, ""))] for key in ("cameras", "weights")))


def split_sources(data: Sequence[str], cameras: Sequence[str], weights: Sequence[str]) -> tuple[Source, ...]:
    """Return the recordings in texts of which each may name several.

    Args:
        data: recordings with commas between them; a folder whose name holds some is itself one.
        cameras: camera names with `;` between recordings.
        weights: numbers with commas between them.

    Raises:
        ConfigError: as for `make_sources`.
    """
    return make_sources(
        [name for text in data for name in _split_data(text)],
        [part for text in cameras for part in text.split(";")],
        [part for text in weights if text for part in text.split(",")],
    )


def _split_data(text: str) -> list[str]:
    try:
        if local_path(text).exists():
            return [text]
    except OSError:  # too long for one name, so it is some
        pass
    return [part for part in (part.strip() for part in text.split(",")) if part] or [text]


def read_list(file: Path) -> tuple[Source, ...]:
    """Return the recordings of the list in `file`.

    Raises:
        ConfigError: it cannot be read, or something in it is malformed.
    """
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))["recording"]
        for entry in entries:
            if unknown := entry.keys() - _KEYS:
                raise ConfigError(f"{file}: {min(unknown)}: must be one of {', '.join(_KEYS)}")
            kinds = {key: type(value) for key, value in entry.items()}
            if "data" not in entry or any(kind not in _KEYS[key] for key, kind in kinds.items()):
                raise ConfigError(f"{file}: needs data and cameras as texts and weight as a number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise ConfigError(
            f"{file}: no list of recordings ({reason}); so100-site join --data writes it"
        ) from None
    if not entries:
        raise ConfigError(f"{file}: names no recording; so100-site data --add names one")
    weights = [str(entry["weight"]) for entry in entries if "weight" in entry]
    return make_sources(
        [entry["data"] for entry in entries], [entry.get("cameras", "") for entry in entries], weights
    )


def write_list(sources: Sequence[Source]) -> bytes:
    """Return `sources` as the content of a list."""
    entries = []
    for source in sources:
        cameras = ",".join(f"{camera}={own}" for camera, own in source.cameras.items())
        lines = ["[[recording]]", f"data = {_quote(source.data)}"]
        lines += [f"cameras = {_quote(cameras)}"] if cameras else []
        lines += [f"weight = {source.weight!r}"] if source.weight else []
        entries.append("\n".join(lines) + "\n")
    return "\n".join(entries).encode()


def local_path(text: str) -> Path:
    """Return the path `text`, a home's `~` spelt out; that of a user who is not here stays."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def settle(source: Source) -> Source:
    """Return `source` such that it means the same from any folder and in any environment.

    Raises:
        ConfigError: there is no such folder, and none of that name in LeRobot's cache.
    """
    if source.data.startswith(HUB):
        return source
    if not source.data.isprintable():
        raise ConfigError(f"--data {source.data!r}: holds a control character; rename the folder")
    folder = local_path(source.data)
    if not folder.is_dir():
        folder = cached_folder(source.data) or folder
    if not (folder / "meta").is_dir() and next(folder.glob("*/meta"), None) is None:
        raise ConfigError(_nowhere(source.data))
    return Source(str(folder.resolve()), source.cameras, source.weight)


def cached_folder(name: str) -> Path | None:
    """Return where LeRobot's cache has the recording `owner/name`; None if it has none, or `name` is no such.

    LeRobot records there, and keeps what it downloaded from the Hub in a folder for each revision.

    Raises:
        ConfigError: it has several revisions.
    """
    if not _NAME.fullmatch(name):
        return None
    home = _lerobot_home()
    if (home / name / "meta").is_dir():
        return home / name
    snapshots = home / "hub" / f"datasets--{name.replace('/', '--')}" / "snapshots"
    found = [folder.parent for folder in sorted(snapshots.glob("*/meta"))]
    if len(found) > 1:
        raise ConfigError(
            f"{name}: LeRobot's cache has {len(found)} revisions; name one: {HUB}{name}@{found[-1].name}"
        )
    return found[0] if found else None


def sessions_of(name: str) -> str:
    """Return, as the end of an error, which recordings LeRobot's cache has under `owner/name` and a date.

    `lerobot-record` adds them to the name that it is given (LeRobot 0.6). Empty where there is none.
    """
    try:
        is_known = local_path(name).is_dir() or cached_folder(name) is not None
    except ConfigError:  # its revisions are to be told apart
        is_known = True
    if is_known or not _NAME.fullmatch(name):
        return ""
    home, (owner, _, start) = _lerobot_home(), name.partition("/")
    stamped = re.compile(re.escape(start) + r"_\d{8}_\d{6}")
    found = [path.parent.name for path in sorted((home / owner).glob("*/meta"))]
    sessions = [f"{owner}/{folder}" for folder in found if stamped.fullmatch(folder)]
    if not sessions:
        return ""
    more = f" and {len(sessions) - _NAMED_SESSIONS} more" if len(sessions) > _NAMED_SESSIONS else ""
    named = ", ".join(sessions[:_NAMED_SESSIONS])
    return f"; LeRobot adds date and time to each session, and it has {named}{more}: name these"


def parse_hub_name(name: str) -> tuple[str, str]:
    """`"hf:owner/name@revision"` as `("owner/name", "revision")`.

    Raises:
        ConfigError: it is not of that form.
    """
    repository, at, revision = name.removeprefix(HUB).partition("@")
    if not _NAME.fullmatch(repository) or not at or not _REVISION.fullmatch(revision):
        raise ConfigError(
            f"recording {name}: must be hf:owner/name@revision, with a commit or a tag of that repository: "
            "what is trained on must not change unseen"
        )
    return repository, revision


def _some_weights(given: int, recordings: int) -> ConfigError:
    return ConfigError(
        f"weight: {given} given for {recordings} recordings; give each of them one, in their order, or leave "
        "all out to draw every frame equally often"
    )


def _parse_weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"weight = {text.strip()!r}: must be a number above 0")
    return weight


def _nowhere(name: str) -> str:
    if _NAME.fullmatch(name):
        text = f"--data {name}: no dataset there, and none of that name in LeRobot's cache, {_lerobot_home()}"
        return text + sessions_of(name)
    return f"--data {name}: no dataset there; name the folder of one that holds data, meta and videos"


def _lerobot_home() -> Path:
    """Return the folder of LeRobot's cache, which LeRobot itself would have to be imported for."""
    if home := os.environ.get("HF_LEROBOT_HOME"):
        return Path(home).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or cache).expanduser() / "lerobot"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a printable text as JSON is one of TOML's basic strings
