"""Site consent: a SuperNode runs the app its owner installed, not whatever the server hands it.

Flower's SuperNode executes any app bundle (FAB) that SuperLink sends: it starts `flwr-clientapp` from the
PATH for each message, and that program unpacks the bundle and imports it. `client/supernode/bin`, first on
the PATH of a SuperNode, holds this module under that name. It runs Flower's own program with two functions
replaced:

- the one that unpacks the bundle compares it, in memory, with the files this very package was installed
  with: all that runs at a site, the packages `client` and `federation`, which of them is the ClientApp, and
  the defaults of its configuration. A bundle that differs is refused with the names of the files, in this
  site's log and to the server, and nothing of it touches the disk.
- the one that loads the app loads the *installed* files. A bundle that passed is not unpacked either, so
  there is no moment between check and use, no folder of an earlier bundle to be picked up by mistake, and
  nothing that was not compared, such as the server's part, which differs from release to release, can be
  imported here.

The owner may allow another app with the rule `allow-app`: the SHA-256 of a bundle (the refusal prints it,
`sha256sum app.fab` checks a bundle that was read first), or `any`. `any` saves the owner an update for every
change, and lets whoever operates the server run any code at this site, on its data, unseen.

The server can also ask for other kinds of programs (`flwr-agentapp` and the like), which have no place at a
site; `client/supernode/bin` has this module under their names too, and it refuses them.
"""

import atexit
import hashlib
import importlib
import io
import shutil
import sys
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from client.rules.owner import read_rules, rules_file
from client.supernode.polling import ask_often
from client.supernode.refusal import forget_refusal, note_refusal
from federation import logs
from federation.errors import FederationError, one_line
from federation.files import folder_of_this_process

__all__ = ["ConsentError", "describe_differences", "give_consent", "main", "read_bundle"]

INSTALLED = Path(__file__).resolve().parents[2]  # the folder of this very `client` package
PACKAGES = ("client", "federation")  # what runs here
PROGRAM = "flwr-clientapp"
_PROJECT_FILE = "pyproject.toml"
_INSTALLED_PROJECT_FILE = "client/project.toml"  # a link to it; in a wheel, a copy
_CLIENT_APP = "tool.flwr.app.components.clientapp"
_DEFAULTS = "tool.flwr.app.config."
_MANIFEST = ".info/CONTENT"
_MAX_BUNDLE_BYTES = 10 * 1024 * 1024  # Flower's own limit of a FAB
_MAX_CONTENT_BYTES = 40 * 1024 * 1024  # this app unpacked: under half a megabyte
_MAX_FILES = 1000
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python unpacks others whole, however large
_NAMED_DIFFERENCES = 5
_VERSION_CHARACTERS = 30
_log = logs.get_logger("client.supernode.consent")


class ConsentError(FederationError):
    """The site does not run the app it was sent. The message goes to the server: no path of the site."""


def main() -> int:
    """Run Flower's `flwr-clientapp` with this site's consent; refuse to be any other program."""
    logs.configure()
    program = Path(sys.argv[0]).name
    if program != PROGRAM:
        _log.error("%s is refused: a site runs ClientApps only, through %s", program, PROGRAM)
        return 1
    # The module, not the function of the same name in the package.
    flower = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    _guard(flower)
    ask_often(flower)
    from flwr.supernode.cli import flwr_clientapp

    flwr_clientapp()
    return 0


def give_consent(content: bytes, installed: Path, allowed: Sequence[str]) -> bool:
    """Return whether the bundle equals the installed app; False if it differs and the owner allowed it.

    Args:
        content: the bundle as received.
        installed: the folder of the packages that the owner installed.
        allowed: SHA-256 digests of bundles, or `"any"`, as the owner's rules have them.

    Raises:
        ConsentError: it differs and is not allowed, or is no bundle that could be looked into.
    """
    files, ours = read_bundle(content), read_installed(installed)
    differences = describe_differences(files, ours)
    if not differences:
        return True
    digest = hashlib.sha256(content).hexdigest()
    if "any" in allowed or digest in allowed:
        return False
    named = one_line(", ".join(differences[:_NAMED_DIFFERENCES]))
    if len(differences) > _NAMED_DIFFERENCES:
        named += f" and {len(differences) - _NAMED_DIFFERENCES} more"
    theirs, here = (_version(found.get(_PROJECT_FILE, b"")) for found in (files, ours))
    raise ConsentError(
        f"this site refuses the app: version {theirs}, where {here} is installed, differs in {named}; the "
        f"site's owner installs the server's version, or allows this app with the rule "
        f'allow-app = ["{digest}"]'
    )


