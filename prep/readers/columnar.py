"""Columnar files: parquet and Arrow IPC in bounded batches, and any Arrow table as records.

Only the text and what the source's SQL names is read. A cell that is no UTF-8 or too long is a
broken record, counted; the rows beside it are kept.
"""

import struct
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crystalmix.prep.readers.arrow_buffers import largest_batch
from crystalmix.prep.readers.batch import (
    BATCH_BYTES,
    BATCH_ROWS,
    RECORD,
    TEXT,
    Bad,
    Batch,
    Request,
    Steps,
    step_into,
    value_name,
)
from crystalmix.prep.readers.files import HEAD, Reads, check_head
from crystalmix.prep.readers.parquet_pages import largest_page
from crystalmix.prep.runtime.errors import BrokenFile, CrystalmixError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.types import Column

# A dictionary may spell one long cell for every row: few rows at a time bound what that takes.
STEP_ROWS = 4
PAGE_RECORDS = 4  # a page, which is unpacked whole, may be so many times max_record_bytes
BATCH_RECORDS = 8  # the same of a compressed batch of Arrow IPC
LONG_ROW = 1 << 18  # bytes: of a row group with longer rows, one at a time
TEXT_KINDS = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
)
LOOSE = pc.CastOptions(target_type=pa.large_string(), allow_invalid_utf8=True)
Raw = Iterator[Any]  # of pa.RecordBatch
File = BinaryIO | Reads | str


def parquet(file: File, request: Request) -> Iterator[Batch]:
    """Yield a parquet file's rows; BrokenFile where it can't be read, NoColumn without a text.

    A path is opened once.
    """
    try:
        with (
            pa.OSFile(file, mode="r")
            if isinstance(file, str)
            else nullcontext(cast(Any, file)) as raw
        ):
            check_head(request.place, raw.read(HEAD))
            raw.seek(0)
            with pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20) as opened:
                columns = _chosen(opened.schema_arrow.names, request)
                _check_pages(raw, opened, columns, request)
                rows = opened.iter_batches(_step(opened), columns=columns, use_threads=False)
                yield from _batches(rows, request)
    except (pa.ArrowException, OSError, RuntimeError) as error:
        raise _fault(request, "parquet", error) from None


def _check_pages(raw: object, opened: pq.ParquetFile, columns: list[str], request: Request) -> None:
    """Raise BrokenFile where a page would take more memory than a worker may have."""
    most = PAGE_RECORDS * request.max_record_bytes
    try:
        size = largest_page(cast(BinaryIO, raw), opened.metadata, columns, most)
    except (ValueError, IndexError) as error:
        raise _fault(request, "parquet", error) from None
    if size:
        raise BrokenFile(
            f"{request.place}: a page of {size >> 20} MiB, over {PAGE_RECORDS} times "
            "max_record_bytes; write it with smaller pages, or raise max_record_bytes",
            "too_long",
        )


def arrow(file: File, request: Request) -> Iterator[Batch]:
    """Yield the rows of an Arrow IPC file or stream; errors as of `parquet`."""
    try:
        with (
            pa.memory_map(file)
            if isinstance(file, str)
            else pa.PythonFile(cast(Any, file), mode="r") as opened
        ):
            head = opened.read(HEAD)
            check_head(request.place, head)
            _check_batches(opened, request)
            is_file = head.startswith(b"ARROW1")
            opened.seek(0)
            reader = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)
            columns = _chosen(reader.schema.names, request)
            yield from _batches(_steps(reader, columns), request)
    except (pa.ArrowException, OSError, RuntimeError) as error:
        raise _fault(request, "Arrow IPC", error) from None


def _check_batches(file: Any, request: Request) -> None:  # noqa: ANN401  a pa.NativeFile
    """Raise BrokenFile where a batch would take more memory than a worker may have."""
    try:
        size = largest_batch(file)
    except (struct.error, IndexError):
        return  # Arrow says what is wrong with it
    if size > BATCH_RECORDS * request.max_record_bytes:
        raise BrokenFile(
            f"{request.place}: a compressed batch unpacks to {size >> 20} MiB, over "
            f"{BATCH_RECORDS} times max_record_bytes; write it in smaller batches, or raise "
            "max_record_bytes",
            "too_long",
        )


def as_batch(table: pa.Table, request: Request, first: int) -> Batch:
    """Return rows numbered from `first` as records: RECORD, TEXT, then what the SQL names."""
    texts: Any = pa.nulls(len(table), pa.large_string())
    if request.text and _is_text((text := _column(table, request.text, request)).type):
        cast: Any = text.cast  # its stub lacks `options`
        texts = cast(options=LOOSE)
    chosen: dict[str, Any] = {RECORD: pa.array(range(first, first + len(table)), pa.int64())}
    chosen[TEXT] = texts
    absent: set[Steps] = set()
    for number, path in enumerate(request.paths):
        value = texts if request.is_text(path) else _value(table, request.theirs(path))
        if value is None:
            absent.add(path)
        chosen[value_name(number)] = pa.nulls(len(table)) if value is None else value
    for path in request.columns.values():
        _column(table, path, request)  # a file lacks it, or not
    batch = _without_bad(pa.table(chosen), request, first)
    return replace(batch, absent=frozenset(absent))


