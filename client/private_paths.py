"""Takes a site's paths out of what leaves it: `client/app.py` calls it for the reason of every error reply.

Libraries put paths into their messages: of the dataset, of scratch, of the Hub's caches, of the home folder.
Nobody can list where a library looks, so whatever is written as an absolute path goes.
"""

import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["hide_paths"]

_CACHES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_LEROBOT_HOME", "XDG_CACHE_HOME", "FLWR_HOME")
_HIDDEN = "<path>"
_QUOTED = re.compile(r"""(['"`])~?/.*?(\1|$)""")
_IN_PATHS = r"""[^\s'"`,;()\[\]{}<>|]"""
_BARE = re.compile(rf"(?<![\w.~/<>-])~?/(?!/){_IN_PATHS}+")  # no URL, no fraction, no tail of <...>
_REST = rf"(?:/{_IN_PATHS}*)?"  # of a path that begins with a known one
_SLASHES = re.compile(r"(?<![:/])//+")


def hide_paths(reason: str, kept: Mapping[str, Path], environment: Mapping[str, str] = os.environ) -> str:
    """Return `reason` without absolute paths.

    Args:
        kept: what to call a folder -> the folder. It becomes `<what>`, and the way on from there is kept: it
            says which file of the dataset is at fault. The folder's own name is hidden too.
        environment: names the caches, which nothing is kept of.
    """
    reason = _SLASHES.sub("/", reason.replace("file://", ""))
    plain = [(str(path), what) for what, folder in kept.items() for path in (folder, folder.resolve())]
    # In a command for a shell an apostrophe is spelt otherwise; the outer quotes are not the path's.
    spellings = [*plain, *((shlex.quote(path)[1:-1], what) for path, what in plain if "'" in path)]
    for spelling, what in sorted(
        spellings, key=lambda pair: len(pair[0]), reverse=True
    ):  # one may be in another
        reason = re.sub(_whole(spelling), f"<{what}>", reason)
        reason = reason.replace(f"local/{Path(spelling).name}", f"<{what}>")  # what we call it to LeRobot
    caches = [environment[name] for name in _CACHES if environment.get(name)]
    caches.append(environment.get("FEDERATION_MOUNTED", "").partition("=")[2])  # a dataset, outside
    for private in (path.rstrip("/") for path in caches if path.strip("/. ")):
        # Before the patterns: of a path with a blank in it they see a part.
        reason = re.sub(_whole(private) + _REST, _HIDDEN, reason)
    reason = _BARE.sub(_HIDDEN, _QUOTED.sub(rf"\g<1>{_HIDDEN}\g<2>", reason))
    for private in (*(path for path, _ in spellings), *caches, str(Path.home()), tempfile.gettempdir()):
        if private.startswith("/") and private.strip("/"):  # written in a way that was not seen for a path
            reason = reason.replace(private.rstrip("/"), _HIDDEN)
    return reason


def _whole(path: str) -> str:
    """Return a pattern for `path` where it is no part of a longer name."""
    return rf"(?<![\w.~/-]){re.escape(path)}(?![\w.-])"
