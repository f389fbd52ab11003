"""Which of two policies is better in closed loop: `so100-server compare A B`.

Both drive the same simulator seeds, so each episode is a pair and luck with the cube's place cancels. Success
is tested by McNemar's exact test, how far an episode came (the return) by the sign test, which is the same
test on more than yes and no.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.evaluation.closed_loop import simulate
from server.evaluation.intervals import sign_test

__all__ = ["compare_episodes", "compare_policies"]

_TIE = 0.02  # of a return: rounding, and what LeRobot counts of the next episode


def compare_episodes(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pair the episodes of two evaluations (`per_episode` of `server.evaluation.closed_loop.simulate`).

    Returns:
        `only_a` and `only_b`, episodes that only one of them succeeded in; `p_success`; `higher_a` and
        `higher_b`, episodes in which one came further; `p_return`. Two-sided p-values.

    Raises:
        ValueError: the seeds differ.
    """
    if [episode["seed"] for episode in a] != [episode["seed"] for episode in b]:
        raise ValueError("the evaluations are of different seeds: nothing to pair")
    success = [y["success"] - x["success"] for x, y in zip(a, b, strict=True)]
    differences = (y["return"] - x["return"] for x, y in zip(a, b, strict=True))
    further = [0.0 if abs(d) < _TIE else d for d in differences]
    return {
        "only_a": sum(d < 0 for d in success),
        "only_b": sum(d > 0 for d in success),
        "p_success": sign_test(success),
        "higher_a": sum(d < 0 for d in further),
        "higher_b": sum(d > 0 for d in further),
        "p_return": sign_test(further),
    }


def compare_policies(a: Path, b: Path, episodes: int, variants: str, *, as_json: bool = False) -> None:
    """Let the policies in the folders `a` and `b` drive the same episodes and print how they differ.

    Args:
        variants: scenes that the episodes take in turn, separated by commas.
        as_json: print all figures, of every episode.

    Raises:
        FederationError: as `simulate`.
    """
    one, other = (simulate(folder, episodes, variants=variants.split(",")) for folder in (a, b))
    paired = compare_episodes(one["per_episode"], other["per_episode"])
    if as_json:
        print(json.dumps({"a": one, "b": other, "paired": paired}, indent=2))
        return
    for name, result in (("A", one), ("B", other)):
        low, high = result["interval"]
        print(
            f"{name}: success {result['success_rate']:.0%} ({low:.0%} to {high:.0%}), "
            f"mean return {result['mean_return']:.3f}"
        )
    print(
        f"success in A only {paired['only_a']}, in B only {paired['only_b']}: p = {paired['p_success']:.3f}; "
        f"further with A {paired['higher_a']}, with B {paired['higher_b']}: p = {paired['p_return']:.3f}"
    )