def _chosen(names: list[str], request: Request) -> list[str]:
    """Return the columns to read; NoColumn where the text's is not there, or there twice."""
    roots: set[str] = set()
    for path in filter(None, (request.text, *request.columns.values())):
        step = step_into(names, tuple(path.split(".")), any_case=False)
        if step is None or names.count(step[0]) != 1:
            raise request.no_column(path, names)
        roots.add(step[0])
    for path in request.paths:
        step = step_into(names, request.theirs(path))
        if step is not None and names.count(step[0]) == 1:
            roots.add(step[0])
    return [name for name in names if name in roots]


def _column(table: pa.Table, path: str, request: Request) -> Column:
    value = _value(table, tuple(path.split(".")), any_case=False)
    if value is None:
        step = step_into(table.column_names, tuple(path.split(".")))
        has = table.column_names if step is None else _names(table.column(step[0]))
        raise request.no_column(path, has)
    return value


def _value(column: Any, path: Steps, *, any_case: bool = True) -> Any:  # noqa: ANN401
    """Return the column at a path of a table or a column; None where there is none."""
    while path:
        if not isinstance(column, pa.Table) and pa.types.is_map(column.type):
            column, path = pc.map_lookup(column, pa.scalar(path[0]), "first"), path[1:]
            continue
        step = step_into(_names(column), path, any_case=any_case)
        if step is None:
            return None
        at_top, number = isinstance(column, pa.Table), _names(column).index(step[0])
        column = column.column(number) if at_top else pc.struct_field(column, [number])
        path = step[1]
    return column


def _names(column: Any) -> list[str]:  # noqa: ANN401  a table or one of its columns
    if isinstance(column, pa.Table):
        return column.column_names
    return [field.name for field in column.type] if pa.types.is_struct(column.type) else []


def _is_text(kind: Any) -> bool:  # noqa: ANN401  an Arrow type
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(is_kind(kind) for is_kind in TEXT_KINDS)


def _batches(rows: Raw, request: Request) -> Iterator[Batch]:
    """Join small batches to larger ones, bounded in rows and bytes."""
    waiting: list[Any] = []
    first = count = size = 0
    for batch, memory in (part for table in rows for part in _parts(table)):
        if waiting and count + batch.num_rows > BATCH_ROWS:
            yield as_batch(pa.Table.from_batches(waiting).combine_chunks(), request, first)
            waiting, first, count, size = [], first + count, 0, 0
        waiting.append(batch)
        count += batch.num_rows
        size += memory
        if count >= BATCH_ROWS or size >= BATCH_BYTES:
            yield as_batch(pa.Table.from_batches(waiting).combine_chunks(), request, first)
            waiting, first, count, size = [], first + count, 0, 0
    if waiting:
        yield as_batch(pa.Table.from_batches(waiting).combine_chunks(), request, first)


def _step(file: pq.ParquetFile) -> int:
    """Return how many rows to read at a time: more where no row can be long."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    longest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    largest = max((group.total_byte_size for group in groups), default=0)  # one row may repeat it
    small = min(BATCH_ROWS, BATCH_BYTES // max(1, largest))
    return 1 if longest > LONG_ROW else max(STEP_ROWS, small)


def _parts(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield a batch and its bytes; one of long rows row by row, for what follows copies them."""
    size = batch.nbytes
    if size > BATCH_BYTES:
        yield from ((batch.slice(i, 1), size // batch.num_rows) for i in range(batch.num_rows))
    elif batch.num_rows:
        yield batch, size


def _steps(reader: Any, columns: list[str]) -> Raw:  # noqa: ANN401  a reader of IPC
    many = getattr(reader, "num_record_batches", None)
    batches = (reader.get_batch(i) for i in range(many)) if many is not None else iter(reader)
    for whole in batches:
        batch = whole.select(columns)
        batch.validate()  # offsets that lead out of their buffers crash who follows them
        for start in range(0, batch.num_rows, STEP_ROWS):
            yield batch.slice(start, STEP_ROWS)


def _without_bad(table: pa.Table, request: Request, first: int) -> Batch:
    bad: dict[int, Bad] = {}
    sizes = pc.binary_length(table[TEXT]).fill_null(0).to_numpy()
    for row in np.flatnonzero(sizes > request.max_record_bytes).tolist():
        detail = f"over max_record_bytes, {request.max_record_bytes}"
        bad[row] = Bad(first + row, "too_long", detail)
    for name in table.column_names:
        for row in _not_utf8(table[name]):
            bad.setdefault(row, Bad(first + row, "not_utf8", f"column {_shown(name, request)}"))
    if not bad:
        return Batch(table)
    good = [row for row in range(len(table)) if row not in bad]
    return Batch(table.take(pa.array(good, pa.int64())), tuple(bad[row] for row in sorted(bad)))


def _not_utf8(column: Column) -> list[int]:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error).upper().replace("-", ""):
            raise
    else:
        return []
    rows: list[int] = []
    for row in range(len(column)):
        try:
            column[row].as_py()
        except UnicodeDecodeError:
            rows.append(row)
    return rows


def _shown(name: str, request: Request) -> str:
    if name == TEXT:
        return request.text
    return ".".join(request.paths[int(name.removeprefix(value_name(0)[:-1]))])


def _fault(request: Request, kind: str, error: Exception) -> CrystalmixError:
    """Return the machine's trouble, or what the bytes prove."""
    if trouble := machine_error(error, request.place):
        return trouble
    brief = (str(error).splitlines() or [type(error).__name__])[0]
    return BrokenFile(
        f"{request.place}: can't be read as {kind} ({brief}); restore the file", "corrupt"
    )
