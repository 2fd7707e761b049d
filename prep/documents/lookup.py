"""Lookup of documents: sorted names and text digests of a source, and its lines by number.

`names.parquet` and `digests.parquet` hold a line for each document and each dropped record that
has a name or a digest: `key` (the name in lower case, or `file#record` where there is none; the
xxh3-128 of the text), and `place`: the document's number, or -1 - n for line n of dropped.parquet.
They are sorted by key, so that the row group that holds a key follows from the groups' smallest
and largest keys, and only that one is read.

`lines.arrow` has file, record, name and characters of each document in batches of LINE_ROWS, so
that the batch of a number is found by division and read alone: a row group of documents.parquet is
32 times as long, and its footer is held in memory. All of them follow from documents.parquet and
dropped.parquet and can be made again at any time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from crystalmix.prep.runtime import database
from crystalmix.prep.runtime.atomic_files import readable, replacing
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.lazy_names import imported_later

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from crystalmix.prep.documents import dropped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Places = NDArray[np.int64]

VERSION = 1
NAMES, DIGESTS, LINES = "names.parquet", "digests.parquet", "lines.arrow"
GROUP_ROWS = 1 << 15
BATCH_ROWS = 1 << 16
TAKEN_ROWS = 1 << 13  # of a row group of which few lines are taken
READ_BYTES = 1 << 16  # that are read at once of a column of such a group
MOST_IN_MEMORY = 1 << 22  # lines that are sorted in memory; more are sorted on disk
MEMORY = "512MB"
COLUMNS = ["file", "record", "name", "digest"]
LINE_ROWS = 1 << 11  # of a batch of LINES
_compute: Any = pc  # its stub knows no runs


@cache
def line_schema() -> pa.Schema:
    """Return the columns of LINES."""
    return pa.schema(
        [
            ("file", pa.string()),
            ("record", pa.int64()),
            ("name", pa.string()),
            ("characters", pa.int64()),
        ]
    )


@cache
def kept_schema() -> pa.Schema:
    """Return the columns of LINES as they are kept: files in runs."""
    return line_schema().set(0, pa.field("file", pa.run_end_encoded(pa.int32(), pa.string())))


def write(documents: Path, out: Path, name: str) -> None:
    """Write NAMES, DIGESTS or LINES of a documents.parquet to a folder.

    Names and digests are those of its dropped.parquet, too.
    """
    out.mkdir(parents=True, exist_ok=True)
    if name == LINES:
        _write_lines(documents, out / name)
        return
    drops = documents.with_name(dropped.NAME)
    count = sum(pq.read_metadata(path).num_rows for path in (documents, drops) if path.exists())
    kind, key = (pa.large_string(), _names) if name == NAMES else (pa.binary(16), _digests)
    schema = pa.schema([("key", kind), ("place", pa.int64())])
    lines = (_lines(key, batch, place, schema) for batch, place in _batches(documents, drops))
    with (
        replacing(out / name) as temporary,
        pq.ParquetWriter(
            temporary, schema, compression="zstd", version="2.6", use_dictionary=False
        ) as writer,
    ):
        for table in _sorted(lines, schema, count, out / f".{name}.sorting"):
            writer.write_table(table, row_group_size=GROUP_ROWS)


def _write_lines(documents: Path, out: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with replacing(out) as temporary, pq.ParquetFile(documents, pre_buffer=False) as file:
        metadata = {"rows": str(LINE_ROWS), "lines": str(file.metadata.num_rows)}
        waiting = line_schema().empty_table()
        with pa.ipc.new_file(
            str(temporary), kept_schema().with_metadata(metadata), options=options
        ) as writer:
            for batch in file.iter_batches(BATCH_ROWS, columns=line_schema().names):
                more = (
                    pa.Table.from_batches([batch]).select(line_schema().names).cast(line_schema())
                )
                waiting = pa.concat_tables([waiting, more]).combine_chunks()
                for whole in range(LINE_ROWS, len(waiting) + 1, LINE_ROWS):
                    writer.write_batch(line_batch(waiting.slice(whole - LINE_ROWS, LINE_ROWS)))
                waiting = waiting.slice(len(waiting) - len(waiting) % LINE_ROWS)
            if len(waiting):
                writer.write_batch(line_batch(waiting))


def line_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a batch of LINES (`kept_schema`) from a table of one chunk (`line_schema`)."""
    [batch] = table.to_batches()
    return pa.record_batch(
        [_compute.run_end_encode(batch.column(0)), *batch.columns[1:]], schema=kept_schema()
    )


def _batches(documents: Path, drops: Path) -> Iterator[tuple[pa.RecordBatch, Places]]:
    for path, first, step in ((documents, 0, 1), (drops, -1, -1)):
        if not path.exists():
            continue
        done = 0
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=COLUMNS):
                yield batch, first + step * np.arange(done, done + batch.num_rows)
                done += batch.num_rows


