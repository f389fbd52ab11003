import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.codec import BLOCK_VALUES, check, decode, encode, encoded_bytes
from federation.errors import WireError

CODECS = ("fp32", "bf16", "int8")
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)  # denormals included
ARRAYS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40), elements=FINITE
)


@given(ARRAYS)
def test_fp32_is_exact(values: np.ndarray) -> None:
    tensor = torch.from_numpy(values)
    assert torch.equal(decode(encode(tensor, "fp32"), values.shape, "fp32"), tensor)


@given(ARRAYS)
def test_bf16_is_off_by_at_most_a_256th(values: np.ndarray) -> None:
    decoded = decode(encode(torch.from_numpy(values), "bf16"), values.shape, "bf16").numpy()
    smallest_normal = 2.0**-126
    assert (abs(decoded - values) <= np.maximum(abs(values), smallest_normal) * 2.0**-8).all()


@given(ARRAYS)
@settings(max_examples=200)
def test_int8_is_off_by_at_most_half_a_step_of_its_block(values: np.ndarray) -> None:
    decoded = decode(encode(torch.from_numpy(values), "int8"), values.shape, "int8").numpy()
    flat = np.pad(values.reshape(-1).astype(np.float64), (0, -values.size % BLOCK_VALUES))
    largest = abs(flat.reshape(-1, BLOCK_VALUES)).max(axis=1, initial=0)
    allowed = np.repeat(largest / 254 * (1 + 1e-5) + 2.0**-119, BLOCK_VALUES)[: values.size]
    assert (abs(decoded.astype(np.float64) - values).reshape(-1) <= allowed).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (127,), (128,), (129,), (720, 96), (3, 0, 2)])
def test_shape_and_size_survive(codec: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    payload = encode(tensor, codec)
    assert payload.size == encoded_bytes(shape, codec)
    assert decode(payload, shape, codec).shape == shape


def test_a_large_int8_payload_is_at_most_27_percent_of_fp32() -> None:
    assert encoded_bytes((960, 2560), "int8") <= 0.27 * encoded_bytes((960, 2560), "fp32")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_encoded(codec: str, bad: float) -> None:
    tensor = torch.ones(300)
    tensor[200] = bad
    with pytest.raises(WireError, match="NaN or infinity"):
        encode(tensor, codec)


def test_a_value_beyond_int8s_range_is_refused() -> None:
    with pytest.raises(WireError, match="larger than 1e\\+37"):
        encode(torch.tensor([2e37]), "int8")


def test_a_value_that_rounds_to_infinity_in_bf16_is_refused() -> None:
    with pytest.raises(WireError, match="too large for bf16"):
        encode(torch.tensor([torch.finfo(torch.float32).max]), "bf16")


@pytest.mark.parametrize("codec", CODECS)
def test_a_truncated_payload_is_refused(codec: str) -> None:
    payload = encode(torch.ones(200), codec)
    with pytest.raises(WireError, match="cannot hold"):
        decode(payload[:-1], (200,), codec)


def test_a_negative_or_infinite_scale_is_refused() -> None:
    for scale in (-1.0, float("nan"), float("inf"), 3e38):
        payload = encode(torch.ones(10), "int8")
        payload[:4] = np.array([scale], np.float32).view(np.uint8)
        with pytest.raises(WireError, match="NaN or infinity"):
            check(payload, (10,), "int8")


@given(st.sampled_from(CODECS), st.data())
@settings(max_examples=300)
def test_whatever_passes_the_check_decodes_to_finite_values(codec: str, data: st.DataObject) -> None:
    size = encoded_bytes((70,), codec)
    payload = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    try:
        check(payload, (70,), codec)
    except WireError:
        return
    assert torch.isfinite(decode(payload, (70,), codec)).all()
