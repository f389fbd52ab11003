"""Which of two policies is better in closed loop: `make compare A=outputs/x/pretrained_model B=...`.

Both drive the same simulator seeds, so each episode is a pair and luck with the cube's place cancels. Success
is tested by McNemar's exact test, how far an episode came (the return) by the sign test, which is the same
test on more than yes and no.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from federation.errors import ConfigError, FederationError
from server.evaluation.closed_loop import check_simulator, simulate
from server.evaluation.intervals import sign_test

__all__ = ["compare_episodes", "main"]


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
    further = [y["return"] - x["return"] for x, y in zip(a, b, strict=True)]
    return {
        "only_a": sum(d < 0 for d in success),
        "only_b": sum(d > 0 for d in success),
        "p_success": sign_test(success),
        "higher_a": sum(d < 0 for d in further),
        "higher_b": sum(d > 0 for d in further),
        "p_return": sign_test(further),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit code is 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m server.evaluation.compare", description=__doc__.split("\n")[0]
    )
    parser.add_argument("a", type=Path, help="a pretrained_model folder")
    parser.add_argument("b", type=Path, help="another")
    parser.add_argument("--episodes", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--variants", default="site-a,site-b", help="scenes, in turn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    arguments = parser.parse_args(argv)
    try:
        if arguments.episodes < 1:
            raise ConfigError(f"episodes is {arguments.episodes}: give 1 or more")
        check_simulator(arguments.variants)
        variants = arguments.variants.split(",")
        a, b = (
            simulate(folder, arguments.episodes, variants=variants) for folder in (arguments.a, arguments.b)
        )
    except (FederationError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    paired = compare_episodes(a["per_episode"], b["per_episode"])
    if arguments.json:
        print(json.dumps({"a": a, "b": b, "paired": paired}, indent=2))
        return 0
    for name, result in (("A", a), ("B", b)):
        low, high = result["interval"]
        print(
            f"{name}: success {result['success_rate']:.0%} ({low:.0%} to {high:.0%}), "
            f"mean return {result['mean_return']:.3f}"
        )
    print(
        f"success in A only {paired['only_a']}, in B only {paired['only_b']}: p = {paired['p_success']:.3f}; "
        f"further with A {paired['higher_a']}, with B {paired['higher_b']}: p = {paired['p_return']:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
