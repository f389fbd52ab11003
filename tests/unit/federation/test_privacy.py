"""Clipping bounds what noise has to hide, however small an operator makes it."""

import math

import pytest
import torch

from federation.config import parse_run_config
from federation.errors import ConfigError
from federation.privacy import clip


@pytest.mark.parametrize(("value", "norm"), [(1e-24, 1e-36), (1e-30, 1e-33), (1e20, 1.0), (3.0, 1e-6)])
def test_an_update_is_clipped_where_fp32_cannot_hold_its_square(value: float, norm: float) -> None:
    update = [torch.full((40, 25), value), torch.full((24,), -value)]
    clip(update, norm)
    actual = math.hypot(*(tensor.double().norm().item() for tensor in update))
    assert actual == pytest.approx(norm, rel=1e-5)


def test_a_bound_that_the_noise_would_vanish_beside_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy.clip_norm = 1e-36"):
        parse_run_config({"privacy.mode": "local", "privacy.clip_norm": 1e-36}, "tests")
