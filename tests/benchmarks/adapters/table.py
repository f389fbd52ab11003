"""The table of what came of the arms."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from server.evaluation.intervals import wilson_interval
from tests.benchmarks.adapters.arms import ARMS, full_size_rank

__all__ = ["make_table"]

_HEAD = """\
Held-out loss: mean over the seeds, in brackets their range. Success: of all seeds' episodes together, with
Wilson's 95 % interval; the seeds drive the same episodes. Bytes: of a round, from and to a site, against the
whole policy's. Rank at full size: whose adapter is the same share of what is trained there. Error: of the
product of the means, over the length of the step that the mean of the products takes; mean over the rounds.

| arm | seeds | trained | rank at full size | bytes | held-out loss | success | error |
|---|---|---|---|---|---|---|---|
"""


def make_table(results: Sequence[dict[str, Any]]) -> str:
    """Return it as Markdown."""
    dense = next(result for result in results if result["arm"] == "dense")
    rows = []
    for arm in ARMS:
        found = [result for result in results if result["arm"] == arm.name]
        if not found:
            continue
        losses = [result["policy_loss"] for result in found]
        successes = [success for result in found for success in result["successes"]]
        low, high = wilson_interval(sum(successes), len(successes))
        share = found[0]["trained"] / dense["trained"]
        errors = [error for result in found for error in result["product_error"]]
        cells = [
            arm.name,
            str(len(found)),
            f"{found[0]['trained']:,}",
            str(full_size_rank(arm, share)) if arm.is_adapter else "",
            f"{_bytes(found[0]) / _bytes(dense):.1%}",
            f"{np.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})",
            f"{np.mean(successes):.0%} ({low:.0%} to {high:.0%})",
            f"{np.mean(errors):.1%}" if errors else "",
        ]
        rows.append(f"| {' | '.join(cells)} |\n")
    return _HEAD + "".join(rows)


def _bytes(result: dict[str, Any]) -> int:
    return int(result["bytes_up"] + result["bytes_down"])
