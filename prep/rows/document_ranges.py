"""Document ranges: which documents of which source each shard of a folder holds, from its spans.

A folder's shards hold its documents in order, so that the few shards that a document is in follow
from the first and the last document of each, and no spans of another shard are read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.rows.spans import path_of

SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # file name in the folder
        ("source", pa.string()),
        ("first", pa.int64()),  # document
        ("last", pa.int64()),
    ]
)
PIECES = ["row", "start", "stop", "source", "document", "offset", "fim"]
Numbers = NDArray[np.int64]


def of_shards(shards: Iterable[Path]) -> pa.Table:
    """Return the ranges of shards, from the statistics of their spans: see SCHEMA."""
    lines: list[dict[str, Any]] = []
    for shard in shards:
        with pq.ParquetFile(path_of(shard)) as file:
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


@dataclass(frozen=True)
class Ranges:
    """The ranges of a folder's shards (SCHEMA)."""

    table: pa.Table

    def shards(self, documents: dict[str, Numbers]) -> list[str]:
        """Return the names of the shards that may hold documents (ascending, by source)."""
        lines = [np.empty(0, np.int64)]
        for name, numbers in documents.items():
            mine = self._by_source.get(name)
            if mine is not None:
                place, first, last = mine
                low = np.searchsorted(numbers, first, side="left")
                lines.append(place[np.searchsorted(numbers, last, side="right") > low])
        hit = pa.array(np.sort(np.concatenate(lines)), pa.int64())
        names: list[Any] = self.table["shard"].take(hit).to_pylist()
        return list(dict.fromkeys(names))

    @cached_property
    def _by_source(self) -> dict[str, tuple[Numbers, Numbers, Numbers]]:
        """Of each source its lines, and their first and last documents."""
        source: Any = self.table["source"].combine_chunks().dictionary_encode()
        numbers = source.indices.to_numpy()
        first, last = (self.table[name].to_numpy() for name in ("first", "last"))
        lines = [np.flatnonzero(numbers == place) for place in range(len(source.dictionary))]
        return {
            name: (own, first[own], last[own])
            for name, own in zip(source.dictionary.to_pylist(), lines, strict=True)
        }


def pieces(shard: Path, documents: dict[str, Numbers]) -> pa.Table:
    """Return the pieces of documents in a shard; columns PIECES."""
    table = pq.read_table(path_of(shard), columns=PIECES)
    every = np.unique(np.concatenate([*documents.values(), np.empty(0, np.int64)]))
    kept = table.filter(np.isin(table["document"].to_numpy(), every))
    place = kept.column_names.index("source")
    kept = kept.set_column(place, "source", kept["source"].cast(pa.string()))
    wanted = {(name, d) for name, numbers in documents.items() for d in numbers.tolist()}
    pairs = zip(kept["source"].to_pylist(), kept["document"].to_pylist(), strict=True)
    return kept.filter(np.array([pair in wanted for pair in pairs], np.bool_))
