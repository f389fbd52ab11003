import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.config import RunConfig
from federation.settings import PrivacyConfig, TrainingConfig
from server.aggregation.verification import largest_norm


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=60), st.integers(0, 40))
def test_no_training_moves_weights_beyond_what_the_learning_rate_allows(
    values: list[float], rest: int
) -> None:
    gradients = torch.tensor(values).double().pow(5)  # from next to nothing to hundreds
    config = RunConfig(training=TrainingConfig(local_steps=len(values) + rest, warmup_steps=0))
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=config.training.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    for gradient in [*([0.0] * rest), *gradients.tolist()]:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    most = largest_norm(config, 1, 1, config.training.local_steps)
    assert abs(weight.item()) <= 0.6 * most  # the rest is for what encoding left over from the round before


def test_under_local_privacy_the_noise_is_no_reason_to_refuse_an_update() -> None:
    config = RunConfig(privacy=PrivacyConfig(mode="local", clip_norm=2.0, noise_multiplier=3.0))
    noise = 2.0 * 3.0 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert 2.0 + noise.norm() < largest_norm(config, 1, 1000, 200) < 3 * noise.norm()
