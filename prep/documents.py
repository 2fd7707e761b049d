"""Documents: the texts of a source that are kept, each with an identity, and what was dropped.

`scan` reads one block of a source (a raw file), drops what is no document or fails the source's
SQL `where`, and counts every drop under a reason. `merge` numbers the documents of all blocks
densely and writes `documents.parquet`, one row group per block. `texts` reads a block's kept
documents again, for tokenising, and refuses a file that changed in between.
"""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from prep.errors import BrokenFile, InputError, RecipeError
from prep.jsonlines import widened
from prep.receipts import replacing
from prep.records import RECORD, TEXT, Batch, Drops, is_blank
from prep.sources import Document, Source, is_json, label, read
from prep.spans import write as write_table

VERSION = 2
SAMPLE_FILES = 8
NAME = "__name"
IDENTITY = [
    ("document", pa.int64()),  # dense number within the source
    ("file", pa.dictionary(pa.int32(), pa.string())),
    ("record", pa.int64()),  # line or row number in the file, from 0
    ("name", pa.string()),
    ("digest", pa.binary(16)),  # xxh3-128 of the text's UTF-8
    ("characters", pa.int64()),
    ("bytes", pa.int64()),
]


def schema(source: Source) -> pa.Schema:
    """Return the columns of a source's documents.parquet: identity, then what it keeps.

    Raises RecipeError where two of them have one name.
    """
    columns = [*IDENTITY, *((label(column), pa.string()) for column in source.keep)]
    names = Counter(name.lower() for name, _ in columns)  # SQL knows no case
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise RecipeError(
            f"source {source.name}: keep: two columns of its documents would be called "
            f"{twice[0]!r}; leave one out"
        )
    return pa.schema(columns)


def structure(source: Source, root: Path, blocks: list[str]) -> str | None:
    """Infer the columns of a source's JSON records from its first blocks, for its SQL.

    Returns None where no SQL is asked or the blocks carry a schema of their own.
    """
    chosen = [block for block in blocks if is_json(source, block)]
    if not _needs_sql(source) or not chosen:
        return None
    read_well = (batch.table for block in chosen for batch in _first(source, root, block))
    sample = list(islice(read_well, SAMPLE_FILES))
    return _structure(pa.concat_tables(sample)) if sample else "{}"


def _structure(records: pa.Table) -> str:
    """Return the structure of the JSON in column `line`, as DuckDB tells it."""
    _connection().register("records", records)
    query = "SELECT json_group_structure(line::JSON) FROM records"
    [(found,)] = _connection().sql(query).fetchall()
    return "{}" if found in (None, '"JSON"') else found  # of records without a key too


def _first(source: Source, root: Path, block: str) -> Iterator[Batch]:
    try:
        yield from islice(read(source, root, block, lines=True), 1)
    except BrokenFile:
        if source.on_error == "stop":
            raise


def scan(source: Source, root: Path, block: str, shape: str | None, out: Path) -> dict[str, Any]:
    """Write one block's documents (unnumbered) to `out` and return its account.

    The account: records, documents, characters, bytes, text_digest (over the documents in order),
    and what Drops tells. Raises BrokenFile, or with `on_error: skip` leaves the file out.
    """
    dropped = Drops(block)
    tables: list[pa.Table] = []
    records = 0
    shape = shape if is_json(source, block) else None
    try:
        for batch in read(source, root, block, lines=shape is not None):
            records += len(batch.table) + len(batch.bad)
            dropped.take(batch)
            if len(batch.table):
                kept = _filter(source, batch, shape, dropped)
                tables.append(_documents(source, block, kept, dropped))
    except BrokenFile as error:
        if source.on_error == "stop":
            raise
        tables, records, dropped = [], 0, Drops(block, error)
    table = pa.concat_tables(tables) if tables else schema(source).empty_table()
    write_table(out, table)
    return {
        "block": block,
        "records": records,
        "documents": table.num_rows,
        "characters": _sum(table, "characters"),
        "bytes": _sum(table, "bytes"),
        "text_digest": xxhash.xxh3_128_hexdigest(_joined(table["digest"])),
        **dropped.told(),
    }


def merge(source: Source, parts: list[Path], out: Path) -> None:
    """Join the blocks' documents, numbered from 0 in block order, one row group per block."""
    first = 0
    with (
        replacing(out) as temporary,
        pq.ParquetWriter(temporary, schema(source), compression="zstd") as writer,
    ):
        for part in parts:
            table = pq.read_table(part, schema=schema(source))
            numbers = pa.array(np.arange(first, first + table.num_rows), pa.int64())
            table = table.set_column(0, schema(source).field("document"), numbers)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            first += table.num_rows


def texts(
    source: Source, root: Path, block: str, documents: Path, rows: tuple[int, int]
) -> Iterator[Document]:
    """Yield a block's documents in order; rows = [first, stop) in documents.parquet.

    Raises InputError where the raw file no longer holds the text that was scanned.
    """
    if rows[0] == rows[1]:
        return  # of a file that was left out, too
    named = [column for _, column in source.metadata_entries if column]
    table = _rows(documents, rows, named)
    wanted = table["record"].to_numpy()
    digests = table["digest"].to_pylist()
    columns = [tuple(row.values()) for row in table.select(named).to_pylist()]
    done = 0
    for batch in read(source, root, block):
        if done == len(wanted):
            return
        records = batch.table[RECORD].to_numpy()
        places = _places(records, wanted[done:])
        for raw in _utf8(batch.table[TEXT], places):
            digest = xxhash.xxh3_128_digest(raw)
            if digest != digests[done]:
                raise _changed(root / block, wanted[done])
            draw, text = int.from_bytes(digest[8:], "big"), str(raw, "utf-8")
            yield Document(rows[0] + done, draw, text, columns[done] if named else ())
            done += 1
    if done != len(wanted):
        raise _changed(root / block, wanted[done])


