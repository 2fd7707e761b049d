"""Span tables: which piece of which document each row holds, beside every shard.

`data-00007.spans.parquet` has one line per document piece in a row of `data-00007.h5`. A shuffled
folder has no spans of its own but `data-00007.origin.parquet`: for each row the shard and row it
came from, so that spans are found by one join and never copied.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.runtime.atomic_files import readable, replacing

BUFFER_BYTES = 1 << 18  # of a file that is written, whose columns are small
SPANS = pa.schema(
    [
        ("row", pa.int32()),  # row within the shard
        ("start", pa.int32()),  # first token of the piece in the row
        ("stop", pa.int32()),
        ("source", pa.dictionary(pa.int16(), pa.string())),
        ("document", pa.int64()),  # dense number within the source
        ("offset", pa.int64()),  # first token of the piece in the document's tokens
        ("fim", pa.int8()),  # 0 left to right, 1 PSM, 2 SPM
        ("cut1", pa.int64()),  # where prefix | middle and middle | suffix were cut;
        ("cut2", pa.int64()),  # characters or tokens as the FIM settings say, -1 without FIM
    ]
)
ORIGIN = pa.schema(
    [
        ("row", pa.int32()),
        ("origin", pa.dictionary(pa.int32(), pa.string())),  # folder/shard it came from
        ("origin_row", pa.int32()),
    ]
)


def path_of(shard: Path, kind: str = "spans") -> Path:
    """Return the side file of a shard: `data-00007.spans.parquet`."""
    return shard.with_suffix(f".{kind}.parquet")


def cut(starts: NDArray[np.int64], first: int, last: int, msl: int) -> dict[str, NDArray[np.int64]]:
    """Cut the tokens [first, last) of a stream at document starts and at multiples of msl.

    starts: ascending first tokens of the documents, of which starts[0] <= first.
    Returns columns `row` (counted from first // msl), `start`, `stop`, `document` (index into
    starts) and `offset`, one entry per piece.

    >>> pieces = cut(np.array([0, 3]), 0, 6, 4)
    >>> [pieces[name].tolist() for name in ("row", "start", "stop", "document", "offset")]
    [[0, 0, 1], [0, 3, 0], [3, 4, 2], [0, 1, 1], [0, 0, 1]]
    """
    inside = starts[(starts >= first) & (starts < last)]
    rows = np.arange(first, last, msl, dtype=np.int64)
    begins = np.unique(np.concatenate([inside, rows]))
    ends = np.append(begins[1:], last)
    document = np.searchsorted(starts, begins, side="right") - 1
    row = (begins - first) // msl
    start = (begins - first) % msl
    return {
        "row": row,
        "start": start,
        "stop": start + (ends - begins),
        "document": document,
        "offset": begins - starts[document],
    }


def write(path: Path, table: pa.Table) -> None:
    """Write a side file (spans, origin, documents) under a temporary name and rename it."""
    with (
        replacing(path) as temporary,
        pa.output_stream(str(temporary), buffer_size=BUFFER_BYTES) as file,
    ):
        pq.write_table(table, file, compression="zstd", version="2.6")


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a side file, or some columns; they are small and many: Arrow's datasets cost more."""
    with pq.ParquetFile(readable(path), pre_buffer=False) as file:
        return file.read(columns, use_threads=False)


def of_rows(shard: Path, rows: NDArray[np.int64]) -> pa.Table | None:
    """Return the document pieces of some rows of a shard (`SPANS`); None where none are."""
    own, wanted = path_of(shard), np.unique(rows)
    if own.exists():
        return _of_groups(own, wanted)
    found = origins(shard, wanted)
    tables = list[pa.Table]()
    for packed, before, now in found or ():
        table = of_rows(packed, before)
        if table is None:
            return None
        row_of = dict(zip(before.tolist(), now.tolist(), strict=True))
        moved = pa.array([row_of[row] for row in table["row"].to_pylist()], pa.int32())
        table = table.set_column(0, table.schema.field(0), moved)
        tables.append(table.cast(SPANS))
    return None if found is None else pa.concat_tables(tables).unify_dictionaries()


def origins(
    shard: Path, rows: NDArray[np.int64]
) -> list[tuple[Path, NDArray[np.int64], NDArray[np.int64]]] | None:
    """Return the shards that rows came from, the rows there and here; None without such a table."""
    path = path_of(shard, "origin")
    if not path.exists():
        return None
    table = _of_groups(path, np.unique(rows))
    names: list[Any] = table["origin"].to_pylist()
    before, now = (table[name].to_numpy().astype(np.int64) for name in ("origin_row", "row"))
    found = [(name, np.array([other == name for other in names])) for name in sorted(set(names))]
    return [(shard.parents[1] / name, before[here], now[here]) for name, here in found]


def of_packed(shard: Path, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table | None:
    """Return columns of what `of_rows` does, `row` first, of a shard that has its own spans."""
    own = path_of(shard)
    return _of_groups(own, np.unique(rows), ["row", *columns]) if own.exists() else None


def _of_groups(
    path: Path, rows: NDArray[np.int64], columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the lines of some rows, ascending: of the file's row groups those that hold one."""
    with pq.ParquetFile(readable(path), pre_buffer=False) as file:
        groups = list[int]()
        for group in range(file.num_row_groups):
            known: Any = file.metadata.row_group(group).column(0).statistics
            low, high = (known.min, known.max) if known else (rows[0], rows[-1])
            if np.searchsorted(rows, high, side="right") > np.searchsorted(rows, low):
                groups.append(group)
        chosen = None if columns is None else [*columns]
        table = file.read_row_groups(groups, chosen, use_threads=False)
    return table.filter(np.isin(table["row"].to_numpy(), rows))


def tokens(path: Path) -> int:
    """Return how many tokens the spans of a shard cover: its inputs without the padding."""
    table = read(path, ["start", "stop"])
    return int((table["stop"].to_numpy() - table["start"].to_numpy()).sum())
