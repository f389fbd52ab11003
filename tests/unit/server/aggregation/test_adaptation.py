import math

import pytest
import torch

from federation.config import RunConfig, parse_run_config
from server.aggregation.adaptation import average_weights, is_spike, proximal_mu
from server.run.round_record import RoundRecord


def _entry(mu: float, *losses: float) -> RoundRecord:
    clients = {f"site-{number}": {"policy_loss": loss} for number, loss in enumerate(losses)}
    return RoundRecord(1, proximal_mu=mu, clients=clients)


def _adaptive(**changes: object) -> RunConfig:
    return parse_run_config(
        {"training.adapt_proximal_mu": True, "training.proximal_mu": 0.01} | changes, "test"
    )


def test_mu_is_the_configured_one_unless_it_adapts() -> None:
    assert proximal_mu(RunConfig(), None) == 0.001
    assert proximal_mu(RunConfig(), _entry(0.5, 1.0, 10.0, 30.0)) == 0.001


def test_fedavg_has_no_proximal_term() -> None:
    config = parse_run_config({"aggregation.strategy": "fedavg"}, "test")
    assert proximal_mu(config, _entry(0.01, 1.0, 1.0)) == 0.0


def test_mu_doubles_while_losses_spread_and_comes_back_when_they_agree() -> None:
    config = _adaptive()
    mus = [proximal_mu(config, None)]
    for distance in [0.6] * 10 + [0.3] + [0.1] * 10:
        mus.append(proximal_mu(config, _entry(mus[-1], 1.0 - distance, 1.0 + distance)))
    assert mus[:3] == [0.01, 0.02, 0.04]
    assert max(mus) == 0.64  # never more than 64 times
    assert mus[10] == mus[11]  # in between it stays
    assert mus[-1] == 0.01


def test_one_site_that_reports_a_huge_loss_moves_no_mu() -> None:
    assert proximal_mu(_adaptive(), _entry(0.01, *[1.0] * 9, 1e18)) == 0.01


def test_mu_stays_after_a_round_without_updates() -> None:
    assert proximal_mu(_adaptive(), RoundRecord(1, proximal_mu=0.04)) == 0.04


def test_the_average_forgets_the_beginning_and_then_follows_slowly() -> None:
    average = {"w": torch.tensor([100.0])}
    for round_ in range(1, 200):
        average_weights(average, {"w": torch.tensor([1.0])}, 0.9, round_)
    assert average["w"].item() == pytest.approx(1.0)
    average_weights(average, {"w": torch.tensor([2.0])}, 0.9, 200)
    assert average["w"].item() == pytest.approx(1.1)


def test_the_first_rounds_count_nearly_in_full() -> None:
    average = {"w": torch.tensor([0.0])}
    average_weights(average, {"w": torch.tensor([11.0])}, 0.999, 1)
    assert average["w"].item() == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("loss", "best", "ratio", "expected"),
    [
        (0.4, 0.3, 2.0, False),
        (0.7, 0.3, 2.0, True),
        (70.0, 0.3, 0.0, False),
        (math.nan, 0.3, 0.0, True),
        (math.inf, math.inf, 2.0, True),
        (5.0, math.inf, 2.0, False),
    ],
)
def test_a_spike_is_a_loss_far_beyond_the_best_one(
    loss: float, best: float, ratio: float, expected: bool
) -> None:
    assert is_spike(loss, best, ratio) is expected
