"""What every ClientApp imports, for the fork server of `client/supernode/warm_start.py` to import once.

Only imports: a parent of forks may hold no CUDA context, no open device and no pool of OpenMP threads, which
a fork cannot use. Nothing here computes with a tensor or asks for a GPU.
"""

import gc
import importlib

from federation import logs

__all__: list[str] = []

# Ours import torch and LeRobot; the others are imported late, by LeRobot's processors and by transformers.
_MODULES = (
    "flwr.supernode.cli",
    "flwr.supernode.runtime.run_clientapp",
    "client.app",
    "client.device",
    "client.gpu_watch",
    "client.supernode.consent",
    "client.training",
    "client.state.feedback",
    "client.state.frozen",
    "client.state.optimizer",
    "client.state.progress",
    "federation.data.normalisation",
    "federation.data.sample_cache",
    "federation.policy.build",
    "federation.privacy",
)


def _preload() -> None:
    """Import the modules; report the first that cannot be, which a ClientApp then fails to import as well."""
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a package does when it is broken
            logs.configure()
            log = logs.get_logger("client.supernode.preload")
            log.error("%s cannot be imported (%s: %s); reinstall", module, type(error).__name__, error)
            return
    gc.collect()
    gc.freeze()  # the collector of a fork would write into pages that it shares with this process


_preload()
