"""Document ranges: which documents of which source each shard of a folder holds, from its spans.

A folder's shards hold its documents in order, so that the few shards that a document is in follow
from the first and the last document of each, and no spans of another shard are read.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.rows.spans import path_of
from crystalmix.prep.runtime.atomic_files import readable, replacing

SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # file name in the folder
        ("source", pa.string()),
        ("first", pa.int64()),  # document
        ("last", pa.int64()),
    ]
)
GROUP_ROWS = 1 << 12
PIECES = ["row", "start", "stop", "source", "document", "offset", "fim"]
Numbers = NDArray[np.int64]


def of_shards(shards: Iterable[Path]) -> pa.Table:
    """Return the ranges of shards, from the statistics of their spans: see SCHEMA."""
    lines: list[dict[str, Any]] = []
    for shard in shards:
        with pq.ParquetFile(readable(path_of(shard)), pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                lines += [{"shard": shard.name, **line} for line in _of_group(file, group)]
    return pa.Table.from_pylist(lines, SCHEMA)


def _of_group(file: pq.ParquetFile, group: int) -> list[dict[str, Any]]:
    """Return the ranges of a row group; its rows are read only where it is of several sources."""
    metadata = file.metadata.row_group(group)
    if metadata.num_rows == 0:
        return []
    names = file.schema_arrow.names
    source, document = (
        metadata.column(names.index(name)).statistics for name in ("source", "document")
    )
    if source is not None and document is not None and source.min == source.max:
        return [{"source": source.min, "first": document.min, "last": document.max}]
    table = file.read_row_group(group, columns=["source", "document"])
    counted = table.group_by("source").aggregate([("document", "min"), ("document", "max")])
    columns = [counted[name].to_pylist() for name in ("source", "document_min", "document_max")]
    return [
        {"source": source, "first": first, "last": last}
        for source, first, last in sorted(zip(*columns, strict=True))
    ]


def write(path: Path, table: pa.Table) -> None:
    """Write ranges, in row groups that are read alone."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=GROUP_ROWS)


class Ranges:
    """The ranges of a folder's shards (SCHEMA); of the file's row groups those asked are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._groups: dict[int, pa.Table] = {}

    def shards(self, documents: dict[str, Numbers]) -> list[str]:
        """Return the names of the shards that may hold documents (ascending, by source)."""
        names: dict[str, None] = {}
        for group, bounds in enumerate(self._bounds):
            if any(_may_hold(bounds, source, own) for source, own in documents.items()):
                names |= dict.fromkeys(_holding(self._group(group), documents))
        return [*names]

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(readable(self.path), pre_buffer=False)

    @cached_property
    def _bounds(self) -> list[list[Any]]:
        """Of each row group the statistics of source, first and last; None where there are none."""
        metadata = self._file.metadata
        return [
            [metadata.row_group(group).column(place).statistics for place in (1, 2, 3)]
            for group in range(metadata.num_row_groups)
        ]

    def _group(self, group: int) -> pa.Table:
        if group not in self._groups:
            self._groups[group] = self._file.read_row_group(group)
        return self._groups[group]


def _may_hold(bounds: list[Any], source: str, documents: Numbers) -> bool:
    """Tell by statistics whether a row group may have a shard that holds documents, ascending."""
    known, first, last = bounds
    if not all(one is not None and one.has_min_max for one in bounds):
        return True
    low, high = np.searchsorted(documents, (first.min, last.max + 1))
    return bool(known.min <= source <= known.max and low < high)


def _holding(table: pa.Table, documents: dict[str, Numbers]) -> list[Any]:
    """Return the shards of ranges that may hold documents."""
    source: Any = table["source"].combine_chunks().dictionary_encode()
    numbers = source.indices.to_numpy()
    first, last = (table[name].to_numpy() for name in ("first", "last"))
    hit = np.zeros(len(table), np.bool_)
    for place, name in enumerate(source.dictionary.to_pylist()):
        own = documents.get(name, np.empty(0, np.int64))
        low = np.searchsorted(own, first, side="left")
        hit |= (numbers == place) & (np.searchsorted(own, last, side="right") > low)
    return table.filter(hit)["shard"].to_pylist()


def pieces(shard: Path, documents: dict[str, Numbers]) -> pa.Table:
    """Return the pieces of documents in a shard; columns PIECES."""
    table = pq.read_table(readable(path_of(shard)), columns=PIECES)
    every = np.unique(np.concatenate([*documents.values(), np.empty(0, np.int64)]))
    kept = table.filter(np.isin(table["document"].to_numpy(), every))
    place = kept.column_names.index("source")
    kept = kept.set_column(place, "source", kept["source"].cast(pa.string()))
    wanted = {(name, d) for name, numbers in documents.items() for d in numbers.tolist()}
    pairs = zip(kept["source"].to_pylist(), kept["document"].to_pylist(), strict=True)
    return kept.filter(np.array([pair in wanted for pair in pairs], np.bool_))
