"""Where this site has the policy that a run starts from, if that is an earlier run's."""

from client.site import Site
from client.state.delivered_policy import read_delivered_policy
from federation.config import RunConfig
from federation.errors import FederationError, RejectionCode
from federation.policy.earlier_run import earlier_run, start_from

__all__ = ["locate_base"]


def locate_base(config: RunConfig, site: Site) -> RunConfig:
    """Return `config` with the folder of the earlier run's policy in the place of `run:NAME`.

    The run's own policy will do as well, where the run goes on after it was delivered: its frozen weights are
    those of the earlier one, but with an adapter, which is merged into it.

    Raises:
        FederationError: the policy of that run was never delivered here, or another one was since.
    """
    name = earlier_run(config)
    if not name:
        return config
    held = read_delivered_policy(site.policy_folder).get("run", "none")
    if held != name and (held != config.run.name or config.policy.adapter != "none"):
        raise FederationError(
            f"policy.pretrained = 'run:{name}': this site has the policy of {held}; so100-server deliver "
            f"{name} sends it, where the site took part in that run",
            RejectionCode.FROZEN_WEIGHTS,
        )
    return start_from(config, site.policy_folder)
