"""Dropped records: which record was dropped and why, beside the documents that were kept."""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from crystalmix.prep.runtime.atomic_files import readable, replacing
from crystalmix.prep.runtime.errors import BrokenFile
from crystalmix.prep.runtime.types import Column

NAME = "dropped.parquet"
SCHEMA = pa.schema(
    [
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("record", pa.int64()),  # line or row number in the file, from 0; null: the file itself
        ("reason", pa.dictionary(pa.int32(), pa.string())),
        ("digest", pa.binary(16)),  # of the text, where there is one
        ("name", pa.string()),  # where the record came as far as its identity
        ("detail", pa.string()),  # what the reason is about: a fault, a list's line, a document
    ]
)
FLUSH_ROWS = 1 << 16
MOST_SMALL = 256  # tables that wait to be joined
Write = Callable[[pa.Table], None]


@contextmanager
def growing(path: Path, schema: pa.Schema) -> Generator[Write]:
    """Give a function that adds rows to a parquet file, which is there once all are written."""
    gathered = Gathered()

    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", version="2.6") as writer,
    ):

        def add(table: pa.Table) -> None:
            if table.num_rows:
                gathered.add(table)
            if gathered.rows >= FLUSH_ROWS:
                writer.write_table(gathered.take())

        yield add
        if gathered.rows:
            writer.write_table(gathered.take())


class Gathered:
    """Tables that become one; many small ones are joined as they come, for each takes some KiB."""

    def __init__(self) -> None:
        self.large: list[pa.Table] = []
        self.small: list[pa.Table] = []
        self.rows = self.bytes = 0

    def add(self, table: pa.Table) -> None:
        """Add a table."""
        self.small.append(table)
        self.rows, self.bytes = self.rows + table.num_rows, self.bytes + table.nbytes
        if len(self.small) == MOST_SMALL:
            self.large.append(_one(self.small))
            self.small = []

    def take(self) -> pa.Table:
        """Return what was added, which is some, and begin anew."""
        table = _one([*self.large, *self.small])
        self.__init__()
        return table


def _one(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


class DropList:
    """The dropped records of one file, written as they come and counted by reason."""

    def __init__(self, file: str, write: Write) -> None:
        self.file, self.write = file, write
        self.counts: Counter[str] = Counter()

    def add(self, records: object, reasons: Sequence[str], **columns: object) -> None:
        """Add records with a reason each; columns: digest, name, detail, where they are known."""
        count = len(reasons)
        if count == 0:
            return
        self.counts.update(reasons)
        cells = {"file": [self.file] * count, "record": records, "reason": list(reasons), **columns}
        arrays = [_array(cells.get(field.name), field.type, count) for field in SCHEMA]
        self.write(pa.table(arrays, schema=SCHEMA))

    def add_file(self, error: BrokenFile) -> None:
        """Add the file itself, or the rest of it: a line without a record."""
        self.add([None], [error.reason], detail=[str(error)])


def _array(values: Any, kind: Any, count: int) -> Column:  # noqa: ANN401  an Arrow type
    if values is None:
        return pa.nulls(count, kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, pa.string()).dictionary_encode()
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def digests(texts: Column) -> list[bytes | None]:
    """Return the digest of each text of a column of large_string, None where there is none."""
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    return [
        None if not text.is_valid else xxhash.xxh3_128_digest(text.as_buffer()) for text in array
    ]


def counts(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Count the lines of a dropped.parquet by reason: those of records, and those of files."""
    records: Counter[str] = Counter()
    files: Counter[str] = Counter()
    with pq.ParquetFile(readable(path), pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["record", "reason"]):
            valid = batch.column("record").is_valid().to_pylist()
            for reason, is_record in zip(batch.column("reason").to_pylist(), valid, strict=True):
                (records if is_record else files)[str(reason)] += 1
    return dict(sorted(records.items())), dict(sorted(files.items()))
