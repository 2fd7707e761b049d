"""Sizes of Arrow batches by their headers: as Arrow reads them, and an end for any bytes."""

import io
from contextlib import suppress
from struct import error as StructError

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.readers.arrow_buffers import largest_batch

TABLE = pa.table(
    {
        "text": ["a" * 1000, "b" * 77] * 500,
        "n": range(1000),
        "kind": pa.array(["x", "y" * 5000] * 500).dictionary_encode(),
        "list": [[1, 2, 3], None] * 500,
        "none": pa.nulls(1000),
    }
)


def written(kind: str, compression: str | None, rows: int, *, legacy: bool = False) -> bytes:
    """Return the table as Arrow IPC, in batches of so many rows."""
    out = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression, use_legacy_format=legacy)
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with make(out, TABLE.schema, options=options) as writer:
        writer.write_table(TABLE, max_chunksize=rows)
    return out.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("rows", [1, 300, 1000])
def test_the_largest_batch_is_as_large_as_arrow_reads_it(
    kind: str, compression: str, rows: int, *, legacy: bool
) -> None:
    content = written(kind, compression, rows, legacy=legacy)
    opened = pa.ipc.open_file(content) if kind == "file" else pa.ipc.open_stream(content)
    read = opened.read_all().to_batches()
    largest = max(sum(b.size for c in batch.columns for b in buffers(c)) for batch in read)
    dictionary = read[0]["kind"].dictionary
    assert largest_batch(io.BytesIO(content)) == max(
        largest, sum(b.size for b in buffers(dictionary))
    )


def buffers(column: pa.Array) -> list[pa.Buffer]:
    """Return the buffers of a column that hold anything, without those of its dictionary."""
    indices = column.indices if pa.types.is_dictionary(column.type) else column
    return [buffer for buffer in indices.buffers() if buffer is not None]


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_what_is_not_compressed_is_not_unpacked(kind: str) -> None:
    assert largest_batch(io.BytesIO(written(kind, None, 100))) == 0


@given(st.data())
def test_any_bytes_come_to_an_end(data: st.DataObject) -> None:
    content = bytearray(written(data.draw(st.sampled_from(["file", "stream"])), "lz4", 400))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    with suppress(StructError, IndexError):
        assert largest_batch(io.BytesIO(bytes(content[:cut]))) >= 0
