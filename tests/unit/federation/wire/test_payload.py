import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import example, given, settings, strategies

from federation.errors import RejectionCode, WireError
from federation.wire import payload as wire
from federation.wire.payload import (
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


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_a_payload_on_disk_is_the_same_and_leaves_no_file(codec: str, tmp_path: Path) -> None:
    tensors = TENSORS | {"empty": torch.zeros(0), "large": torch.arange(5000.0)}
    header = Header(codec, "run-1", 3, "abc")
    record, packed, _ = pack_tensors(tensors.items(), header)
    payload = open_payload(record, packed, {name: tensor.shape for name, tensor in tensors.items()}, header)
    moved = payload.on_disk(tmp_path)
    assert not list(tmp_path.iterdir())
    assert (moved.header, moved.size_bytes) == (payload.header, payload.size_bytes)
    received = dict(moved.tensors())
    assert all(torch.equal(received[name], tensor) for name, tensor in payload.tensors())
    assert moved.norm() == payload.norm()


def test_tensors_come_in_the_expected_order() -> None:
    record, header, _ = pack_tensors(TENSORS.items(), HEADER)
    assert [name for name, _ in open_payload(record, header, SHAPES, HEADER).tensors()] == ["a", "b"]


def test_the_header_names_the_hash_of_what_was_sent() -> None:
    _, header, sealed = pack_tensors(TENSORS.items(), HEADER)
    other = pack_tensors({**TENSORS, "b": torch.tensor(2.0)}.items(), HEADER)[2]
    assert header["sha256"] == sealed.sha256 != other.sha256


def test_many_tensors_travel_in_few_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_ARRAY_BYTES", 100)
    tensors = {f"layer.{i}": torch.full((i % 7, 3), float(i)) for i in range(40)}
    tensors |= {"empty": torch.zeros(0), "large": torch.arange(500.0), "last": torch.zeros(2, 0)}
    record, header, sealed = pack_tensors(tensors.items(), HEADER)
    assert 10 < len(record) < 25
    received = open_payload(record, header, {name: t.shape for name, t in tensors.items()}, sealed)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in received.tensors())


def test_another_order_of_the_same_parameters_is_refused() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(3)}
    record, header, _ = pack_tensors(tensors.items(), HEADER)
    with pytest.raises(WireError, match="SHA-256"):
        open_payload(record, header, {"b": torch.Size([3]), "a": torch.Size([3])}, HEADER)


VALUES = np.arange(7, dtype=np.float32)  # as `TENSORS`, but for the last


def _changed(position: int, value: float) -> Array:
    values = VALUES.copy()
    values[6] = 1.0
    values[position] = value
    return _bytes(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"000001": _bytes(np.zeros(1))}, "it holds 36 bytes where the policy's 2 parameters make 28"),
        ({"000000": _bytes(np.zeros(5, np.float32))}, "it holds 20 bytes"),
        (
            {"000000": _bytes(VALUES[:2]), "000001": _bytes(VALUES[2:])},
            "parameter 'a' is cut in two",
        ),
        ({"000000": Array(np.zeros(7, np.float32))}, "'000000' does not hold the uint8 values expected"),
        ({"000000": _changed(6, np.nan)}, "parameter 'b': it holds NaN or infinity"),
        ({"000000": _changed(2, np.inf)}, "parameter 'a': it holds NaN or infinity"),
        ({"000000": _changed(6, 7.0)}, "the SHA-256 of the arrays is not the one in the header"),
        ({"000000": Array("uint8", (4,), "pickle", b"cos\nsystem\n")}, "serialised as 'pickle'"),
        ({"000000": Array("uint8", (4,), "numpy.ndarray", b"nothing")}, "array '000000' cannot be decoded"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(changes: dict, message: str) -> None:
    with pytest.raises(WireError, match=message) as error:
        open_payload(*_pack(**changes), SHAPES, HEADER)
    finite = "NaN" not in message
    assert error.value.code == (RejectionCode.MALFORMED if finite else RejectionCode.NON_FINITE)


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
    with pytest.raises(WireError, match=message) as error:
        open_payload(*_pack(), SHAPES, expected)
    same_codec = expected.codec == HEADER.codec
    assert error.value.code == (RejectionCode.NOT_CURRENT if same_codec else RejectionCode.MALFORMED)


def test_a_missing_header_is_refused() -> None:
    with pytest.raises(WireError, match="codec is None"):
        open_payload(_pack()[0], ConfigRecord({}), SHAPES, HEADER)


def test_a_tensor_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(WireError, match="parameter 'x': NaN or infinity cannot be sent"):
        pack_tensors([("x", torch.tensor(float("nan")))], HEADER)


@given(strategies.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_raise_nothing_but_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        open_payload(*_pack(**{"000000": Array("uint8", (28,), "numpy.ndarray", data)}), SHAPES, HEADER)


def _with_header(descr: object, fortran_order: object, shape: tuple) -> Array:
    """As many zero bytes as the header asks for, where that is a number of bytes to be had."""
    header = repr({"descr": descr, "fortran_order": fortran_order, "shape": shape}).encode("latin1")
    try:
        size = math.prod(shape) * np.dtype(descr).itemsize  # type: ignore[call-overload]
    except TypeError:
        size = 0
    values = bytes(int(size) if 0 <= size < 10_000 else 0)
    data = np.lib.format.magic(1, 0) + struct.pack("<H", len(header)) + header + values
    return Array("uint8", (), "numpy.ndarray", data)


SIDES = (
    strategies.integers(-6, 6)
    | strategies.integers()
    | strategies.booleans()
    | strategies.floats()
    | strategies.none()
)


@given(
    strategies.sampled_from(["|u1", "<f8", "<f4", "|O", "nothing", None]),
    strategies.sampled_from([False, False, True, 0, None]),
    strategies.lists(SIDES, max_size=3).map(tuple)
    | strategies.integers(0, 70).map(lambda count: (1,) * count),
)
@example("|u1", False, (-2, -16))
@example("<f8", False, (-2, -2))
@example("<f8", False, (0, 10**30))
@example("<f8", False, (True, 6))
@example("|u1", False, ())
@settings(max_examples=500)
def test_an_arbitrary_numpy_header_raises_nothing_but_a_wire_error(
    descr: object, fortran_order: object, shape: tuple
) -> None:
    array = _with_header(descr, fortran_order, shape)
    with pytest.raises(WireError):
        open_payload(*_pack(**{"000000": array}), SHAPES, HEADER)
    try:
        values = record_to_statistics(ArrayRecord({"action/mean": array}))["action"]["mean"]
    except WireError:
        return
    assert (values.shape, values.dtype) == (shape, np.float64)


@given(strategies.integers(min_value=0), strategies.integers(min_value=0, max_value=255))
@settings(max_examples=200)
def test_no_flipped_byte_passes(position: int, value: int) -> None:
    record, header = _pack()
    data = bytearray(record["000000"].data)
    position %= len(data)
    changed = data[position] != value
    data[position] = value
    record["000000"] = Array("uint8", (28,), "numpy.ndarray", bytes(data))
    try:
        payload = open_payload(record, header, SHAPES, HEADER)
    except WireError:
        assert changed
        return
    # What is left is NumPy's padding of its own header: the values are those that were sent.
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in payload.tensors())


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