def _lines(key: Any, batch: pa.RecordBatch, place: Places, schema: pa.Schema) -> pa.Table:  # noqa: ANN401
    table = pa.table([key(batch), pa.array(place)], names=["key", "place"])
    return table.filter(pc.is_valid(table["key"])).cast(schema)


def _names(batch: pa.RecordBatch) -> Any:  # noqa: ANN401
    """Return names in lower case; `file#record` of a document without one, null for a file."""
    join: Any = pc.binary_join_element_wise  # its stub knows no text as separator
    file, record = (batch.column(name).cast(pa.string()) for name in ("file", "record"))
    placed = join(file, record, "#")
    return pc.utf8_lower(pc.coalesce(batch.column("name"), placed).cast(pa.large_string()))


def _digests(batch: pa.RecordBatch) -> Any:  # noqa: ANN401
    return batch.column("digest")


def _sorted(
    lines: Iterator[pa.Table], schema: pa.Schema, count: int, folder: Path
) -> Iterator[pa.Table]:
    """Yield all lines in the order of their keys' bytes, then of their places."""
    if count <= MOST_IN_MEMORY:
        table = pa.concat_tables([schema.empty_table(), *lines]).combine_chunks()
        yield table.sort_by([("key", "ascending"), ("place", "ascending")])
        return
    with database.scratch(folder, memory=MEMORY) as connection:
        key = "VARCHAR" if schema.field("key").type == pa.large_string() else "BLOB"
        connection.execute(f"CREATE TABLE lines (key {key}, place BIGINT)")
        for table in lines:
            connection.register("more", table)
            connection.execute("INSERT INTO lines SELECT key, place FROM more")
            connection.unregister("more")
        result = connection.sql("SELECT key, place FROM lines ORDER BY key, place")
        for batch in result.to_arrow_reader(GROUP_ROWS * 8):
            yield pa.Table.from_batches([batch]).cast(schema)
    folder.rmdir()


class Lookup:
    """The sorted keys of one file; questions in the order of keys read each row group once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: tuple[int, _Keys, Places] | None = None

    def between(self, first: str | bytes, end: str | bytes, most: int | None = None) -> Places:
        """Return the places of the keys in [first, end), in the order of keys; most: of them."""
        blocks, count = [np.empty(0, np.int64)], 0
        with _readable(self.path):
            for group in self._groups(first, end):
                blocks.append(self._within(group, first, end))
                count += len(blocks[-1])
                if most is not None and count >= most:
                    break
        return np.concatenate(blocks)[:most]

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(readable(self.path), pre_buffer=False)

    @cached_property
    def _bounds(self) -> tuple[list[Any], list[Any]]:
        """Return the smallest and the largest key of each row group; None where it is too long."""
        return _bounds(self._file, "key")

    def _groups(self, first: str | bytes, end: str | bytes) -> Iterable[int]:
        lows, highs = self._bounds
        if None in lows or None in highs:
            return range(len(lows))
        low = bisect_left(highs, first)
        return range(low, bisect_left(lows, end, lo=low))

    def _within(self, group: int, first: str | bytes, end: str | bytes) -> Places:
        if self._held is None or self._held[0] != group:
            table = self._file.read_row_group(group)
            keys = _Keys(table["key"].combine_chunks())
            self._held = (group, keys, table["place"].to_numpy())
        _, keys, places = self._held
        return places[bisect_left(keys, first) : bisect_left(keys, end)]


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """Turn errors of a lookup's file into DamageError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        brief = str(error).splitlines()[0]
        raise DamageError(f"{path}: can't be read ({brief}); remove its folder") from None


class _Keys(Sequence[Any]):
    """Keys of a row group, each made an object when it is compared."""

    def __init__(self, array: Any) -> None:  # noqa: ANN401  an Arrow array
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401
        return self.array[place].as_py()


