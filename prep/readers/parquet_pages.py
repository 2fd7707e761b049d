"""Sizes of a parquet file's pages, read from their headers before any page is unpacked.

A page is unpacked whole, so its size bounds the memory that reading takes. Headers are structs of
Thrift's compact protocol (Parquet format, PageHeader): field 2 is the unpacked size in bytes, 3 the
packed one, 5 and 8 hold the number of values of a data page.
"""

from collections.abc import Collection
from typing import Any, BinaryIO

import pyarrow.parquet as pq

HEADER_BYTES = 1 << 16
UNPACKED, PACKED, DATA, DATA_2 = 2, 3, 5, 8
STRUCT, LISTS, MAP, BINARY, DOUBLE, BYTE = 12, (9, 10), 11, 8, 7, 3
VALUE_BYTES = 8  # of a value in a list, at least


def largest_page(
    file: BinaryIO, metadata: pq.FileMetaData, columns: Collection[str], most: int
) -> int:
    """Return the bytes of the largest page of some columns, if any takes more than `most`, else 0.

    Headers are read only of chunks that could hold such a page. Raises ValueError for headers that
    can't be followed.
    """
    largest = 0
    for i in range(metadata.num_columns):
        column: Any = metadata.schema.column(i)
        if not any(column.path == name or column.path.startswith(f"{name}.") for name in columns):
            continue
        repeated = column.max_repetition_level > 0
        for group in range(metadata.num_row_groups):
            chunk: Any = metadata.row_group(group).column(i)
            values = chunk.num_values * VALUE_BYTES if repeated else 0
            if max(chunk.total_uncompressed_size, values) > most:
                largest = max(largest, _largest(file, chunk, repeated=repeated))
    return largest if largest > most else 0


def _largest(file: BinaryIO, chunk: Any, *, repeated: bool) -> int:  # noqa: ANN401  no types
    starts = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
    at, largest = min(starts), 0
    end = at + chunk.total_compressed_size
    while at < end:
        file.seek(at)
        fields, size = _struct(file.read(HEADER_BYTES), 0)
        page = fields.get(DATA) or fields.get(DATA_2) or {}
        values = page.get(1, 0) * VALUE_BYTES if repeated else 0
        largest = max(largest, fields.get(UNPACKED, 0), values)
        if size + fields.get(PACKED, -1) <= 0:
            raise ValueError("a page of no bytes")
        at += size + fields[PACKED]
    return largest


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the integers and structs of a struct by field, and where it ends."""
    if depth > 8:
        raise ValueError("structs too deep")
    fields: dict[int, Any] = {}
    number = 0
    while kind := data[at] & 15:
        number += data[at] >> 4
        at += 1
        if not data[at - 1] >> 4:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind == STRUCT:
        return _struct(data, at, depth + 1)
    if kind == BINARY:
        size, at = _varint(data, at)
        return None, at + size
    if kind in LISTS:
        size, inner = data[at] >> 4, data[at] & 15
        at += 1
        if size == 15:
            size, at = _varint(data, at)
        for _ in range(size):
            _, at = _value(data, at, inner, depth + 1)
        return None, at
    if kind in (1, 2):  # true and false
        return None, at
    if kind in (BYTE, DOUBLE):
        return None, at + (1 if kind == BYTE else 8)
    if kind == MAP:
        raise ValueError("a map in a page header")
    return _integer(data, at)


def _integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return number, at
