"""TensorBoard event files, written without TensorBoard: scalars need 60 lines, not its ten dependencies.

A file is a row of TFRecords (length, masked CRC-32C, data, masked CRC-32C), each holding one `Event` message
in protobuf's wire format (tensorflow/core/util/event.proto, framework/summary.proto).
"""

import struct
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ScalarWriter"]

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


class ScalarWriter:
    """Appends to a new event file in `folder`; TensorBoard reads all files of a folder as one run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{int(now)}.server").open("ab")
        self._write(_double(1, now) + _bytes(3, b"brain.Event:2"))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write `scalars` (tag -> value) of `step`; they are on disk when this returns."""
        values = b"".join(
            _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in scalars.items()
        )
        self._write(_double(1, time.time()) + b"\x10" + _varint(step) + _bytes(5, values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        self._file.flush()


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
