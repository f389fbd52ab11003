import pytest

from federation.settings import FederationConfig
from server.sampling import sample_nodes
from tests.unit.server.replies import make_nodes


def test_sampling_takes_the_fraction_and_repeats_itself() -> None:
    joined = {node.node_id: node for node in make_nodes("d", "a", "c", "b")}
    half = FederationConfig(fraction_fit=0.5)
    first = [node.name for node in sample_nodes(joined, half, seed=1, round_=1)]
    assert len(first) == 2
    assert first == sorted(first)
    assert first == [node.name for node in sample_nodes(joined, half, seed=1, round_=1)]
    assert len(sample_nodes(joined, FederationConfig(fraction_fit=0.1), seed=1, round_=1)) == 1


@pytest.mark.parametrize(("count", "fraction"), [(4, 0.5), (5, 0.5), (7, 0.3), (3, 0.6)])
def test_sampling_is_fair_and_does_not_pair_the_same_nodes(count: int, fraction: float) -> None:
    joined = {node.node_id: node for node in make_nodes(*(f"site-{i}" for i in range(count)))}
    config = FederationConfig(fraction_fit=fraction)
    rounds = [[node.name for node in sample_nodes(joined, config, seed=3, round_=r)] for r in range(1, 31)]
    times = [sum(name in sampled for sampled in rounds) for name in (f"site-{i}" for i in range(count))]
    assert max(times) - min(times) <= 1
    assert len({tuple(sampled) for sampled in rounds}) >= 3
