import pytest
import torch

from client.fedprox import _pull_at_once, _pull_one_by_one, add_proximal_gradient


def _parameters(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), ()]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("mu", [0.001, 0.1, 2.0])
def test_the_gradient_is_that_of_the_objective_of_the_paper(mu: float) -> None:
    received = [p.detach().clone() for p in _parameters(seed=1)]
    ours, reference = _parameters(seed=2), _parameters(seed=2)
    sum(p.sin().sum() for p in ours).backward()
    proximal_loss = add_proximal_gradient(ours, received, mu)

    squared_norm = sum((p - w).square().sum() for p, w in zip(reference, received, strict=True))
    (sum(p.sin().sum() for p in reference) + mu / 2 * squared_norm).backward()

    for p, q in zip(ours, reference, strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(proximal_loss, (mu / 2 * squared_norm).detach())


def test_it_vanishes_where_the_weights_have_not_moved() -> None:
    parameters = _parameters(seed=1)
    sum(p.sum() for p in parameters).backward()
    before = [p.grad.clone() for p in parameters]
    assert add_proximal_gradient(parameters, [p.detach().clone() for p in parameters], 0.5).item() == 0
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True))


def test_mu_zero_touches_nothing() -> None:
    parameters, received = _parameters(seed=1), _parameters(seed=2)
    sum(p.sum() for p in parameters).backward()
    before = [p.grad.clone() for p in parameters]
    assert add_proximal_gradient(parameters, received, 0.0).item() == 0
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True))


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    parameters, received = _parameters(seed=1), _parameters(seed=2)
    parameters[0].sum().backward()
    add_proximal_gradient(parameters, received, 0.5)
    assert parameters[1].grad is None


def test_all_parameters_at_once_get_the_same_gradients_as_one_by_one() -> None:
    received = _parameters(seed=1)
    gradients, norms = [], []
    for pull in (_pull_at_once, _pull_one_by_one):
        parameters = _parameters(seed=2)
        sum(p.sin().sum() for p in parameters).backward()
        with torch.no_grad():
            moved = [(p, w, p.grad) for p, w in zip(parameters, received, strict=True)]
            norms.append(torch.stack(pull(moved, 0.1)))
        gradients.append([p.grad for p in parameters])
    assert all(torch.equal(p, q) for p, q in zip(*gradients, strict=True))
    torch.testing.assert_close(*norms)


@pytest.mark.parametrize("pull", [_pull_at_once, _pull_one_by_one])
def test_received_weights_in_bf16_count_as_the_same_in_fp32(pull) -> None:
    received = [p.detach().bfloat16() for p in _parameters(seed=1)]
    gradients = []
    for anchors in (received, [w.float() for w in received]):
        parameters = _parameters(seed=2)
        sum(p.sin().sum() for p in parameters).backward()
        with torch.no_grad():
            pull([(p, w, p.grad) for p, w in zip(parameters, anchors, strict=True)], 0.1)
        gradients.append([p.grad for p in parameters])
    assert all(torch.equal(p, q) for p, q in zip(*gradients, strict=True))
