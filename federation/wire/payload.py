"""How weights, updates and statistics travel in Flower records.

Only trainable parameters travel, encoded (see `wire/codec.py`) and one after the other in the arrays of a
Flower `ArrayRecord`; nothing is pickled. Down: the global weights. Up: the update, the difference to the
weights received. Beside the arrays stands a header: codec, run, round, SHA-256 of all payloads, and, for an
update, the SHA-256 of the weights it is based on. What does not fit is refused before anything is decoded,
and decoding goes one parameter at a time. torch is imported where tensors are made: the answer to a join
needs none and stays quick.
"""

import dataclasses
import hashlib
import io
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from numpy.typing import NDArray

from federation.data.statistics import Statistics
from federation.errors import RejectionCode, WireError, one_line

if TYPE_CHECKING:
    from torch import Size, Tensor

__all__ = [
    "Header",
    "Payload",
    "open_payload",
    "pack_tensors",
    "record_to_statistics",
    "statistics_to_record",
]


# Flower sends an array as chunks of 5 MiB, each a request of its own, and spends as long on a small one as on
# a whole one: the 155 tensors of the full-size policy in an array each took a third longer and more.
_ARRAY_BYTES = 20 * 2**20
_MAX_STATISTICS = 64  # a site sends 12, the server 20
_MAX_STATISTIC_BYTES = 64 * 2**10  # a sketch has 13 kB


@dataclass(frozen=True)
class Header:
    """What a payload says of itself."""

    codec: str
    run: str
    round: int
    base: str  # SHA-256 of the weights an update is based on; empty for weights
    sha256: str = ""  # of all payloads, filled in by `pack_tensors`


@dataclass(frozen=True)
class Payload:
    """Verified, still encoded tensors: decoding them cannot fail."""

    header: Header
    size_bytes: int
    _arrays: Mapping[str, NDArray[Any]]
    _shapes: "Mapping[str, Size]"

    def tensors(self) -> "Iterator[tuple[str, Tensor]]":
        """Yield name and fp32 tensor, decoding one at a time, in the order of the expected shapes."""
        from federation.wire.codec import decode

        for name, shape in self._shapes.items():
            yield name, decode(self._arrays[name], shape, self.header.codec)

    def parts(self) -> "Iterator[tuple[str, int, Tensor]]":
        """Yield name, offset and a part of the flattened tensor, so that no tensor is ever held whole.

        A part is fp32 and may be changed; the next one overwrites it.
        """
        from federation.wire.codec import decode_parts

        for name, shape in self._shapes.items():
            for start, values in decode_parts(self._arrays[name], shape, self.header.codec):
                yield name, start, values

    def norm(self) -> float:
        """L2 norm over all tensors; infinite where a square leaves fp32."""
        from torch.linalg import vector_norm

        return math.hypot(*(vector_norm(values).item() for _, _, values in self.parts()))

    def on_disk(self, folder: Path) -> "Payload":
        """Return this payload with its bytes in a nameless file of `folder`, to be read as they are needed.

        Raises:
            OSError: they cannot be written.
        """
        with tempfile.TemporaryFile(dir=folder) as file:
            for array in self._arrays.values():
                file.write(array.data)
            file.flush()
            mapped = np.asarray(np.memmap(file, np.uint8, "r"))
        ends = accumulate(array.size for array in self._arrays.values())
        arrays = {
            name: mapped[end - array.size : end]
            for (name, array), end in zip(self._arrays.items(), ends, strict=True)
        }
        return dataclasses.replace(self, _arrays=arrays)


def pack_tensors(
    tensors: "Iterable[tuple[str, Tensor]]", header: Header
) -> tuple[ArrayRecord, ConfigRecord, Header]:
    """Encode fp32 tensors of any shape, by parameter name, one at a time.

    Returns:
        The arrays, the header as a record, and the header with its `sha256` filled in.

    Raises:
        WireError: a tensor holds a value its codec cannot carry.
    """
    from federation.wire.codec import encode

    record, waiting = ArrayRecord(), []
    digest = hashlib.sha256()
    for name, tensor in tensors:
        try:
            encoded = encode(tensor, header.codec)
        except WireError as error:
            raise WireError(f"parameter {name!r}: {error}", error.code) from None
        _add_to_digest(digest, name, encoded)
        waiting.append(encoded)
        if sum(part.size for part in waiting) >= _ARRAY_BYTES:
            record[_array_name(len(record))] = Array(np.concatenate(waiting))
            waiting.clear()
    if waiting:
        record[_array_name(len(record))] = Array(np.concatenate(waiting))
    sealed = Header(header.codec, header.run, header.round, header.base, digest.hexdigest())
    return record, ConfigRecord(vars(sealed)), sealed


