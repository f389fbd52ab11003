"""Codecs: fp32 tensors to bytes and back, a chunk at a time.

| codec | bytes a value | error of a value x |
|---|---|---|
| `fp32` | 4 | none |
| `bf16` | 2 | at most 2^-8 of |x|: for the global weights |
| `int8` | 1 + 4/128 | at most 1/254 of the largest magnitude in its block: for updates |
| `int4` | 1/2 + 4/64 | at most 1/14 of it: for updates over the slowest lines |

`int8` and `int4` are symmetric and block-scaled: each block has its own fp32 scale, its largest magnitude
divided by the largest code. The last block is filled up with zeros. Smaller blocks follow outliers better
and cost more bytes: `tests/benchmarks/block_size.py` measures both on real updates.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.errors import RejectionCode, WireError

__all__ = ["BLOCKED", "Blocked", "check", "decode", "decode_parts", "encode", "encoded_bytes"]

_SCALE_BYTES = 4
_SMALLEST_SCALE = 2.0**-126  # the smallest normal fp32
_MAX_MAGNITUDE = 1e37  # above it a scale times the largest code could leave fp32; no update comes near
_CHUNK_VALUES = 2**18  # 1 MiB of fp32, which stays in the processor's cache; the fastest of six measured


@dataclass(frozen=True)
class Blocked:
    """The shape of a block-scaled codec."""

    values: int  # in a block
    bits: int  # of a code

    @property
    def largest_code(self) -> int:
        """What the largest magnitude of a block becomes."""
        return (1 << (self.bits - 1)) - 1

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of a block."""
        return self.values * self.bits // 8


BLOCKED = {"int8": Blocked(values=128, bits=8), "int4": Blocked(values=64, bits=4)}


def encoded_bytes(shape: Sequence[int], codec: str) -> int:
    """Length of the payload of a tensor of `shape`."""
    values = math.prod(shape)
    if codec in BLOCKED:
        blocked = BLOCKED[codec]
        return math.ceil(values / blocked.values) * (blocked.code_bytes + _SCALE_BYTES)
    return values * (4 if codec == "fp32" else 2)


def encode(tensor: Tensor, codec: str) -> NDArray[Any]:
    """Encode an fp32 CPU tensor of any shape as a 1-dim uint8 array.

    Raises:
        WireError: a value is NaN, infinite or, for `int8` and `int4`, larger than 1e37 in magnitude.
    """
    flat = tensor.detach().reshape(-1)
    if codec in BLOCKED:
        return _encode_blocks(flat, codec)
    if not _is_finite(flat):
        raise WireError("NaN or infinity cannot be sent", RejectionCode.NON_FINITE)
    if codec == "fp32":
        return flat.contiguous().numpy().view(np.uint8)
    halved = flat.to(torch.bfloat16)
    if not _is_finite(halved):
        raise WireError("a value is too large for bf16")
    return halved.contiguous().view(torch.int16).numpy().view(np.uint8)


def check(payload: NDArray[Any], shape: Sequence[int], codec: str) -> None:
    """Raise a `WireError` unless `payload` decodes to finite values of `shape`. Decodes nothing."""
    if payload.dtype != np.uint8 or payload.shape != (encoded_bytes(shape, codec),):
        raise WireError(f"{payload.size} bytes cannot hold {codec} values of shape {tuple(shape)}")
    if codec in BLOCKED:
        scales, _ = _scales_and_codes(payload, BLOCKED[codec])
        # One more than `encode` ever writes: a received code can be the lowest that its bits hold.
        largest = BLOCKED[codec].largest_code + 1
        fine = len(scales) == 0 or (scales.min() >= 0 and _is_finite(scales * largest))
    else:
        fine = _is_finite(_view(payload, codec))
    if not fine:
        raise WireError("it holds NaN or infinity", RejectionCode.NON_FINITE)


def decode(payload: NDArray[Any], shape: Sequence[int], codec: str) -> Tensor:
    """Decode what `encode` made, as a new fp32 CPU tensor of `shape`.

    Args:
        payload: 1-dim uint8 that has passed `check`.
    """
    values = torch.empty(math.prod(shape))
    for _ in _decode_chunks(values, len(values), payload, codec):
        pass
    return values.reshape(tuple(shape))


def decode_parts(payload: NDArray[Any], shape: Sequence[int], codec: str) -> Iterator[tuple[int, Tensor]]:
    """Decode what `encode` made without ever holding it whole.

    Args:
        payload: 1-dim uint8 that has passed `check`.

    Yields:
        Where in the flattened tensor a part begins, and the part: fp32, 1-dim. The caller may change it; the
        next one overwrites it.
    """
    total = math.prod(shape)
    return _decode_chunks(torch.empty(min(total, _CHUNK_VALUES)), total, payload, codec)


