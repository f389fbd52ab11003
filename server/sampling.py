"""Which nodes take part in a round."""

import math
import random
from collections.abc import Mapping

from federation.settings import FederationConfig
from server.join_answer import Node

__all__ = ["sample_nodes", "sample_size"]


def sample_size(nodes: int, config: FederationConfig) -> int:
    """Return how many of so many nodes a round asks: `fraction_fit` of them, rounded up."""
    return math.ceil(config.fraction_fit * nodes)


def sample_nodes(nodes: Mapping[int, Node], config: FederationConfig, seed: int, round_: int) -> list[Node]:
    """Return this round's participants: `fraction_fit` of `nodes`, rounded up, in order of their names.

    Fair: those come first who were sampled least, had these nodes been there from the first round; who comes
    first among equals is drawn. Depends on the seed, the round and the nodes' names only, so a resumed run
    samples as one that was not interrupted.
    """
    by_name = {node.name: node for node in sorted(nodes.values(), key=lambda node: node.name)}
    count = sample_size(len(by_name), config)
    if count == len(by_name):
        return list(by_name.values())
    times_sampled = dict.fromkeys(by_name, 0)
    chosen: list[str] = []
    for earlier in range(1, round_ + 1):
        drawn = random.Random(f"{seed}/{earlier}").sample(list(by_name), len(by_name))
        chosen = sorted(drawn, key=times_sampled.__getitem__)[:count]
        for name in chosen:
            times_sampled[name] += 1
    return [by_name[name] for name in sorted(chosen)]