class Lines:
    """The lines of a documents.parquet or dropped.parquet by number; row groups are read alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = pq.ParquetFile(readable(path), pre_buffer=False)
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, numbers: Places, columns: Sequence[str]) -> pa.Table:
        """Read lines by number, ascending."""
        [table] = take([(self, numbers)], columns)
        return table

    def groups(self, numbers: Places) -> list[tuple[int, Places]]:
        """Return the row groups that hold lines, ascending, and the places of these in each."""
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        return [(g, numbers[owners == g] - self._starts[g]) for g in np.unique(owners).tolist()]

    def empty(self, columns: Sequence[str]) -> pa.Table:
        """Return columns of no line."""
        return self._file.schema_arrow.empty_table().select([*columns])

    def within(self, group: int, numbers: Places, columns: Sequence[str]) -> pa.Table:
        """Read lines of a row group by their places in it, no further than the last one."""
        tables, first = list[pa.Table](), 0
        metadata = self._file.metadata
        with pq.ParquetFile(  # this thread's
            readable(self.path), metadata=metadata, pre_buffer=False, buffer_size=READ_BYTES
        ) as file:
            for batch in file.iter_batches(
                TAKEN_ROWS, row_groups=[group], columns=list(columns), use_threads=False
            ):
                own = numbers[slice(*np.searchsorted(numbers, (first, first + batch.num_rows)))]
                if len(own):
                    tables.append(
                        pa.Table.from_batches([batch]).take(pa.array(own - first, pa.int64()))
                    )
                first += batch.num_rows
                if first > numbers[-1]:
                    break
        return pa.concat_tables(tables)

    def of_record(self, file: str, record: int) -> list[int]:
        """Return the numbers of the lines of a record of a file."""
        numbers: list[int] = []
        for group in self._groups_of(file):
            table = self._file.read_row_group(group, columns=["file", "record"])
            names: Any = table["file"].cast(pa.string())
            same = np.asarray(names.to_numpy() == file) & (table["record"].to_numpy() == record)
            places = np.flatnonzero(same)
            numbers += (places + self._starts[group]).tolist()
        return numbers

    def _groups_of(self, file: str) -> list[int]:
        lows, highs = self._bounds
        return [
            group
            for group, (low, high) in enumerate(zip(lows, highs, strict=True))
            if low is None or high is None or low <= file <= high
        ]

    @cached_property
    def _bounds(self) -> tuple[list[Any], list[Any]]:
        return _bounds(self._file, "file")


class NumberedLines:
    """The lines of a source's documents by number, from its LINES; batches are read alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _readable(path):
            source = readable(path)
            mapped: Any = pa.memory_map(str(source)) if isinstance(source, Path) else source
            self._file = pa.ipc.open_file(mapped)
        metadata = self._file.schema.metadata
        self._rows, self._count = int(metadata[b"rows"]), int(metadata[b"lines"])
        self._alone = Lock()  # a reader is one thread's

    def __len__(self) -> int:
        return self._count

    def groups(self, numbers: Places) -> list[tuple[int, Places]]:
        """Return the batches that hold lines, ascending, and the places of these in each."""
        owners, places = np.divmod(numbers, self._rows)
        return [(owner, places[owners == owner]) for owner in np.unique(owners).tolist()]

    def empty(self, columns: Sequence[str]) -> pa.Table:
        """Return columns of no line."""
        return line_schema().empty_table().select([*columns])

    def within(self, group: int, numbers: Places, columns: Sequence[str]) -> pa.Table:
        """Read lines of a batch by their places in it."""
        with _readable(self.path):
            with self._alone:
                batch: Any = self._file.get_batch(group)
            batch.validate(full=True)  # offsets that lead out of their buffers crash who follows
            batch = pa.record_batch(
                [_compute.run_end_decode(batch.column(0)), *batch.columns[1:]], schema=line_schema()
            )
            chosen = batch.select([*columns]).take(pa.array(numbers, pa.int64()))
            return pa.Table.from_batches([chosen])


def take(
    requests: Sequence[tuple[Lines | NumberedLines, Places]], columns: Sequence[str]
) -> list[pa.Table]:
    """Read lines of several files by ascending number; two threads read half the row groups each.

    Memory that a thread took to unpack pages is given back at the end.
    """
    groups = [(i, *group) for i, (lines, own) in enumerate(requests) for group in lines.groups(own)]

    def read(some: slice) -> list[tuple[int, pa.Table]]:
        return [(i, requests[i][0].within(group, own, columns)) for i, group, own in groups[some]]

    half = len(groups) // 2
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(read, slice(half)) if half else None
        pieces = read(slice(half, None))
        pieces = (first.result() if first else []) + pieces
    pa.default_memory_pool().release_unused()
    tables = [[lines.empty(columns)] for lines, _ in requests]
    for i, table in pieces:
        tables[i].append(table)
    return [pa.concat_tables(own).unify_dictionaries() for own in tables]


def _bounds(file: pq.ParquetFile, column: str) -> tuple[list[Any], list[Any]]:
    """Return the smallest and the largest value of each row group; None where it is too long."""
    place, metadata = file.schema_arrow.names.index(column), file.metadata
    groups = range(metadata.num_row_groups)
    columns = [metadata.row_group(group).column(place).statistics for group in groups]
    return [c and c.min for c in columns], [c and c.max for c in columns]


def rows(path: Path, numbers: Places, columns: Sequence[str]) -> pa.Table:
    """Read lines of a documents.parquet or dropped.parquet by number, ascending, group by group."""
    return Lines(path).take(numbers, columns)
