"""The list of everything that a build's sources dropped, in one file."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.prep.documents import dropped
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import UsageError

SUFFIXES = (".parquet", ".jsonl")
SCHEMA = dropped.SCHEMA.insert(0, pa.field("source", pa.dictionary(pa.int32(), pa.string())))
BATCH_ROWS = 1 << 16


def check(path: Path | None) -> None:
    """Raise UsageError for a list that can't be written to, before a build begins."""
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--dropped {path}: must end in .parquet or .jsonl")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--dropped {path}: must be a file in a folder that exists")


def write(folders: Sequence[Path], path: Path) -> None:
    """Write what sealed sources dropped, in their order: columns of SCHEMA, digests in hex in JSON.

    The file is there when it is whole; memory does not grow with it.
    """
    parquet = path.suffix == ".parquet"
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = pq.ParquetWriter(file, SCHEMA, compression="zstd") if parquet else None
        for folder in folders:
            with pq.ParquetFile(folder / dropped.NAME) as source:
                for batch in source.iter_batches(BATCH_ROWS):
                    table = _named(folder.name, pa.Table.from_batches([batch]))
                    if writer is None:
                        file.writelines(_lines(table))
                    else:
                        writer.write_table(table)
        if writer is not None:
            writer.close()


def _named(source: str, table: pa.Table) -> pa.Table:
    names = pa.array([source] * len(table), pa.string()).dictionary_encode()
    return pa.table([names, *table.columns], schema=SCHEMA)


def _lines(table: pa.Table) -> list[bytes]:
    rows = table.to_pylist()
    return [
        orjson.dumps({**row, "digest": row["digest"] and row["digest"].hex()}) + b"\n"
        for row in rows
    ]
