"""Too few nodes is waiting, not failing: `NodeTable.wait_for_nodes` reports it here, ever more seldom."""

import time
from collections.abc import Mapping

from federation.logs import get_logger
from server.run.records import RunRecord

__all__ = ["WaitReport"]

_MAX_SECONDS_BETWEEN_REPORTS = 3600.0
_log = get_logger("server.waiting")


class WaitReport:
    """Reports one wait for nodes after `seconds`, and again after twice, four times, ... as long."""

    def __init__(self, record: RunRecord, min_nodes: int, seconds: float) -> None:
        self._record, self._min_nodes, self._interval = record, min_nodes, seconds
        self._started = time.monotonic()
        self._report_at = self._started + seconds
        self._has_reported = False

    def too_few(self, joined: int, denied: Mapping[str, str]) -> None:
        """Report, if it is time, that only `joined` nodes are there.

        Args:
            denied: name or id of a node that is online and may not join -> why.
        """
        now = time.monotonic()
        if now < self._report_at:
            return
        self._report_at = now + self._interval
        self._interval = min(2 * self._interval, max(self._interval, _MAX_SECONDS_BETWEEN_REPORTS))
        self._has_reported = True
        reasons = "".join(f"; {name} was denied: {reason}" for name, reason in denied.items())
        _log.warning(
            "%d of %d nodes have joined after %.0f s, the run waits for the others: start their SuperNodes, "
            "or resume with a lower federation.min_nodes%s",
            joined,
            self._min_nodes,
            now - self._started,
            reasons,
        )
        self._record.event("waiting_for_nodes", joined=joined, min_nodes=self._min_nodes, denied=dict(denied))

    def enough(self) -> None:
        """Report the end of a wait that was reported."""
        if self._has_reported:
            _log.info("enough nodes have joined after %.0f s", time.monotonic() - self._started)
            self._record.event("waiting_ended")
