import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.errors import WireError
from federation.wire import record_to_statistics, record_to_tensors, statistics_to_record, tensors_to_record

SHAPES = {"a": torch.Size([2, 3]), "b": torch.Size([])}


def _record(**changes: Array) -> ArrayRecord:
    record = tensors_to_record({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0)})
    for name, array in changes.items():
        record[name] = array
    return record


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_side=5),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_tensors_survive_the_wire_bit_for_bit(values: np.ndarray) -> None:
    sent = {"x": torch.from_numpy(values)}
    received = record_to_tensors(tensors_to_record(sent), {"x": sent["x"].shape})
    assert torch.equal(received["x"], sent["x"])


def test_tensors_come_in_the_expected_order() -> None:
    assert list(record_to_tensors(_record(), {"b": SHAPES["b"], "a": SHAPES["a"]})) == ["b", "a"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (_record(c=Array(np.zeros(1, np.float32))), "1 array names do not fit the policy, the first is 'c'"),
        (ArrayRecord({}), "2 array names do not fit"),
        (
            _record(a=Array(np.zeros((3, 2), np.float32))),
            r"array 'a' is float32 \(3, 2\), expected float32 \(2, 3\)",
        ),
        (_record(a=Array(np.zeros((2, 3), np.float64))), "array 'a' is float64"),
        (_record(b=Array(np.array(np.nan, np.float32))), "array 'b' holds NaN or infinity"),
        (_record(b=Array(np.array(np.inf, np.float32))), "array 'b' holds NaN or infinity"),
        (_record(b=Array("float32", (), "pickle", b"cos\nsystem\n")), "serialised as 'pickle'"),
        (_record(b=Array("float32", (), "numpy.ndarray", b"nothing")), "array 'b' cannot be decoded"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(record: ArrayRecord, message: str) -> None:
    with pytest.raises(WireError, match=message):
        record_to_tensors(record, SHAPES)


def test_a_header_that_lies_about_its_array_is_refused() -> None:
    inner = Array(np.zeros(5, np.float32))
    with pytest.raises(WireError, match="does not hold"):
        record_to_tensors(_record(a=Array("float32", (2, 3), inner.stype, inner.data)), SHAPES)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_raise_nothing_but_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        record_to_tensors(_record(a=Array("float32", (2, 3), "numpy.ndarray", data)), SHAPES)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_flipped_byte_never_raises_anything_but_a_wire_error(position: int, value: int) -> None:
    array = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    data = bytearray(array.data)
    data[position % len(data)] = value
    try:
        tensors = record_to_tensors(_record(a=Array("float32", (2, 3), array.stype, bytes(data))), SHAPES)
    except WireError:
        return
    assert tensors["a"].shape == (2, 3)


def test_statistics_survive_the_wire(statistics: dict) -> None:
    received = record_to_statistics(statistics_to_record(statistics))
    assert received.keys() == statistics.keys()
    for feature, named in statistics.items():
        for name, values in named.items():
            np.testing.assert_array_equal(received[feature][name], values)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("mean", np.zeros(6), "must be feature/name"),
        ("action/mean", np.zeros(6, np.float32), "must be finite float64"),
        ("action/mean", np.full(6, np.nan), "must be finite float64"),
    ],
)
def test_bad_statistics_are_refused(key: str, values: np.ndarray, message: str) -> None:
    with pytest.raises(WireError, match=message):
        record_to_statistics(ArrayRecord({key: Array(values)}))
