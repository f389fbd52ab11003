import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.errors import WireError
from federation.wire import (
    Header,
    open_payload,
    pack_tensors,
    record_to_statistics,
    statistics_to_record,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0)}
SHAPES = {name: tensor.shape for name, tensor in TENSORS.items()}
HEADER = Header("fp32", "run-1", 3, base="abc")


def _pack(codec: str = "fp32", **changes: Array) -> tuple[ArrayRecord, ConfigRecord]:
    record, header, _ = pack_tensors(TENSORS.items(), Header(codec, "run-1", 3, "abc"))
    for name, array in changes.items():
        record[name] = array
    return record, header


def _bytes(array: np.ndarray) -> Array:
    return Array(np.ascontiguousarray(array).view(np.uint8).reshape(-1))


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_tensors_survive_the_wire(codec: str) -> None:
    record, header = _pack(codec)
    payload = open_payload(record, header, SHAPES, Header(codec, "run-1", 3, "abc"))
    received = dict(payload.tensors())
    assert all(torch.equal(received[name], tensor) for name, tensor in TENSORS.items())
    assert payload.size_bytes == 7 * (4 if codec == "fp32" else 2)


def test_tensors_come_in_the_expected_order() -> None:
    record, header, _ = pack_tensors(TENSORS.items(), HEADER)
    assert [name for name, _ in open_payload(record, header, SHAPES, HEADER).tensors()] == ["a", "b"]


def test_the_header_names_the_hash_of_what_was_sent() -> None:
    _, header, sealed = pack_tensors(TENSORS.items(), HEADER)
    other = pack_tensors({**TENSORS, "b": torch.tensor(2.0)}.items(), HEADER)[2]
    assert header["sha256"] == sealed.sha256 != other.sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": _bytes(np.zeros(1))}, "1 array names do not fit the policy, the first is 'c'"),
        ({"a": _bytes(np.zeros(5, np.float32))}, r"array 'a': 20 bytes cannot hold fp32 .* \(2, 3\)"),
        ({"a": Array(np.zeros((2, 3), np.float32))}, "array 'a' does not hold the uint8 values expected"),
        ({"b": _bytes(np.array([np.nan], np.float32))}, "array 'b': it holds NaN or infinity"),
        ({"b": _bytes(np.array([np.inf], np.float32))}, "array 'b': it holds NaN or infinity"),
        (
            {"b": _bytes(np.array([7.0], np.float32))},
            "the SHA-256 of the arrays is not the one in the header",
        ),
        ({"b": Array("uint8", (4,), "pickle", b"cos\nsystem\n")}, "serialised as 'pickle'"),
        ({"b": Array("uint8", (4,), "numpy.ndarray", b"nothing")}, "array 'b' cannot be decoded"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(WireError, match=message):
        open_payload(*_pack(**changes), SHAPES, HEADER)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (Header("int8", "run-1", 3, "abc"), "codec is 'fp32', expected 'int8'"),
        (Header("fp32", "run-2", 3, "abc"), "run is 'run-1', expected 'run-2'"),
        (Header("fp32", "run-1", 4, "abc"), "round is 3, expected 4"),
        (Header("fp32", "run-1", 3, "xyz"), "base is 'abc', expected 'xyz'"),
    ],
)
def test_an_update_of_another_run_round_or_base_is_refused(expected: Header, message: str) -> None:
    with pytest.raises(WireError, match=message):
        open_payload(*_pack(), SHAPES, expected)


def test_a_missing_header_is_refused() -> None:
    with pytest.raises(WireError, match="codec is None"):
        open_payload(_pack()[0], ConfigRecord({}), SHAPES, HEADER)


def test_a_tensor_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(WireError, match="array 'x': NaN or infinity cannot be sent"):
        pack_tensors([("x", torch.tensor(float("nan")))], HEADER)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_raise_nothing_but_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        open_payload(*_pack(a=Array("uint8", (24,), "numpy.ndarray", data)), SHAPES, HEADER)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
@settings(max_examples=200)
def test_no_flipped_byte_passes(position: int, value: int) -> None:
    record, header = _pack()
    data = bytearray(record["a"].data)
    position %= len(data)
    changed = data[position] != value
    data[position] = value
    record["a"] = Array("uint8", (24,), "numpy.ndarray", bytes(data))
    try:
        payload = open_payload(record, header, SHAPES, HEADER)
    except WireError:
        assert changed
        return
    # What is left is NumPy's padding of its own header: the values are those that were sent.
    assert torch.equal(dict(payload.tensors())["a"], TENSORS["a"])


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
        ("action/mean", np.zeros(6, np.float32), "does not hold the float64 values"),
        ("action/mean", np.full(6, np.nan), "hold NaN or infinity"),
    ],
)
def test_bad_statistics_are_refused(key: str, values: np.ndarray, message: str) -> None:
    with pytest.raises(WireError, match=message):
        record_to_statistics(ArrayRecord({key: Array(values)}))