def read_bundle(content: bytes) -> dict[str, bytes]:
    """Return the files of a bundle, by name, without Flower's manifest; nothing is written.

    Raises:
        ConsentError: it is no zip file, is too large, or a name is not a plain relative path.
    """
    if len(content) > _MAX_BUNDLE_BYTES:
        raise ConsentError(
            f"the app bundle has {len(content)} bytes, at most {_MAX_BUNDLE_BYTES} are accepted"
        )
    files: dict[str, bytes] = {}
    left = _MAX_CONTENT_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            entries = bundle.infolist()
            if len(entries) > _MAX_FILES:
                raise ConsentError(
                    f"the app bundle has {len(entries)} files, at most {_MAX_FILES} are accepted"
                )
            for entry in entries:
                name = entry.filename
                if not _is_plain(name) or name in files:
                    raise ConsentError(f"the app bundle holds the name {name!r}: not a plain path, or twice")
                if entry.compress_type not in _COMPRESSIONS:
                    raise ConsentError(f"the app bundle holds {name!r} compressed as Flower never does")
                with bundle.open(entry) as file:
                    # The sizes in the zip's headers are the sender's word; this counts for itself.
                    files[name] = file.read(left + 1)
                left -= len(files[name])
                if left < 0:
                    raise ConsentError(f"the app bundle unpacks to more than {_MAX_CONTENT_BYTES} bytes")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ConsentError(f"the app bundle cannot be read as a zip file ({error})") from None
    files.pop(_MANIFEST, None)
    return files


def read_installed(root: Path) -> dict[str, bytes]:
    """Return the files of the app installed in `root`, by name, as `read_bundle` names them.

    Raises:
        ConsentError: there is no app.
    """
    project = root / _INSTALLED_PROJECT_FILE
    if not project.is_file():
        raise ConsentError(f"this site's installation lacks {_PROJECT_FILE}; install the site's image again")
    found = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
    return files | {_PROJECT_FILE: project.read_bytes()}


def describe_differences(bundle: Mapping[str, bytes], installed: Mapping[str, bytes]) -> list[str]:
    """Return each file that runs here and is not the same in both, with how it differs; [] if none."""
    theirs, ours = ({name for name in files if _runs_here(name)} for files in (bundle, installed))
    differences = [f"{name} (added)" for name in theirs - ours]
    differences += [f"{name} (missing)" for name in ours - theirs]
    for name in theirs & ours:
        if name == _PROJECT_FILE:
            differences += _describe_project(bundle[name], installed[name])
        elif bundle[name] != installed[name]:
            differences.append(f"{name} (changed)")
    return sorted(differences)


def _runs_here(name: str) -> bool:
    return name == _PROJECT_FILE or PurePosixPath(name).parts[0] in PACKAGES


def _describe_project(bundle: bytes, installed: bytes) -> list[str]:
    """Return the keys that matter here and differ; Flower rewrites the file, so bytes are not compared."""
    ours, theirs = _flat_project(installed), _flat_project(bundle)
    missing = object()
    return [
        f"{_PROJECT_FILE} ({key})"
        for key in ours.keys() | theirs.keys()
        if (key == _CLIENT_APP or key.startswith(_DEFAULTS))
        and not _equal(ours.get(key, missing), theirs.get(key, missing))
    ]


def _equal(ours: object, theirs: object) -> bool:
    return type(ours) is type(theirs) and ours == theirs  # True == 1 == 1.0


def _version(project: bytes) -> str:
    """Return what a project file calls its version, in quotes: it is the sender's word."""
    return repr(str(_flat_project(project).get("project.version", ""))[:_VERSION_CHARACTERS])


def _flat_project(content: bytes) -> dict[str, Any]:
    """Return the settings of the project file under dotted keys."""
    try:
        settings = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConsentError(f"{_PROJECT_FILE} of the app cannot be read ({error})") from None
    flat: dict[str, Any] = {}
    pending: list[tuple[str, Any]] = list(settings.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            flat[key] = value
    return flat


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        return False
    return path.as_posix() == name and "\\" not in name and name.isprintable()


def _guard(flower: Any) -> None:
    """Replace what Flower's program unpacks and loads with. It loads nothing before consent is given."""
    load = flower.get_load_client_app_fn  # an AttributeError here or below is Flower changed: nothing runs
    unpack = flower.install_from_fab
    folders: list[Path] = []

    def consent_then_unpack(content: bytes, **_: Any) -> Path:
        try:
            equal = give_consent(content, INSTALLED, read_rules(rules_file()).allow_app)
        except FederationError as error:
            _log.error("%s", error)
            note_refusal(str(error))
            if isinstance(error, ConsentError):
                raise
            # Flower sends the server what is raised here, and this names files of the site.
            raise ConsentError("this site's rules cannot be read: its owner's log says why") from None
        forget_refusal()
        folders.append(INSTALLED if equal else _unpack_allowed(content, unpack))
        return folders[-1]

    def load_consented(**_: Any) -> Any:
        if not folders:
            raise ConsentError("this site has not consented to an app; nothing is loaded")
        file = _INSTALLED_PROJECT_FILE if folders[-1] == INSTALLED else _PROJECT_FILE
        project = _flat_project((folders[-1] / file).read_bytes())
        # Not `multi_app`: then Flower wants the version that the server's bundle bears, and no other.
        return load(default_app_ref=project[_CLIENT_APP], app_path=str(folders[-1]), multi_app=False)

    flower.install_from_fab = consent_then_unpack
    flower.get_load_client_app_fn = load_consented


def _unpack_allowed(content: bytes, unpack: Any) -> Path:
    """Unpack a bundle the owner allowed into a folder of this process alone, and make way for its modules.

    Flower's own folder is named after eight digits of the hash and, once there, is trusted as it is.
    """
    _log.warning("runs an app that differs from the installed one: the rule allow-app allows it")
    folder = folder_of_this_process(Path(tempfile.gettempdir()) / "allowed-app")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    app: Path = unpack(content, install_dir=folder, skip_prompt=True)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]  # else the app would import the installed package of the same name
    return app
