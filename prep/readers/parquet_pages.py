"""Sizes of a parquet file's pages, read from their headers before any page is unpacked.

A page is unpacked whole, so its size bounds the memory that reading takes. Headers are structs of
Thrift's compact protocol (Parquet format, PageHeader): field 2 is the unpacked size in bytes, 3 the
packed one, 5 and 8 hold the number of values of a data page.
"""

from collections.abc import Collection
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from crystalmix.prep.readers.parquet_join import INTEGERS, STRUCT, Field, read_struct

HEADER_BYTES = 1 << 16
UNPACKED, PACKED, DATA, DATA_2 = 2, 3, 5, 8
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
        fields, size = read_struct(file.read(HEADER_BYTES), 0)
        page = (f.value for f in fields if f.number in (DATA, DATA_2) and f.kind == STRUCT)
        values = _integers(next(page, [])).get(1, 0) * VALUE_BYTES if repeated else 0
        sizes = _integers(fields)
        largest = max(largest, sizes.get(UNPACKED, 0), values)
        if size + sizes.get(PACKED, -size) <= 0:
            raise ValueError("a page of no bytes")
        at += size + sizes[PACKED]
    return largest


def _integers(fields: list[Field]) -> dict[int, int]:
    return {field.number: field.value for field in fields if field.kind in INTEGERS}
