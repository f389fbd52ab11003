"""What docker-compose.yml starts of the server, and `so100-server invite` inside a container."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from federation.errors import FederationError

__all__ = ["services"]

_PANEL = "Inside the containers"

Ca = Annotated[Path, typer.Option(metavar="FILE", help="certificate that SuperLink is verified with")]
Address = Annotated[str, typer.Option(metavar="HOST:PORT", help="SuperLink's Control API")]

services = typer.Typer()


@services.command(rich_help_panel=_PANEL)
def submit(
    ca: Ca,
    config: Annotated[Path | None, typer.Option(help="configs/demo.toml, or that of --resume")] = None,
    superlink: Address = "superlink:8000",
    site: Annotated[
        list[str] | None, typer.Option(metavar="NAME=KEY.pub", help="a site to register; repeatable")
    ] = None,
    invited: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="keys to register; revoked/ beside it: to shut out")
    ] = None,
    wait_seconds: Annotated[float, typer.Option(help="for all these sites to be online")] = 180.0,
    outputs: Annotated[Path, typer.Option(help="where runs are recorded")] = Path("/outputs"),
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="go on with this run")] = None,
    deliver: Annotated[
        str | None, typer.Option(metavar="RUN", help="send the policy of this finished run to its sites")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="begin a new run, whatever became of others")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="only end the run that is active")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="submit and end; nobody continues it")] = False,
    unattended: Annotated[
        bool, typer.Option("--unattended", help="exit code 0 where to be started again would not help")
    ] = False,
) -> None:
    """Submit a run and continue it until it has finished.

    Example: docker compose run --rm run --new
    """
    from server.deploy import submit as room
    from server.superlink.control import SuperLink

    link = SuperLink(superlink, ca)
    try:
        if stop:
            return room.stop_active_run(link)
        room.submit(
            link,
            room.parse_sites(site or ()),
            outputs,
            config,
            invited=invited,
            resume=resume,
            deliver=deliver,
            new=new,
            detach=detach,
            wait_seconds=wait_seconds,
        )
    except FederationError as error:
        if not unattended or room.is_passing(error):
            raise
        print(f"error: {error}", file=sys.stderr)


@services.command(rich_help_panel=_PANEL)
def register(
    superlink: Address,
    ca: Ca,
    name: Annotated[str, typer.Option(help="the site's name")],
    key: Annotated[str, typer.Option(help="its public key, in OpenSSH form")],
    revoke: Annotated[bool, typer.Option("--revoke", help="revoke it, for good")] = False,
) -> None:
    """Register or revoke a site's key; invite and revoke call it.

    Example: so100-server register --superlink superlink:8000 --ca ca.crt --name lab-b --key "ecdsa-..."
    """
    from server.deploy.register import change_registration
    from server.superlink.control import SuperLink

    print(change_registration(SuperLink(superlink, ca), name, key, revoke=revoke))


@services.command(rich_help_panel=_PANEL)
def exporter(
    outputs: Annotated[Path, typer.Option(help="folder of the runs")] = Path("outputs"),
    port: Annotated[int, typer.Option(help="to listen on, without TLS")] = 9400,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="SuperLink, to show its state too")
    ] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="what SuperLink is verified with")] = None,
    certificate: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="one to show the expiry of; repeatable")
    ] = None,
) -> None:
    """Show the newest run and what it runs on to Prometheus.

    Example: so100-server exporter --outputs outputs --port 9400
    """
    from server.monitoring.exporter import serve_metrics

    serve_metrics(outputs, host, port, superlink, ca, certificate or ())
