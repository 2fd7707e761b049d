"""Joining parquet files of one writer's schema: their pages are copied, none is unpacked.

A footer is a struct of Thrift's compact protocol (Parquet format, FileMetaData). The places in the
file that its row groups name move by what stands before them; what is written is what one writer
writes of the same row groups.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from crystalmix.prep.runtime.atomic_files import replacing

MAGIC = b"PAR1"
TRUE, FALSE, BYTE, DOUBLE, BINARY, STRUCT = 1, 2, 3, 7, 8, 12
INTEGERS, LISTS = (4, 5, 6), (9, 10)
ROWS, GROUPS = 3, 4  # of FileMetaData
COLUMNS, GROUP_PLACE, ORDINAL = 1, 5, 7  # of RowGroup
PLACES, META, META_PLACES = (2, 4, 6), 3, (9, 10, 11, 14)  # of ColumnChunk, and ColumnMetaData
MOST_ORDINALS = 1 << 15  # that its int16 holds
COPY_BYTES = 1 << 24
DEEPEST = 16  # structs and lists within each other


class Field(NamedTuple):
    """A field of a struct; value: of a struct its fields, of a list (kind, values)."""

    number: int
    kind: int
    value: Any


def join(files: Sequence[Path], out: Path) -> None:
    """Write the row groups of some files, in order, as one file.

    Raises ValueError where one is no parquet file, or of another schema than the first.
    """
    groups, rows, whole = list[bytes](), 0, list[Field]()
    with replacing(out) as temporary, temporary.open("wb") as joined:
        joined.write(MAGIC)
        for path in files:
            with path.open("rb") as file:
                footer, end = _footer(file, path)
                own = {field.number: field for field in footer}
                rest = [field for field in footer if field.number not in (ROWS, GROUPS)]
                if whole and rest != [f for f in whole if f.number not in (ROWS, GROUPS)]:
                    raise ValueError(f"{path}: has another schema than {files[0]}")
                whole, moved = whole or footer, joined.tell() - len(MAGIC)
                rows += own[ROWS].value
                for group in own[GROUPS].value[1]:
                    groups.append(bytes(_struct(_moved(group, moved, len(groups)))))
                _copy(file, joined, len(MAGIC), end)
        values = {ROWS: rows, GROUPS: (STRUCT, groups)}
        tail = bytes(_struct([f._replace(value=values.get(f.number, f.value)) for f in whole]))
        joined.write(tail + len(tail).to_bytes(4, "little") + MAGIC)


def _footer(file: BinaryIO, path: Path) -> tuple[list[Field], int]:
    """Return the fields of a file's footer, and where it begins."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read()
    end = size - 8 - int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or end < len(MAGIC):
        raise ValueError(f"{path}: is no parquet file")
    file.seek(end)
    return read_struct(file.read(size - 8 - end), 0)[0], end


def _copy(file: BinaryIO, out: BinaryIO, first: int, end: int) -> None:
    file.seek(first)
    for at in range(first, end, COPY_BYTES):
        out.write(file.read(min(COPY_BYTES, end - at)))


def _moved(group: list[Field], moved: int, ordinal: int) -> Iterator[Field]:
    """Yield the fields of a row group that stands so many bytes further on."""
    for field in group:
        if field.number == COLUMNS:
            kind, columns = field.value
            yield field._replace(value=(kind, [_moved_column(column, moved) for column in columns]))
        elif field.number == GROUP_PLACE:
            yield _shifted(field, moved)
        elif field.number != ORDINAL:
            yield field
        elif ordinal < MOST_ORDINALS:
            yield field._replace(value=ordinal)


def _moved_column(column: list[Field], moved: int) -> list[Field]:
    fields: list[Field] = []
    for field in column:
        if field.number == META:
            inside: list[Field] = field.value
            meta = [_shifted(f, moved) if f.number in META_PLACES else f for f in inside]
            fields.append(field._replace(value=meta))
        else:
            fields.append(_shifted(field, moved) if field.number in PLACES else field)
    return fields


def _shifted(field: Field, moved: int) -> Field:
    """Return a place moved; 0 is none."""
    return field._replace(value=field.value + moved) if field.value else field


def read_struct(data: bytes, at: int, depth: int = 0) -> tuple[list[Field], int]:
    """Return the fields of a struct that begins at a place, and where it ends.

    IndexError where the data end before, ValueError for what parquet has no use for.
    """
    if depth > DEEPEST:
        raise ValueError("structs too deep")
    fields: list[Field] = []
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        value, at = (None, at) if kind in (TRUE, FALSE) else _read(data, at, kind, depth)
        fields.append(Field(number, kind, value))
    return fields, at + 1


def _read(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in INTEGERS:
        return _read_integer(data, at)
    if kind == BINARY:
        size, at = _read_varint(data, at)
        return data[at : at + size], at + size
    if kind == STRUCT:
        return read_struct(data, at, depth + 1)
    if kind in LISTS:
        size, inner = data[at] >> 4, data[at] & 15
        at += 1
        if size == 15:
            size, at = _read_varint(data, at)
        if size > len(data) - at:  # of a value that takes no byte there is no list
            raise IndexError("a list beyond its data")
        values: list[Any] = []
        for _ in range(size):
            value, at = _read(data, at, inner, depth + 1)
            values.append(value)
        return (inner, values), at
    if kind in (TRUE, FALSE, BYTE, DOUBLE):  # the first two of a list
        size = 8 if kind == DOUBLE else 1
        return data[at : at + size], at + size
    raise ValueError(f"a value of kind {kind}")


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = _read_varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[at]) > 127:
        number |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
    return number | byte << shift, at + 1


def _struct(fields: Sequence[Field] | Iterator[Field]) -> bytearray:
    out, before = bytearray(), 0
    for number, kind, value in fields:
        step = number - before
        before = number
        out += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _integer(number)
        if kind not in (TRUE, FALSE):
            out += _written(value, kind)
    out.append(0)
    return out


def _written(value: Any, kind: int) -> bytes | bytearray:  # noqa: ANN401
    if kind in INTEGERS:
        return _integer(value)
    if kind == BINARY:
        return _varint(len(value)) + value
    if kind in LISTS:
        inner, values = value
        size = len(values)
        head = bytes([min(size, 15) << 4 | inner]) + (_varint(size) if size > 14 else b"")
        return head + b"".join(_written(entry, inner) for entry in values)
    return value if isinstance(value, bytes) else _struct(value)  # a struct may be written already


def _integer(number: int) -> bytes:
    return _varint(number << 1 if number >= 0 else ~(number << 1))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
