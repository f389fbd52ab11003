"""What the operator does with a run's policy. Each command calls one function of a room, imported then."""

from pathlib import Path
from typing import Annotated

import typer

from federation.errors import ConfigError
from server.cli.commands import OUTPUTS, SCENES, Outputs, Run

__all__ = ["results"]

_RESULTS = "Results"

OneRun = Annotated[str | None, typer.Argument(metavar="RUN")]
Policy = Annotated[Path | None, typer.Option(metavar="FOLDER", help="a policy folder instead of a run")]
Scenes = Annotated[str, typer.Option(help="scenes of the simulation, which episodes take in turn")]

results = typer.Typer()


@results.command(rich_help_panel=_RESULTS)
def report(run: Run, outputs: Outputs = OUTPUTS) -> None:
    """Write report.html and the plots of a run again.

    Example: so100-server report demo-20261123-184002
    """
    from server.output.report.report import write_report

    print(write_report(outputs / run))


@results.command(rich_help_panel=_RESULTS)
def simulate(
    run: OneRun = None,
    policy: Policy = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="default: simulation.json there")] = None,
    episodes: Annotated[int, typer.Option(help="number of episodes")] = 20,
    scenes: Scenes = SCENES,
    seed: Annotated[int, typer.Option(help="of the first episode")] = 1_000_000_000,
    videos: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="for videos of three episodes")
    ] = None,
    outputs: Outputs = OUTPUTS,
    check: Annotated[bool, typer.Option("--check", hidden=True)] = False,
    with_stdin: Annotated[bool, typer.Option("--end-with-stdin", hidden=True)] = False,
) -> None:
    """Let a policy drive the simulated arm and count its successes.

    The policy is that of a run after its last round, or --policy.

    Example: so100-server simulate demo-20261123-184002 --episodes 50
    """
    from server.evaluation.closed_loop import check_simulator, end_with_stdin, evaluate_policy

    if with_stdin:
        end_with_stdin()
    if check:
        check_simulator(scenes)
        return
    folder = _policy_folder(run, policy, outputs)
    file = out or (folder if policy else outputs / str(run)) / "simulation.json"
    evaluate_policy(folder, file, episodes, seed, scenes, videos)


@results.command(rich_help_panel=_RESULTS)
def compare(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
    episodes: Annotated[int, typer.Option(help="number of episodes")] = 50,
    scenes: Scenes = SCENES,
    as_json: Annotated[bool, typer.Option("--json", help="print every episode, as JSON")] = False,
) -> None:
    """Compare two policies on the same episodes of the simulated arm.

    A and B are pretrained_model folders.

    Example: so100-server compare outputs/one/pretrained_model outputs/other/pretrained_model
    """
    from server.evaluation.compare import compare_policies

    compare_policies(a.expanduser(), b.expanduser(), episodes, scenes, as_json=as_json)


@results.command(rich_help_panel=_RESULTS)
def serve(
    run: OneRun = None,
    policy: Policy = None,
    port: Annotated[int, typer.Option(help="on the loopback address")] = 8080,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Serve a policy to a robot, by LeRobot's asynchronous inference.

    The policy is that of a run after its last round, or --policy.

    Example: so100-server serve demo-20261123-184002
    """
    from server.deploy.serve import serve_policy

    serve_policy(_policy_folder(run, policy, outputs), port)


@results.command(rich_help_panel=_RESULTS)
def push(
    run: Run,
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="default: the run's hub.repo")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="the round with the lowest held-out loss")] = False,
    public: Annotated[bool, typer.Option("--public", help="if the repository has to be made")] = False,
    outputs: Outputs = OUTPUTS,
) -> None:
    """Put the policy of a finished run on the Hugging Face Hub.

    HF_TOKEN, or what hf auth login keeps, has to be a token that may write there.

    Example: so100-server push demo-20261123-184002 --repo my-lab/so101
    """
    from server.deploy.push import push_run

    push_run(outputs / run, repo, best=best, public=public)


def _policy_folder(run: str | None, policy: Path | None, outputs: Path) -> Path:
    if (run is None) == (policy is None):
        raise ConfigError("name one policy: a run such as demo-20261123-184002, or --policy FOLDER")
    return policy.expanduser() if policy else outputs / str(run) / "pretrained_model"
