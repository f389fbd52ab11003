"""Codecs: fp32 tensors to bytes and back, whole tensors at a time.

| codec | bytes a value | error of a value x |
|---|---|---|
| `fp32` | 4 | none |
| `bf16` | 2 | at most 2^-8 of |x|: for the global weights |
| `int8` | 1 + 4/128 | at most 1/254 of the largest magnitude in its block: for updates |

`int8` is symmetric and block-scaled: each block of 128 values has its own fp32 scale, its largest magnitude
divided by 127. The last block is filled up with zeros. Smaller blocks follow outliers better and cost more
bytes; at 128 the payload is 0.258 of fp32.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from federation.errors import WireError

__all__ = ["BLOCK_VALUES", "check", "decode", "encode", "encoded_bytes"]

BLOCK_VALUES = 128
_MAX_CODE = 127
_LOWEST_CODE = -128  # `encode` never writes it, but a received byte can hold it
_MAX_MAGNITUDE = 1e37  # above it a scale times 127 could leave fp32; no update comes near
_SCALE_BYTES = 4
_SMALLEST_SCALE = 2.0**-126  # the smallest normal fp32
_CHUNK_BLOCKS = 2048  # 1 MiB of fp32, the fastest of 128 to 12800 when measured


def encoded_bytes(shape: Sequence[int], codec: str) -> int:
    """Length of the payload of a tensor of `shape`."""
    values = math.prod(shape)
    if codec == "fp32":
        return 4 * values
    if codec == "bf16":
        return 2 * values
    return math.ceil(values / BLOCK_VALUES) * (BLOCK_VALUES + _SCALE_BYTES)


def encode(tensor: Tensor, codec: str) -> np.ndarray:
    """Encode an fp32 CPU tensor of any shape as a 1-dim uint8 array.

    Raises:
        WireError: a value is NaN, infinite or, for `int8`, larger than 1e37 in magnitude.
    """
    flat = tensor.detach().reshape(-1)
    if not _is_finite(flat):
        raise WireError("NaN or infinity cannot be sent")
    if codec == "fp32":
        return flat.contiguous().numpy().view(np.uint8)
    if codec == "bf16":
        halved = flat.to(torch.bfloat16)
        if not _is_finite(halved):
            raise WireError("a value is too large for bf16")
        return halved.contiguous().view(torch.int16).numpy().view(np.uint8)
    blocks = _in_blocks(flat)
    payload = np.empty(encoded_bytes(flat.shape, codec), np.uint8)
    scales, codes = _scales_and_codes(payload)
    # New pages are what costs time here, so all chunks share one temporary.
    temporary = torch.empty(min(len(blocks), _CHUNK_BLOCKS), BLOCK_VALUES)
    for start in range(0, len(blocks), _CHUNK_BLOCKS):
        chunk = slice(start, start + _CHUNK_BLOCKS)
        block, scaled = blocks[chunk], temporary[: len(blocks) - start]
        largest = torch.abs(block, out=scaled).amax(dim=1, keepdim=True)
        if largest.max() > _MAX_MAGNITUDE:
            raise WireError(f"a value is larger than {_MAX_MAGNITUDE:g} in magnitude")
        scale = largest / _MAX_CODE
        scales[chunk] = scale
        # A block of zeros, or of magnitudes too small for the inverse to be finite, is sent as zeros.
        inverse = scale.reciprocal().where(scale >= _SMALLEST_SCALE, 0.0)
        codes[chunk] = torch.mul(block, inverse, out=scaled).round_()
    return payload


def check(payload: np.ndarray, shape: Sequence[int], codec: str) -> None:
    """Raise a `WireError` unless `payload` decodes to finite values of `shape`. Decodes nothing."""
    if payload.dtype != np.uint8 or payload.shape != (encoded_bytes(shape, codec),):
        raise WireError(f"{payload.size} bytes cannot hold {codec} values of shape {tuple(shape)}")
    if codec == "int8":
        scales, _ = _scales_and_codes(payload)
        fine = len(scales) == 0 or (scales.min() >= 0 and _is_finite(scales * -_LOWEST_CODE))
    else:
        fine = _is_finite(_view(payload, codec))
    if not fine:
        raise WireError("it holds NaN or infinity")


def decode(payload: np.ndarray, shape: Sequence[int], codec: str) -> Tensor:
    """Decode what `encode` made, as a new fp32 CPU tensor of `shape`.

    Args:
        payload: 1-dim uint8.

    Raises:
        WireError: as `check`.
    """
    check(payload, shape, codec)
    if codec == "int8":
        scales, codes = _scales_and_codes(payload)
        values = (codes * scales).reshape(-1)[: math.prod(shape)]
    else:
        values = _view(payload, codec).to(torch.float32, copy=True)
    return values.reshape(tuple(shape))


def _scales_and_codes(payload: np.ndarray) -> tuple[Tensor, Tensor]:
    """The two parts of an `int8` payload, as views: fp32 scales (blocks, 1) and int8 codes (blocks, 128)."""
    split = payload.size // (BLOCK_VALUES + _SCALE_BYTES) * _SCALE_BYTES
    scales = _from_numpy(payload[:split].view(np.float32)).unsqueeze(1)
    return scales, _from_numpy(payload[split:].view(np.int8)).reshape(-1, BLOCK_VALUES)


def _view(payload: np.ndarray, codec: str) -> Tensor:
    """An `fp32` or `bf16` payload as a 1-dim tensor, without a copy."""
    integers = payload.view(np.int32 if codec == "fp32" else np.int16)
    return _from_numpy(integers).view(torch.float32 if codec == "fp32" else torch.bfloat16)


def _from_numpy(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # a received payload is read-only, and only read
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _is_finite(flat: Tensor) -> bool:
    """One pass without a temporary: minimum and maximum carry NaN and infinity through."""
    return flat.numel() == 0 or all(map(math.isfinite, map(float, flat.aminmax())))


def _in_blocks(flat: Tensor) -> Tensor:
    """A 1-dim tensor as (blocks, BLOCK_VALUES), the last block filled up with zeros."""
    missing = -flat.numel() % BLOCK_VALUES
    if missing:
        flat = torch.nn.functional.pad(flat, (0, missing))
    return flat.reshape(-1, BLOCK_VALUES)
