"""The supervisor of a run in a thread, beside which a test or a benchmark does something."""

import threading
from collections.abc import Callable
from pathlib import Path

from federation.config import RunConfig
from server.deploy.local_cluster import LocalCluster
from server.deploy.supervise import supervise_run

__all__ = ["SupervisedRun"]


class SupervisedRun(threading.Thread):
    """Sees a run through; it ends with the process, should that not wait for it.

    Args:
        say: takes lines for the operator.
    """

    def __init__(
        self, cluster: LocalCluster, outputs: Path, config: RunConfig, say: Callable[[str], object] = print
    ) -> None:
        super().__init__(daemon=True)
        self._work = lambda: supervise_run(cluster.superlink, outputs, config, say)
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Do what the thread is for."""
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise what the supervisor raised, if it did."""
        if self._error is not None:
            raise self._error

    def finish(self, seconds: float | None = None) -> None:
        """Wait for the end; raise what the supervisor raised, or TimeoutError after `seconds`."""
        self.join(seconds)
        self.check()
        if self.is_alive():
            raise TimeoutError(f"the run has not ended after {seconds:.0f} s")
