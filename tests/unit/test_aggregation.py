import numpy as np
import torch

from server.aggregation import WeightedMean


def _updates(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"a": torch.randn(4, 3, generator=generator), "b": torch.randn((), generator=generator)}
        for _ in range(count)
    ]


def _mean(updates: list, examples: list[int]) -> tuple[dict[str, torch.Tensor], float]:
    mean = WeightedMean({name: tensor.shape for name, tensor in updates[0].items()})
    for update, count in zip(updates, examples, strict=True):
        mean.add(update.items(), count)
    weights = {name: torch.zeros(tensor.shape) for name, tensor in updates[0].items()}
    return weights, mean.apply_to(weights)


def test_it_equals_numpys_weighted_average_in_float64() -> None:
    updates, examples = _updates(5), [1, 10, 100, 7, 3]
    result, norm = _mean(updates, examples)
    squared = 0.0
    for name in result:
        stacked = np.stack([u[name].double().numpy() for u in updates])
        expected = np.average(stacked, axis=0, weights=examples)
        np.testing.assert_allclose(result[name].numpy(), expected, rtol=1e-5, atol=1e-6)
        squared += np.square(expected).sum()
    np.testing.assert_allclose(norm, np.sqrt(squared), rtol=1e-5)


def test_two_updates_give_the_same_bits_in_either_order() -> None:
    updates = _updates(2)
    forward, _ = _mean(updates, [3, 5])
    backward, _ = _mean(updates[::-1], [5, 3])
    assert all(torch.equal(forward[name], backward[name]) for name in forward)


def test_without_updates_the_weights_stay() -> None:
    weights = {"a": torch.ones(2)}
    assert WeightedMean({"a": torch.Size([2])}).apply_to(weights) == 0.0
    assert torch.equal(weights["a"], torch.ones(2))
