"""Reads a Parquet file that was never finished: a recording that a crash or a power cut ended.

Such a file has all rows that were written, but no footer, which says where they are and of what columns.
LeRobot writes a row group for each episode, and its columns are known; so the footer is made anew from the
headers of the pages (Thrift's compact protocol, as in parquet.thrift), up to the last whole row group.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["rescue_file"]

_MAGIC = b"PAR1"
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
_DICTIONARY_PAGE = 2
_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_SNAPPY = 1
_ENCODINGS = (0, 2, 3, 8)  # plain, both of dictionaries, levels
_MAX_HEADER = 1 << 16


@dataclass
class _Chunk:
    """The pages of one column in one row group."""

    start: int
    data_start: int = 0
    end: int = 0
    size: int = 0  # uncompressed
    values: int = 0


def rescue_file(file: Path, schema: pa.Schema, out: Path) -> bool:
    """Write a copy of `file` with a footer to `out`; False if it has no whole row group of these columns.

    Args:
        schema: of what was written to it.
    """
    content = file.read_bytes()
    template = io.BytesIO()
    pq.write_table(schema.empty_table(), template)
    columns = pq.ParquetFile(template).schema
    if not content.startswith(_MAGIC) or any(
        columns.column(i).physical_type == "BOOLEAN" for i in range(len(columns))
    ):
        return False  # every other column begins with a dictionary, by which its beginning is known
    chunks = _find_chunks(content)
    groups = [chunks[i : i + len(columns)] for i in range(0, len(chunks), len(columns))]
    while groups:
        if len(groups[-1]) == len(columns):
            end = groups[-1][-1].end
            footer = _footer(groups, columns, _schema_bytes(template.getvalue()))
            out.write_bytes(content[:end] + footer + struct.pack("<I", len(footer)) + _MAGIC)
            if _is_readable(out, schema):
                return True
        groups.pop()
    return False


def _is_readable(file: Path, schema: pa.Schema) -> bool:
    try:
        return bool(pq.read_table(file, partitioning=None).schema.names == schema.names)
    except (pa.ArrowException, OSError):
        return False


def _find_chunks(content: bytes) -> list[_Chunk]:
    chunks: list[_Chunk] = []
    at = len(_MAGIC)
    while at < len(content):
        try:
            header, data = _Reader(content, at).read_struct()
            kind, size, compressed = header[1], header[2], header[3]
            values = (header.get(5) or header.get(8) or {1: 0})[1]
            is_page = min(size, compressed) >= 0 and data + compressed <= len(content)
        except (IndexError, KeyError, ValueError, TypeError, RecursionError):
            break
        if not is_page or data - at > _MAX_HEADER:
            break
        if kind == _DICTIONARY_PAGE:
            chunks.append(_Chunk(start=at))
        elif not chunks:
            break
        chunk = chunks[-1]
        if kind != _DICTIONARY_PAGE:
            chunk.data_start = chunk.data_start or at
            chunk.values += values
        chunk.size += size + data - at
        at = chunk.end = data + compressed
    return chunks


class _Reader:
    """As much of Thrift's compact protocol as headers and footers use: a struct as {field: value}."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        self.spans: dict[int, tuple[int, int]] = {}  # of the fields of the outermost struct

    def read_struct(self, outermost: bool = True) -> tuple[dict[int, Any], int]:
        """Return the struct, by the numbers of its fields, and where it ends."""
        fields: dict[int, Any] = {}
        number = 0
        while byte := self._byte():
            number = number + (byte >> 4) if byte >> 4 else self._integer()
            start = self._at
            fields[number] = self._value(byte & 15)
            if outermost:
                self.spans[number] = start, self._at
        return fields, self._at

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (3, 4, _I32, _I64):
            return self._byte() if kind == 3 else self._integer()
        if kind == 7:
            self._at += 8
            return None
        if kind == _BINARY:
            length = self._varint()
            self._at += length
            return None
        if kind == _LIST:
            byte = self._byte()
            length = byte >> 4 if byte >> 4 < 15 else self._varint()
            if length > len(self._content):
                raise ValueError("a list that is too long")
            return [self._byte() if byte & 15 in (1, 2) else self._value(byte & 15) for _ in range(length)]
        if kind == _STRUCT:
            return self.read_struct(outermost=False)[0]
        raise ValueError(f"type {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number that is too long")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _schema_bytes(template: bytes) -> bytes:
    """Return the list of columns in the footer of a file, as it is written there."""
    length = struct.unpack("<I", template[-8:-4])[0]
    reader = _Reader(template, len(template) - 8 - length)
    reader.read_struct()
    start, end = reader.spans[2]
    return template[start:end]


def _footer(groups: list[list[_Chunk]], columns: Any, schema: bytes) -> bytes:
    """FileMetaData: version, schema, rows, row groups."""
    flat = next(i for i in range(len(columns)) if columns.column(i).max_repetition_level == 0)
    rows = [group[flat].values for group in groups]
    return _struct(
        (1, _I32, _number(2)),
        (2, _LIST, schema),
        (3, _I64, _number(sum(rows))),
        (
            4,
            _LIST,
            _list(_STRUCT, [_group(group, columns, n) for group, n in zip(groups, rows, strict=True)]),
        ),
    )


def _group(group: list[_Chunk], columns: Any, rows: int) -> bytes:
    chunks = []
    for i, chunk in enumerate(group):
        column = columns.column(i)
        path = [_binary(part) for part in column.path.split(".")]
        meta = _struct(
            (1, _I32, _number(_TYPES.index(column.physical_type))),
            (2, _LIST, _list(_I32, [_number(encoding) for encoding in _ENCODINGS])),
            (3, _LIST, _list(_BINARY, path)),
            (4, _I32, _number(_SNAPPY)),
            (5, _I64, _number(chunk.values)),
            (6, _I64, _number(chunk.size)),
            (7, _I64, _number(chunk.end - chunk.start)),
            (9, _I64, _number(chunk.data_start)),
            (11, _I64, _number(chunk.start)),
        )
        chunks.append(_struct((2, _I64, _number(0)), (3, _STRUCT, meta)))
    size = sum(chunk.size for chunk in group)
    return _struct((1, _LIST, _list(_STRUCT, chunks)), (2, _I64, _number(size)), (3, _I64, _number(rows)))


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    parts, before = [], 0
    for number, kind, value in fields:
        parts.append(bytes([(number - before) << 4 | kind]) + value)
        before = number
    return b"".join(parts) + b"\0"


def _list(kind: int, items: list[bytes]) -> bytes:
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + _varint(len(items))
    return head + b"".join(items)


def _number(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _binary(text: str) -> bytes:
    return _varint(len(text.encode())) + text.encode()


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
