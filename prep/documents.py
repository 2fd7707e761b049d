"""Documents: the texts of a source that are kept, each with an identity, and what was dropped.

`scan` reads one block of a source (a raw file), drops what is no document or fails the source's
SQL `where`, and counts every drop under a reason. `merge` numbers the documents of all blocks
densely and writes `documents.parquet`, one row group per block. `texts` reads a block's kept
documents again, for tokenising, and refuses a file that changed in between.
"""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from prep.errors import InputError, RecipeError
from prep.sources import Batch, Document, Source, is_json, read
from prep.spans import write as write_table

VERSION = 1
SAMPLE_FILES = 8
IDENTITY = [
    ("document", pa.int64()),  # dense number within the source
    ("file", pa.dictionary(pa.int32(), pa.string())),
    ("record", pa.int64()),  # line or row number in the file, from 0
    ("name", pa.string()),
    ("digest", pa.binary(16)),  # xxh3-128 of the text's UTF-8
    ("characters", pa.int64()),
    ("bytes", pa.int64()),
]


EMPTY_ROWS = pa.schema([("record", pa.int64()), ("digest", pa.binary(16))]).empty_table()


def schema(source: Source) -> pa.Schema:
    """Return the columns of a source's documents.parquet: identity, then what it keeps."""
    return pa.schema([*IDENTITY, *((label(column), pa.string()) for column in source.keep)])


def label(column: str) -> str:
    """Return the column name of a kept expression: the last step of a dotted path."""
    return column.rsplit(".", 1)[-1].strip('"')


def structure(source: Source, root: Path, blocks: list[str]) -> str | None:
    """Infer the JSON structure of a source's records from its first blocks, for its SQL.

    Returns None where no SQL is asked or the blocks carry a schema of their own.
    """
    if not _needs_sql(source) or not blocks or not is_json(source, blocks[0]):
        return None
    sample: list[pa.Table] = []
    for block in [name for name in blocks if is_json(source, name)][:SAMPLE_FILES]:
        sample.extend(batch.table.select(["line"]) for batch in _first(source, root, block))
    if not sample:
        return "{}"
    lines = pa.concat_tables(sample)
    query = "SELECT json_group_structure(line::JSON) FROM lines"
    found = duckdb.connect().register("lines", lines).execute(query).fetchone()
    return found[0] if found and found[0] else "{}"


def _first(source: Source, root: Path, block: str) -> Iterator[Batch]:
    for batch in read(source, root, block, lines=True):
        yield batch
        return


def scan(source: Source, root: Path, block: str, shape: str | None, out: Path) -> dict[str, Any]:
    """Write one block's documents (unnumbered) to `out` and return its account.

    The account: records, documents, characters, bytes, dropped (reason -> records), text_digest
    (over the documents in order). Raises InputError when more than `max_bad_records` are broken.
    """
    dropped: Counter[str] = Counter()
    tables: list[pa.Table] = []
    records = 0
    for batch in read(source, root, block, lines=shape is not None):
        records += len(batch.table) + len(batch.bad)
        _count_bad(source, root / block, batch, dropped)
        tables.append(_documents(source, block, _filter(source, batch, shape, dropped), dropped))
    table = pa.concat_tables(tables) if tables else schema(source).empty_table()
    write_table(out, table)
    return {
        "block": block,
        "records": records,
        "documents": table.num_rows,
        "characters": _sum(table, "characters"),
        "bytes": _sum(table, "bytes"),
        "dropped": dict(sorted(dropped.items())),
        "text_digest": xxhash.xxh3_128_hexdigest(_joined(table["digest"])),
    }


