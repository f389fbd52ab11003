"""Where the server has the policy that a run starts from, if that is an earlier run's."""

from pathlib import Path

from federation.config import RunConfig
from federation.errors import ConfigError
from federation.policy.earlier_run import earlier_run, start_from
from server.run.recorded import is_finished

__all__ = ["locate_base"]


def locate_base(config: RunConfig, outputs: Path) -> RunConfig:
    """Return `config` with the folder of the earlier run's policy in the place of `run:NAME`.

    That is the best one, or with an adapter, which all machines need the very same base for, the last, which
    the sites have. Only for what this machine does itself: record and messages keep the name.

    Raises:
        ConfigError: there is no such run in `outputs`, or it has not finished.
    """
    name = earlier_run(config)
    if not name:
        return config
    last, best = (outputs / name / folder for folder in ("pretrained_model", "pretrained_model_best"))
    if not last.is_dir() or not is_finished(outputs / name):
        raise ConfigError(
            f"policy.pretrained = 'run:{name}': {outputs} holds no such run that has finished; name one of "
            "its folders"
        )
    return start_from(config, best if best.is_dir() and config.policy.adapter == "none" else last)