def open_payload(
    record: ArrayRecord, header: ConfigRecord, shapes: "Mapping[str, Size]", expected: Header
) -> Payload:
    """Verify what `pack_tensors` made, without decoding it.

    Args:
        shapes: of each parameter that must be there, in the order they were packed in.
        expected: codec, run, round and base that the payload must have; its `sha256` is ignored.

    Raises:
        WireError: the header, a size or the hash does not fit, or a value is NaN or infinite.
    """
    from federation.wire.codec import check

    for key in ("codec", "run", "round", "base"):
        if header.get(key) != getattr(expected, key):
            code = RejectionCode.MALFORMED if key == "codec" else RejectionCode.NOT_CURRENT
            raise WireError(f"{key} is {header.get(key)!r}, expected {getattr(expected, key)!r}", code)
    arrays = dict(zip(shapes, _split(record, shapes, expected.codec), strict=True))
    digest = hashlib.sha256()
    for name, shape in shapes.items():
        try:
            check(arrays[name], shape, expected.codec)
        except WireError as error:
            raise WireError(f"parameter {name!r}: {error}", error.code) from None
        _add_to_digest(digest, name, arrays[name])
    if header.get("sha256") != digest.hexdigest():
        raise WireError("the SHA-256 of the arrays is not the one in the header")
    sealed = Header(expected.codec, expected.run, expected.round, expected.base, digest.hexdigest())
    return Payload(sealed, sum(array.size for array in arrays.values()), arrays, shapes)


def statistics_to_record(statistics: Statistics) -> ArrayRecord:
    """Encode statistics in float64."""
    return ArrayRecord(
        {
            f"{feature}/{name}": Array(np.asarray(values, dtype=np.float64))
            for feature, named in statistics.items()
            for name, values in named.items()
        }
    )


def record_to_statistics(record: ArrayRecord) -> Statistics:
    """Decode what `statistics_to_record` encoded.

    Raises:
        WireError: there are too many, a name has no feature, or an array is not finite float64.
    """
    if len(record) > _MAX_STATISTICS:
        raise WireError(f"{len(record)} arrays of statistics: there are {_MAX_STATISTICS} at most")
    statistics: Statistics = {}
    for key, array in record.items():
        feature, slash, name = key.rpartition("/")
        if not slash or not feature:
            raise WireError(f"statistics name {key!r} must be feature/name")
        if len(array.data) > _MAX_STATISTIC_BYTES:
            raise WireError(f"statistics {one_line(key)!r} are of more than {_MAX_STATISTIC_BYTES} bytes")
        values = _unwrap(key, array, np.dtype(np.float64), most_dimensions=2)  # a sketch has two
        if not np.isfinite(values).all():
            raise WireError(f"statistics {key!r} hold NaN or infinity")
        statistics.setdefault(feature, {})[name] = values
    return statistics


def _split(record: ArrayRecord, shapes: "Mapping[str, Size]", codec: str) -> "Iterator[NDArray[Any]]":
    """Yield the payload of each parameter, a view into the array it lies in."""
    from federation.wire.codec import encoded_bytes

    sizes = [encoded_bytes(shape, codec) for shape in shapes.values()]
    arrays = [_unwrap(name, record[name], np.dtype(np.uint8)) for name in sorted(record)]
    if (received := sum(array.size for array in arrays)) != sum(sizes):
        raise WireError(
            f"it holds {received} bytes where the policy's {len(sizes)} parameters make {sum(sizes)}: "
            "install the same version, with the same policy"
        )
    rest = iter(arrays)
    array: NDArray[Any] = np.empty(0, np.uint8)
    start = 0
    for name, size in zip(shapes, sizes, strict=True):
        while start == array.size and size:
            array, start = next(rest), 0
        if start + size > array.size:
            raise WireError(f"parameter {name!r} is cut in two")
        yield array[start : start + size]
        start += size


def _array_name(index: int) -> str:
    return f"{index:06d}"


def _unwrap(name: str, array: Array, dtype: np.dtype[Any], most_dimensions: int = 1) -> NDArray[Any]:
    """Return the values of `array` without a copy, once its bytes are known to hold just what they claim.

    Its sides are the sender's: one that is negative, a bool or beyond all bytes there are is rejected before
    anything takes that shape.
    """
    if array.stype != "numpy.ndarray":
        raise WireError(f"array {name!r} is serialised as {array.stype!r}, expected 'numpy.ndarray'")
    try:
        file = io.BytesIO(array.data)
        if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
            raise ValueError("another NumPy format version")
        shape, fortran_order, claimed = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    except Exception as error:  # NumPy's header parser lets the errors of Python's tokenizer through
        raise WireError(f"array {name!r} cannot be decoded ({type(error).__name__})") from None
    offset = file.tell()
    if (
        claimed != dtype
        or fortran_order
        or not 1 <= len(shape) <= most_dimensions
        or not all(type(side) is int and 0 <= side <= len(array.data) for side in shape)
        or math.prod(shape) * dtype.itemsize != len(array.data) - offset
    ):
        raise WireError(f"array {name!r} does not hold the {dtype} values expected")
    return np.frombuffer(array.data, dtype, offset=offset).reshape(shape)


def _add_to_digest(digest: "hashlib._Hash", name: str, payload: NDArray[Any]) -> None:
    digest.update(f"{name}:{payload.size}:".encode())
    digest.update(payload.data)
