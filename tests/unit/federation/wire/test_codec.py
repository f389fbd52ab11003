import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.errors import WireError
from federation.wire.codec import BLOCKED, check, decode, decode_parts, encode, encoded_bytes

CODECS = ("fp32", "bf16", "int8", "int4")
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


@pytest.mark.parametrize("codec", BLOCKED)
@given(ARRAYS)
@settings(max_examples=200)
def test_a_blocked_codec_is_off_by_at_most_half_a_step_of_its_block(codec: str, values: np.ndarray) -> None:
    decoded = decode(encode(torch.from_numpy(values), codec), values.shape, codec).numpy()
    size, largest_code = BLOCKED[codec].values, BLOCKED[codec].largest_code
    flat = np.pad(values.reshape(-1).astype(np.float64), (0, -values.size % size))
    largest = abs(flat.reshape(-1, size)).max(axis=1, initial=0)
    allowed = np.repeat(largest / (2 * largest_code) * (1 + 1e-5) + 2.0**-119, size)[: values.size]
    assert (abs(decoded.astype(np.float64) - values).reshape(-1) <= allowed).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 65, 2**19 + 1])
def test_the_parts_of_a_tensor_are_the_tensor(codec: str, size: int) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0))
    payload = encode(tensor, codec)
    parts = torch.full((size,), float("nan"))
    for start, values in decode_parts(payload, (size,), codec):
        parts[start : start + len(values)] = values
        values.fill_(7.0)  # a caller may do so
    assert torch.equal(parts, decode(payload, (size,), codec))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (63,), (64,), (65,), (127,), (128,), (129,), (720, 96), (3, 0, 2)]
)
def test_shape_and_size_survive(codec: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    payload = encode(tensor, codec)
    assert payload.size == encoded_bytes(shape, codec)
    assert decode(payload, shape, codec).shape == shape


def test_a_large_payload_is_at_most_27_percent_of_fp32_in_int8_and_15_in_int4() -> None:
    assert encoded_bytes((960, 2560), "int8") <= 0.27 * encoded_bytes((960, 2560), "fp32")
    assert encoded_bytes((960, 2560), "int4") <= 0.15 * encoded_bytes((960, 2560), "fp32")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_encoded(codec: str, bad: float) -> None:
    tensor = torch.ones(300)
    tensor[200] = bad
    with pytest.raises(WireError, match="NaN or infinity"):
        encode(tensor, codec)


@pytest.mark.parametrize("codec", BLOCKED)
def test_a_value_beyond_the_range_of_a_blocked_codec_is_refused(codec: str) -> None:
    with pytest.raises(WireError, match="larger than 1e\\+37"):
        encode(torch.tensor([2e37]), codec)


def test_a_value_that_rounds_to_infinity_in_bf16_is_refused() -> None:
    with pytest.raises(WireError, match="too large for bf16"):
        encode(torch.tensor([torch.finfo(torch.float32).max]), "bf16")


@pytest.mark.parametrize("codec", CODECS)
def test_a_truncated_payload_is_refused(codec: str) -> None:
    payload = encode(torch.ones(200), codec)
    with pytest.raises(WireError, match="cannot hold"):
        check(payload[:-1], (200,), codec)


@pytest.mark.parametrize("codec", BLOCKED)
def test_a_negative_or_infinite_scale_is_refused(codec: str) -> None:
    for scale in (-1.0, float("nan"), float("inf"), 3e38):
        payload = encode(torch.ones(10), codec)
        payload[:4] = np.array([scale], np.float32).view(np.uint8)
        with pytest.raises(WireError, match="NaN or infinity"):
            check(payload, (10,), codec)


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
