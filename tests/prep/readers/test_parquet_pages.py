"""Sizes of parquet pages by their headers, also of headers that lie."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.readers.parquet_pages import largest_page

LIST_OF_BOOLS = bytes([0x19, 0xF1, *[0xFF] * 8, 0x7F])  # 2**63 - 1 of them
DEEP = bytes([0x1C]) * 64  # a struct in a struct ...


def written(path: Path, header: bytes = b"") -> Path:
    """Write a file of one long text, and the header of its first page over."""
    table = pa.table({"text": ["x" * 100_000], "list": [[1, 2, 3]]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    with path.open("r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(header)
    return path


def largest(path: Path, column: str, most: int) -> int:
    with path.open("rb") as file:
        return largest_page(file, pq.read_metadata(path), [column], most)


def test_the_largest_page_is_told_where_it_is_over_the_most(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet")
    assert largest(path, "text", 1 << 16) >= 100_000
    assert largest(path, "text", 1 << 20) == 0
    assert largest(path, "list", 8) >= 24  # three values, of 8 bytes at least


@pytest.mark.parametrize("header", [LIST_OF_BOOLS, DEEP, b"\x1d", b"\x58\x7f"])
def test_a_header_that_lies_ends_in_an_error_at_once(tmp_path: Path, header: bytes) -> None:
    path = written(tmp_path / "a.parquet", header)
    with pytest.raises((ValueError, IndexError)):
        largest(path, "text", 1 << 16)