def _encode_blocks(flat: Tensor, codec: str) -> NDArray[Any]:
    blocked = BLOCKED[codec]
    payload = np.empty(encoded_bytes(flat.shape, codec), np.uint8)
    scales, codes = _scales_and_codes(payload, blocked)
    # New pages are what costs time here, so all chunks share one temporary.
    temporary = torch.empty(min(len(scales), _CHUNK_VALUES // blocked.values), blocked.values)
    for start in range(0, len(flat), _CHUNK_VALUES):
        part = flat[start : start + _CHUNK_VALUES]
        blocks = _filled_up(part, blocked.values).view(-1, blocked.values)
        first = start // blocked.values
        chunk, scaled = slice(first, first + len(blocks)), temporary[: len(blocks)]
        largest = torch.abs(blocks, out=scaled).amax(dim=1, keepdim=True)
        peak = float(largest.max())  # of a NaN it is NaN
        if not math.isfinite(peak):
            raise WireError("NaN or infinity cannot be sent", RejectionCode.NON_FINITE)
        if peak > _MAX_MAGNITUDE:
            raise WireError(f"a value is larger than {_MAX_MAGNITUDE:g} in magnitude")
        scale = torch.div(largest, blocked.largest_code, out=scales[chunk])
        # A block of zeros, or of magnitudes too small for the inverse to be finite, is sent as zeros.
        inverse = scale.reciprocal().where(scale >= _SMALLEST_SCALE, 0.0)
        _pack(torch.mul(blocks, inverse, out=scaled).round_(), codes[chunk], blocked)
    return payload


def _decode_chunks(
    out: Tensor, total: int, payload: NDArray[Any], codec: str
) -> Iterator[tuple[int, Tensor]]:
    """Decode chunk by chunk into `out`, which has room for all values or for one chunk; yield each."""
    if codec in BLOCKED:
        scales, codes = _scales_and_codes(payload, BLOCKED[codec])
    else:
        view = _view(payload, codec)
    for start in range(0, total, _CHUNK_VALUES):
        size = min(_CHUNK_VALUES, total - start)
        chunk = out[start : start + size] if len(out) == total else out[:size]
        if codec in BLOCKED:
            first = start // BLOCKED[codec].values
            last = first + math.ceil(size / BLOCKED[codec].values)
            _decode_blocks(chunk, scales[first:last], codes[first:last], BLOCKED[codec])
        else:
            chunk.copy_(view[start : start + size])
        yield start, chunk


def _decode_blocks(out: Tensor, scales: Tensor, codes: Tensor, blocked: Blocked) -> None:
    """Fill `out`, 1-dim, from blocks of which the last may hold more than it needs."""
    is_whole = len(out) == len(codes) * blocked.values
    blocks = (out if is_whole else torch.empty(len(codes) * blocked.values)).view(-1, blocked.values)
    _unpack(codes, blocks, blocked)
    blocks.mul_(scales)
    if not is_whole:
        out.copy_(blocks.view(-1)[: len(out)])


def _pack(rounded: Tensor, codes: Tensor, blocked: Blocked) -> None:
    """Write whole numbers (blocks, values) in fp32 as codes; may change `rounded`."""
    if blocked.bits == 8:
        codes.copy_(rounded)
        return
    # The second half of a block lies in the upper four bits of the first.
    shifted, half = rounded.add_(8).to(torch.uint8), blocked.values // 2
    torch.bitwise_or(shifted[:, :half], shifted[:, half:] << 4, out=codes)


def _unpack(codes: Tensor, out: Tensor, blocked: Blocked) -> None:
    if blocked.bits == 8:
        out.copy_(codes)
        return
    half = blocked.values // 2
    out[:, :half].copy_(codes & 15)
    out[:, half:].copy_(codes >> 4)
    out.sub_(8)


def _scales_and_codes(payload: NDArray[Any], blocked: Blocked) -> tuple[Tensor, Tensor]:
    """Return a block-scaled payload's two parts as views: fp32 scales (blocks, 1), codes (blocks, bytes)."""
    split = payload.size // (blocked.code_bytes + _SCALE_BYTES) * _SCALE_BYTES
    scales = _from_numpy(payload[:split].view(np.float32)).unsqueeze(1)
    codes = payload[split:].view(np.int8 if blocked.bits == 8 else np.uint8)
    return scales, _from_numpy(codes).reshape(-1, blocked.code_bytes)


def _view(payload: NDArray[Any], codec: str) -> Tensor:
    """Return an `fp32` or `bf16` payload as a 1-dim tensor, without a copy."""
    integers = payload.view(np.int32 if codec == "fp32" else np.int16)
    return _from_numpy(integers).view(torch.float32 if codec == "fp32" else torch.bfloat16)


def _from_numpy(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():  # a received payload is read-only, and only read
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _filled_up(flat: Tensor, multiple: int) -> Tensor:
    """Return a 1-dim tensor with zeros up to a multiple of a length, itself if it is one."""
    missing = -len(flat) % multiple
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


def _is_finite(flat: Tensor) -> bool:
    """One pass without a temporary: minimum and maximum carry NaN and infinity through."""
    return flat.numel() == 0 or all(map(math.isfinite, map(float, flat.aminmax())))
