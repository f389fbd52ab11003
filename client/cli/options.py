"""Options that several commands of `so100-site` have, and what their values mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

if TYPE_CHECKING:
    from client.membership.folder import SiteFolder
    from client.recordings.sources import Source

__all__ = [
    "NAMES_HELP",
    "TEXT",
    "WEIGHT_HELP",
    "Ca",
    "CameraNames",
    "Data",
    "Folder",
    "Key",
    "Scratch",
    "SuperLink",
    "Weights",
    "as_site",
    "as_sources",
]


class _Whole(click.ParamType[str]):
    """A text that an environment variable gives whole, whatever blanks are in it."""

    name, envvar_list_splitter = "text", "\0"


TEXT = _Whole()
NAMES_HELP = "their names here, once for all recordings or for each"
WEIGHT_HELP = "how often each recording is drawn, once for each; default: by its frames"
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "--dataset",
        metavar="RECORDING",
        envvar="FEDERATION_DATASET",
        click_type=TEXT,
        help="a folder, owner/name of LeRobot's cache or hf:owner/name@revision; once for each",
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option("--weight", metavar="W", envvar="FEDERATION_WEIGHTS", click_type=TEXT, help=WEIGHT_HELP),
]
Scratch = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", envvar="FEDERATION_SCRATCH", help="the SuperNode's scratch folder"),
]
CameraNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="POLICY=OWN,...", envvar="FEDERATION_CAMERA_NAMES", click_type=TEXT, help=NAMES_HELP
    ),
]
SuperLink = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", envvar="FEDERATION_SUPERLINK", help="try the way to it")
]
Ca = Annotated[
    Path | None, typer.Option(metavar="FILE", envvar="FEDERATION_CA", help="ca.crt, to verify SuperLink with")
]
Key = Annotated[
    Path | None, typer.Option(metavar="FILE", envvar="FEDERATION_KEY", help="node.key of this site")
]
_FOLDER_HELP = "this site's own; default: ~/.local/share/so100-federation"
Folder = Annotated[Path | None, typer.Option(metavar="FOLDER", envvar="FEDERATION_SITE", help=_FOLDER_HELP)]


def as_sources(
    data: list[str] | None, cameras: list[str] | None, weights: list[str] | None
) -> "tuple[Source, ...]":
    from client.recordings.sources import split_sources

    return split_sources(data or [], cameras or [], weights or [])


def as_site(folder: Path | None) -> "SiteFolder":
    from client.membership.folder import SiteFolder, default_folder

    return SiteFolder(folder or default_folder())
