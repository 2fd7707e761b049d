"""Parquet to JSON lines, byte for byte as the original's parquet2jsonl.py writes it.

One line a row, `content` called `text`, every other column kept; ASCII only, `/` as `\\/`; an
integer column that holds a null anywhere in its file is written as floats. pandas writes the lines,
as there. Unlike there a file is written whole or not at all, and never appended to.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.machine import machine, machine_error

BATCH_ROWS = 1024


def convert_all(folder: Path, out: Path) -> Iterator[tuple[Path, int]]:
    """Write every parquet file below a folder to the same place below `out`, by name.

    Yields each written file and its lines. Raises InputError where there is no parquet file, or
    where something of such a name is no file: a FIFO, a device, a link that leads nowhere.
    """
    paths = sorted(path for path in folder.rglob("*.parquet") if not path.is_dir())
    if odd := [path for path in paths if not path.is_file()]:
        raise InputError(f"{odd[0]}: is no regular file; take it out of {folder}")
    if not paths:
        raise InputError(f"{folder}: holds no .parquet file; name the folder that does")
    for path in paths:
        target = (out / path.relative_to(folder)).with_suffix(".jsonl")
        yield target, convert(path, target)


def convert(parquet: Path, out: Path) -> int:
    """Write a parquet file as JSON lines; return how many.

    Raises InputError for a file that is no whole parquet file or has no column `content`.
    """
    lines = 0
    try:
        with pq.ParquetFile(parquet, pre_buffer=False) as file, replacing(out) as temporary:
            schema = _schema(parquet, file)
            with machine(out), temporary.open("wb") as target:
                for batch in file.iter_batches(batch_size=BATCH_ROWS):
                    frame = pa.Table.from_batches([batch]).cast(schema).to_pandas()
                    rows = frame.rename(columns={"content": "text"})
                    target.write(str(rows.to_json(orient="records", lines=True)).encode())
                    lines += len(rows)
    except (pa.ArrowException, OSError) as error:
        if trouble := machine_error(error, getattr(error, "filename", None) or parquet):
            raise trouble from None
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{parquet}: can't be read as parquet ({brief}); restore the file"
        ) from None
    return lines


def _schema(parquet: Path, file: pq.ParquetFile) -> pa.Schema:
    """Return the file's schema, with integers that are null somewhere as floats."""
    schema = file.schema_arrow
    if "content" not in schema.names:
        raise InputError(
            f"{parquet}: has no column 'content' (it has {', '.join(schema.names)}); "
            "is it StarCoder data?"
        )
    for i, field in enumerate(schema):
        if pa.types.is_integer(field.type) and _has_null(file, field.name):
            schema = schema.set(i, field.with_type(pa.float64()))
    return schema


def _has_null(file: pq.ParquetFile, column: str) -> bool:
    batches = file.iter_batches(batch_size=BATCH_ROWS, columns=[column])
    return any(batch.column(0).null_count for batch in batches)