def merge(source: Source, parts: list[Path], out: Path) -> None:
    """Join the blocks' documents, numbered from 0 in block order, one row group per block."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    first = 0
    with pq.ParquetWriter(temporary, schema(source), compression="zstd") as writer:
        for part in parts:
            table = pq.read_table(part, schema=schema(source))
            numbers = pa.array(np.arange(first, first + table.num_rows), pa.int64())
            table = table.set_column(0, schema(source).field("document"), numbers)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            first += table.num_rows
    temporary.replace(out)


def texts(
    source: Source, root: Path, block: str, documents: Path, rows: tuple[int, int]
) -> Iterator[Document]:
    """Yield a block's documents in order; rows = [first, stop) in documents.parquet.

    Raises InputError where the raw file no longer holds the text that was scanned.
    """
    table = _rows(documents, rows)
    wanted = table["record"].to_numpy()
    digests = table["digest"].to_pylist()
    done = 0
    for batch in read(source, root, block):
        if done == len(wanted):
            return
        records = batch.table["record"].to_numpy()
        places = _places(records, wanted[done:])
        column: Any = batch.table["text"]
        for place in places.tolist():
            text = column[place].as_py()
            digest = xxhash.xxh3_128_digest((text or "").encode())
            if digest != digests[done]:
                raise _changed(root / block, wanted[done])
            yield Document(rows[0] + done, int.from_bytes(digest[8:], "big"), text)
            done += 1
    if done != len(wanted):
        raise _changed(root / block, wanted[done])


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


def _rows(path: Path, rows: tuple[int, int]) -> pa.Table:
    file = pq.ParquetFile(path)
    first, parts = 0, []
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if first >= rows[0] and first + size <= rows[1] and size:
            parts.append(file.read_row_group(group, columns=["record", "digest"]))
        first += size
    file.close()
    return pa.concat_tables(parts) if parts else EMPTY_ROWS


def _needs_sql(source: Source) -> bool:
    return bool(source.where or source.identity or source.keep)


def _count_bad(source: Source, path: Path, batch: Batch, dropped: Counter[str]) -> None:
    for record, reason in batch.bad:
        dropped[reason.split(":")[0]] += 1
        if sum(dropped[kind] for kind in ("bad_json",)) > source.max_bad_records:
            raise InputError(
                f"{path}:{record + 1}: {reason.replace(': ', ' (', 1)}); mend the line or set "
                f"max_bad_records above {source.max_bad_records} in source {source.name}"
            )


def _filter(source: Source, batch: Batch, shape: str | None, dropped: Counter[str]) -> pa.Table:
    """Apply the source's SQL: columns record, text, name and what it keeps."""
    table = batch.table
    if not _needs_sql(source):
        names = pa.nulls(len(table), pa.string())
        return table.select(["record", "text"]).append_column("name", names)
    view = "batch"
    if shape is not None:
        columns = f"unnest(json_transform(line::JSON, {_quoted(shape)}))"
        view = f"(SELECT record AS __record, text AS __text, {columns} FROM batch)"
    else:
        view = "(SELECT record AS __record, text AS __text, * FROM batch)"
    kept = [f"CAST(({column}) AS VARCHAR) AS {_name(label(column))}" for column in source.keep]
    name = f"CAST(({source.identity or 'NULL'}) AS VARCHAR) AS __name"
    query = (
        f"SELECT {', '.join(['__record', '__text', name, *kept])} FROM {view} "
        f"WHERE ({source.where or 'TRUE'})"
    )
    found = _run(source, query, table)
    dropped["where"] += len(table) - len(found)
    if dropped["where"] == 0:
        del dropped["where"]
    return found.rename_columns(["record", "text", "name", *map(label, source.keep)])


def _run(source: Source, query: str, table: pa.Table) -> pa.Table:
    connection = _connection()
    connection.register("batch", table)
    try:
        return connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        brief = " ".join(str(error).split("LINE")[0].split())
        asked = f"where: {source.where}" if source.where else f"identity: {source.identity}"
        raise RecipeError(f"source {source.name}: {asked}: {brief}; mend the SQL") from None
    finally:
        connection.unregister("batch")


@lru_cache(maxsize=1)
def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1, "preserve_insertion_order": True})


def _documents(source: Source, block: str, table: pa.Table, dropped: Counter[str]) -> pa.Table:
    """Turn kept records into documents; a null or empty text is dropped and counted."""
    texts: list[Any] = table["text"].to_pylist()
    good = [i for i, text in enumerate(texts) if text]
    missing = sum(text is None for text in texts)
    for reason, count in (("no_text", missing), ("empty", len(texts) - len(good) - missing)):
        if count:
            dropped[reason] += count
    data = [texts[i].encode() for i in good]
    kept = table.take(pa.array(good, pa.int64()))
    columns: dict[str, Any] = {
        "document": pa.nulls(len(good), pa.int64()),
        "file": pa.array([block] * len(good), pa.string()).dictionary_encode(),
        "record": kept["record"],
        "name": kept["name"],
        "digest": pa.array([xxhash.xxh3_128_digest(text) for text in data], pa.binary(16)),
        "characters": pa.array([len(texts[i]) for i in good], pa.int64()),
        "bytes": pa.array([len(text) for text in data], pa.int64()),
    }
    columns |= {label(column): kept[label(column)] for column in source.keep}
    return pa.table(columns).cast(schema(source))


def _joined(column: Any) -> bytes:  # noqa: ANN401  a column of binary(16)
    return b"".join(column.to_pylist())


def _sum(table: pa.Table, column: str) -> int:
    return int(table[column].to_numpy().sum()) if table.num_rows else 0


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
