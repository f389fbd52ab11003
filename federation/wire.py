"""How weights, updates and statistics travel in Flower records.

Only trainable parameters travel. Down: the global weights. Up: the update, i.e. the difference from what
was received. Both as fp32 arrays, one for each parameter, in a Flower `ArrayRecord` (NumPy's own format,
nothing pickled). Whatever arrives is checked against what is expected before it is used.
torch is imported where tensors are made: the answer to a join needs none and stays quick.
"""

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord

from federation.errors import WireError
from federation.statistics import Statistics

if TYPE_CHECKING:
    from torch import Size, Tensor

__all__ = [
    "record_to_statistics",
    "record_to_tensors",
    "statistics_to_record",
    "tensors_to_record",
]


def tensors_to_record(tensors: "Mapping[str, Tensor]") -> ArrayRecord:
    """Encode fp32 tensors of any shape, by parameter name."""
    return ArrayRecord({name: Array(t.detach().cpu().float().numpy()) for name, t in tensors.items()})


def record_to_tensors(record: ArrayRecord, expected: "Mapping[str, Size]") -> "dict[str, Tensor]":
    """Decode fp32 tensors on the CPU, in the order of `expected`.

    Args:
        expected: shape of each parameter that must be there; no other may be.

    Raises:
        WireError: a name is missing or unknown, a shape or dtype differs, or a value is NaN or infinite.
    """
    if record.keys() != expected.keys():
        odd = sorted(record.keys() ^ expected.keys())
        raise WireError(f"{len(odd)} array names do not fit the policy, the first is {odd[0]!r}")
    import torch

    tensors: dict[str, Tensor] = {}
    for name, shape in expected.items():
        array = record[name]
        if tuple(array.shape) != tuple(shape) or array.dtype != "float32":
            raise WireError(
                f"array {name!r} is {array.dtype} {tuple(array.shape)}, expected float32 {tuple(shape)}"
            )
        tensor = torch.from_numpy(_decode(name, array))
        if not torch.isfinite(tensor).all():
            raise WireError(f"array {name!r} holds NaN or infinity")
        tensors[name] = tensor
    return tensors


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
        WireError: a name has no feature, or an array is not finite float64.
    """
    statistics: Statistics = {}
    for key, array in record.items():
        feature, slash, name = key.rpartition("/")
        if not slash or not feature:
            raise WireError(f"statistics name {key!r} must be feature/name")
        values = _decode(key, array)
        if values.dtype != np.float64 or not np.isfinite(values).all():
            raise WireError(f"statistics {key!r} must be finite float64")
        statistics.setdefault(feature, {})[name] = values
    return statistics


def _decode(name: str, array: Array) -> np.ndarray:
    """The values of `array`, once its bytes are known to hold just what its own fields say."""
    if array.stype != "numpy.ndarray":
        raise WireError(f"array {name!r} is serialised as {array.stype!r}, expected 'numpy.ndarray'")
    try:
        file = io.BytesIO(array.data)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another NumPy format version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = math.prod(shape) * dtype.itemsize
    except Exception as error:  # NumPy's header parser lets the errors of Python's tokenizer through
        raise WireError(f"array {name!r} cannot be decoded ({type(error).__name__})") from None
    if shape != tuple(array.shape) or str(dtype) != array.dtype or size != len(array.data) - file.tell():
        raise WireError(f"array {name!r} does not hold the {array.dtype} {tuple(array.shape)} it claims to")
    return array.numpy()