def _utf8(column: Any, places: NDArray[np.int64]) -> Iterator[memoryview]:  # noqa: ANN401
    """Yield the bytes of a column's texts (large_string; of null none), in place."""
    array = column.combine_chunks()
    bounds = np.frombuffer(array.buffers()[1], np.int64)[array.offset :]
    view = memoryview(array.buffers()[2] or b"")
    for start, stop in zip(bounds[places].tolist(), bounds[places + 1].tolist(), strict=True):
        yield view[start:stop]


def _changed(path: Path, record: int) -> InputError:
    return InputError(
        f"{path}: record {record} is not the text that was scanned; "
        "the file changed during the build: build again into another --out"
    )


def _places(records: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the next wanted records stand in a batch's ascending record numbers."""
    if len(records) == 0:
        return np.empty(0, np.int64)
    here = wanted[: np.searchsorted(wanted, records[-1], side="right")]
    return np.searchsorted(records, here).clip(0, len(records) - 1)


def _rows(path: Path, rows: tuple[int, int], named: list[str]) -> pa.Table:
    stat = path.stat()
    file, starts = _row_groups(path, (stat.st_ino, stat.st_mtime_ns))
    groups = list(range(*np.searchsorted(starts, rows, side="left").tolist()))
    return file.read_row_groups(groups, columns=["record", "digest", *named])


@lru_cache(maxsize=8)
def _row_groups(path: Path, _version: tuple[int, int]) -> tuple[pq.ParquetFile, NDArray[np.int64]]:
    """Open a documents.parquet once per process: the file, and where each row group begins."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, np.cumsum([0, *sizes])


def _needs_sql(source: Source) -> bool:
    return bool(source.where or source.identity or source.keep)


def _filter(source: Source, batch: Batch, shape: str | None, dropped: Drops) -> pa.Table:
    """Apply the source's SQL: columns record, text, name and what it keeps."""
    table = batch.table
    if not _needs_sql(source):
        names = pa.nulls(len(table), pa.string())
        return table.select([RECORD, TEXT]).append_column(NAME, names)
    view = "batch" if shape is None else _json_view(source, shape, table)
    kept = [f"CAST(({column}) AS VARCHAR) AS {_name(label(column))}" for column in source.keep]
    name = f"CAST(({source.identity or 'NULL'}) AS VARCHAR) AS {NAME}"
    columns = ", ".join([RECORD, TEXT, name, *kept])
    query = f"SELECT {columns} FROM {view} WHERE ({source.where or 'TRUE'})"
    found = _run(source, query, table)
    dropped["where"] += len(table) - len(found)
    if dropped["where"] == 0:
        del dropped["where"]
    return found


def _json_view(source: Source, shape: str, table: pa.Table) -> str:
    """Return the relation of a batch's JSON records: one column for each key of theirs."""
    columns = widened(orjson.loads(shape), orjson.loads(_structure(table)))
    selected = [RECORD, TEXT]
    if source.text_name:
        selected.append(f"{TEXT} AS {_name(source.text_name)}")  # `line` leaves it out
    if isinstance(columns, dict) and columns:
        structure = _quoted(orjson.dumps(columns).decode())
        selected.append(f"unnest(json_transform(line::JSON, {structure}))")
    return f"(SELECT {', '.join(selected)} FROM batch)"


def _run(source: Source, query: str, table: pa.Table) -> pa.Table:
    connection = _connection()
    connection.register("batch", table)
    try:
        return connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        brief = " ".join(str(error).split("LINE")[0].split())
        parts = {"where": source.where, "identity": source.identity, "keep": ", ".join(source.keep)}
        asked = "; ".join(f"{part}: {sql}" for part, sql in parts.items() if sql)
        raise RecipeError(f"source {source.name}: {asked}: {brief}; mend the SQL") from None
    finally:
        connection.unregister("batch")


@lru_cache(maxsize=1)
def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1, "preserve_insertion_order": True})


def _documents(source: Source, block: str, table: pa.Table, dropped: Drops) -> pa.Table:
    """Turn kept records into documents; one without a visible character is dropped and counted."""
    wanted = schema(source)
    texts: list[Any] = table[TEXT].to_pylist()
    good: list[int] = []
    for i, text in enumerate(texts):
        if text and (source.blank == "keep" or not is_blank(text)):
            good.append(i)
        else:
            dropped.at("no_text" if text is None else "blank", table[RECORD][i].as_py())
    data = [texts[i].encode() for i in good]
    kept = table.take(pa.array(good, pa.int64()))
    columns: dict[str, Any] = {
        "document": pa.nulls(len(good), pa.int64()),
        "file": pa.array([block] * len(good), pa.string()).dictionary_encode(),
        "record": kept[RECORD],
        "name": kept[NAME],
        "digest": pa.array([xxhash.xxh3_128_digest(text) for text in data], pa.binary(16)),
        "characters": pa.array([len(texts[i]) for i in good], pa.int64()),
        "bytes": pa.array([len(text) for text in data], pa.int64()),
    }
    columns |= {label(column): kept[label(column)] for column in source.keep}
    return pa.table(columns).cast(wanted)


def _joined(column: Any) -> bytes:  # noqa: ANN401  a column of binary(16)
    return b"".join(column.to_pylist())


def _sum(table: pa.Table, column: str) -> int:
    return int(table[column].to_numpy().sum()) if table.num_rows else 0


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
