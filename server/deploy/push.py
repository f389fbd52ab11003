"""`so100-server push`: put the policy of a run that is over on the Hugging Face Hub."""

from pathlib import Path

from federation.config import parse_run_config
from federation.errors import ConfigError, FederationError
from server.output.hub import Hub
from server.run.recorded import evaluations_behind, is_finished, read_metrics, recorded_config
from server.run.round_record import recorded_rounds

__all__ = ["push_run"]


def push_run(folder: Path, repo: str | None = None, *, best: bool = False, public: bool = False) -> None:
    """Push the exported policy of the run in `folder`, tagged with run and round; print where it is.

    Args:
        repo: owner/name; None: `hub.repo` of the run.
        best: the policy with the lowest held-out loss, in the place of the last.
        public: make a repository that is missing a public one.

    Raises:
        ConfigError: no repository is named or its name is malformed, or the Hub refuses the token.
        FederationError: the run has not finished, or the push failed.
    """
    config = recorded_config(folder)
    if not is_finished(folder):
        raise FederationError(f"run {folder.name} has not finished: resume it; its end pushes, with hub.repo")
    repo = repo or config.hub.repo
    if not repo:
        raise ConfigError("name a repository: --repo owner/name; the run's hub.repo is empty")
    settings = parse_run_config({"hub.repo": repo, "hub.private": not public}, "--repo").hub
    policy = folder / ("pretrained_model_best" if best else "pretrained_model")
    if not policy.is_dir():
        raise FederationError(f"{policy}: no policy there; make resume RUN={folder.name} exports it")
    hub = Hub(settings, folder.name)
    hub.push(policy, _round_of(folder, best))
    hub.close()
    for report in hub.reports():
        if report["event"] != "pushed":
            raise FederationError(f"{policy} is not on the Hub: {report['reason']}")
        print(f"round {report['round']} of {folder.name} is on the Hub: {report['repo']}")


def _round_of(folder: Path, best: bool) -> int:
    """Return the round that the policy is after."""
    metrics = read_metrics(folder)
    rounds = recorded_rounds(metrics)
    found = evaluations_behind(metrics, rounds[-1].round) if rounds else {}
    if best and found:
        return min(found, key=lambda round_: float(found[round_]["policy_loss"]))
    return rounds[-1].round if rounds else 0
