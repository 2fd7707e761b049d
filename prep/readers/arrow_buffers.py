"""Sizes of an Arrow IPC file's batches, read from their headers before any batch is unpacked.

A compressed batch is unpacked whole, so its size bounds the memory that reading takes. Files and
streams are the same run of messages: a header in FlatBuffers, then the body. Each compressed buffer
of a body begins with its unpacked size (Arrow columnar format, IPC; tables `Message`,
`RecordBatch` and `DictionaryBatch`).
"""

from collections.abc import Iterator
from struct import unpack_from
from typing import BinaryIO

MAGIC = b"ARROW1\0\0"
CONTINUED = 0xFFFFFFFF
HEADER_TYPE, HEADER, BODY_LENGTH = 1, 2, 3  # fields of a Message
DICTIONARY, RECORDS = 2, 3  # types of header
LONGEST_HEADER = 1 << 26  # bytes
LAST = 1 << 62  # a place in a file is below
DATA = 1  # field of a DictionaryBatch: its RecordBatch
BUFFERS, COMPRESSION = 2, 3  # fields of a RecordBatch


def largest_batch(file: BinaryIO) -> int:
    """Return the bytes that the largest compressed batch unpacks to, 0 where none is compressed.

    Reads the headers alone. Raises struct.error or IndexError for headers that can't be followed.
    """
    return max(map(sum, _sizes(file)), default=0)


def _sizes(file: BinaryIO) -> Iterator[list[int]]:
    """Yield the unpacked sizes of the buffers of each batch."""
    file.seek(0)
    at = len(MAGIC) if file.read(len(MAGIC)) == MAGIC else 0
    while at < LAST:
        file.seek(at)
        prefix = file.read(8)
        if len(prefix) < 8:
            return
        continued, length = unpack_from("<Ii", prefix)
        start = 8
        if continued != CONTINUED:  # as before Arrow 0.15
            [length], start = unpack_from("<i", prefix), 4
        if length <= 0:
            return
        if length > LONGEST_HEADER:
            raise IndexError("a header too long")
        file.seek(at + start)
        header = file.read(length)
        body = at + start + length
        message = unpack_from("<I", header)[0]
        kind, batch = _field(header, message, HEADER_TYPE), _table(header, message, HEADER)
        if batch and kind and header[kind] in (DICTIONARY, RECORDS):
            if header[kind] == DICTIONARY:
                batch = _table(header, batch, DATA)
            yield [_unpacked(file, body + offset) for offset in _compressed(header, batch)]
        place = _field(header, message, BODY_LENGTH)
        at = body + max(0, unpack_from("<q", header, place)[0] if place else 0)


def _compressed(header: bytes, batch: int) -> list[int]:
    """Return where the compressed buffers of a batch that hold anything begin in its body."""
    if not (batch and _field(header, batch, COMPRESSION) and _field(header, batch, BUFFERS)):
        return []
    vector = _table(header, batch, BUFFERS)
    [count] = unpack_from("<I", header, vector)
    pairs = [unpack_from("<qq", header, vector + 4 + 16 * i) for i in range(count)]
    return [offset for offset, length in pairs if length]


def _unpacked(file: BinaryIO, at: int) -> int:
    """Return the unpacked size at the beginning of a buffer; one left as it is says -1."""
    if not 0 <= at < LAST:
        raise IndexError("a buffer outside its file")
    file.seek(at)
    return max(0, unpack_from("<q", file.read(8))[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a FlatBuffers table lies, 0 where it is left out."""
    fields = table - unpack_from("<i", data, table)[0]
    place = 4 + 2 * number
    if place >= unpack_from("<H", data, fields)[0]:
        return 0
    offset = unpack_from("<H", data, fields + place)[0]
    return table + offset if offset else 0


def _table(data: bytes, table: int, number: int) -> int:
    """Return where the table or vector that a field refers to lies, 0 where it is left out."""
    place = _field(data, table, number)
    return place + unpack_from("<I", data, place)[0] if place else 0
