"""What the operator types. Each command calls one function of a room, imported then: `--help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from federation.command_line import make_app
from federation.errors import ConfigError

__all__ = ["OUTPUTS", "SCENES", "Outputs", "Run", "app"]

_CLONE = Path(__file__).resolve().parents[2]
_START, _SITES = "Run a federation", "Sites elsewhere"
SCENES = "site-a,site-b"

app = make_app(
    "Run a federation of SO-100 and SO-101 arms. make calls these commands.",
    [
        "so100-server keys && so100-server sample-data && so100-server demo",
        "so100-server demo --config configs/smolvla.toml --data my-data",
        "so100-server simulate demo-20261123-184002 --episodes 50",
        "so100-server invite lab-b --key 'ecdsa-sha2-nistp384 AAAA...' --superlink fed.example.org:8443",
    ],
)

Certs = Annotated[Path, typer.Option(help="folder of certificates and keys")]
Outputs = Annotated[Path, typer.Option(help="folder of the runs")]
Port = Annotated[int, typer.Option(help="SuperLink's port; each site takes one of those after it")]
Run = Annotated[str, typer.Argument(metavar="RUN")]
Control = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="SuperLink, where it is not in docker compose")
]
Site = Annotated[str, typer.Argument(metavar="NAME")]

OUTPUTS, CERTS = Path("outputs"), Path("certs/generated")


@app.command(rich_help_panel=_START)
def keys(
    site: Annotated[str | None, typer.Option(metavar="NAME", help="add the key of one more site")] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="renew the server's certificate")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="show what there is; exit code 1 if it is wrong")
    ] = False,
    host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="one more name or address of SuperLink")
    ] = None,
    out: Certs = CERTS,
    config: Annotated[Path, typer.Option(help="hosts, sites and validity")] = Path("configs/certs.toml"),
) -> int:
    """Issue the keys and certificates that are missing.

    Example: so100-server keys --site lab-b
    """
    from certs.issue import check_keys, issue_keys

    if (site is not None) + rotate + check > 1:
        raise ConfigError("--site, --rotate and --check exclude each other: give one")
    if check:
        return 0 if check_keys(out) else 1
    issue_keys(out, config, host or (), site=site, renew=rotate)
    return 0


@app.command(rich_help_panel=_START)
def sample_data(
    out: Annotated[Path, typer.Option(help="folder to record into")] = Path("data/sample"),
    episodes: Annotated[int, typer.Option(help="at each site")] = 10,
    eval_episodes: Annotated[int, typer.Option(help="held out")] = 4,
    scenes: Annotated[str, typer.Option(help="the first at site-a, the next at site-b, ...")] = SCENES,
    seed: Annotated[int, typer.Option(help="of the cubes' places")] = 0,
    workers: Annotated[int, typer.Option(help="processes that simulate")] = 2,
) -> None:
    """Record three small datasets on a simulated arm.

    Example: so100-server sample-data --out data/arm --scenes left,right --episodes 100
    """
    from server.simulation.recording import SampleParameters, record_sample_data

    record_sample_data(out, SampleParameters(episodes, eval_episodes, seed), scenes, workers)


@app.command(rich_help_panel=_START)
def demo(
    config: Annotated[Path, typer.Option(help="configuration of the run")] = Path("configs/demo.toml"),
    data: Annotated[Path, typer.Option(help="folder of datasets: site-*, holdout")] = Path("data/sample"),
    port: Port = 8443,
    outputs: Outputs = OUTPUTS,
    certs: Certs = CERTS,
) -> int:
    """Run a whole federation on this machine, as processes.

    Example: so100-server demo --config configs/smolvla.toml --data my-data
    """
    _require_clone()
    from server.deploy.demo import start_demo

    return start_demo(config, data.expanduser(), outputs, certs, port)


@app.command(rich_help_panel=_START)
def resume(
    run: Run,
    config: Annotated[Path | None, typer.Option(help="another configuration than its own")] = None,
    data: Annotated[Path | None, typer.Option(help="another folder of datasets than its own")] = None,
    port: Port = 8443,
    outputs: Outputs = OUTPUTS,
    certs: Certs = CERTS,
) -> int:
    """Go on with an interrupted run after its last complete round.

    Its configuration and data are those that it began with, unless others are named.

    Example: so100-server resume demo-20261123-184002
    """
    _require_clone()
    from server.deploy.demo import resume_demo

    return resume_demo(run, config, data, outputs, certs, port)


@app.command(rich_help_panel=_START)
def rollback(
    run: Run,
    round_: Annotated[int, typer.Argument(metavar="ROUND")],
    outputs: Outputs = OUTPUTS,
) -> None:
    """Take a run back to a round that has a checkpoint.

    Then so100-server resume goes on from there.

    Example: so100-server rollback demo-20261123-184002 7
    """
    from server.deploy.rollback import roll_back

    roll_back(outputs / run, round_)


@app.command(rich_help_panel=_SITES)
def invite(
    name: Site,
    key: Annotated[str, typer.Option(metavar="LINE", help="what so100-site key printed at the site")],
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="where the site reaches the gateway")],
    config: Annotated[Path, typer.Option(help="configuration of the run it is invited to")] = Path(
        "configs/demo.toml"
    ),
    control: Control = None,
    certs: Certs = CERTS,
) -> None:
    """Register the key of a site elsewhere and write its invitation.

    The site keeps its private key; the invitation holds no secret.

    Example: so100-server invite lab-b --key "ecdsa-..." --superlink h:8443
    """
    _require_clone()
    from server.deploy.invite import invite_site

    invite_site(certs, name, key, superlink, config, control)


@app.command(rich_help_panel=_SITES)
def revoke(name: Site, control: Control = None, certs: Certs = CERTS) -> None:
    """Revoke a site's key, for good.

    Example: so100-server revoke lab-b
    """
    _require_clone()
    from server.deploy.invite import revoke_site

    revoke_site(certs, name, control)


@app.command(rich_help_panel=_SITES)
def deliver(run: Run, control: Control = None, outputs: Outputs = OUTPUTS, certs: Certs = CERTS) -> int:
    """Send the policy of a finished run to its sites.

    Each run does so at its end; this is for those that were off then.

    Example: so100-server deliver demo-20261123-184002
    """
    _require_clone()
    from server.deploy.deliver import deliver_policy

    return deliver_policy(run, outputs, certs, control)


def _require_clone() -> None:
    """Raise ConfigError unless this runs in its own clone: it starts what lies there, from relative paths."""
    if not (_CLONE / "docker-compose.yml").is_file():
        raise ConfigError(
            f"this so100-server is installed in {_CLONE}, without docker-compose.yml and configs/; run "
            "that of a clone of the project: make env, then .venv/bin/so100-server"
        )
    if Path.cwd() != _CLONE:
        raise ConfigError(f"so100-server works in its clone, where certs, data and outputs are: cd {_CLONE}")
