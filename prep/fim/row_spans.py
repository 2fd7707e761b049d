"""Account and spans of a shard's rows after row-level FIM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crystalmix.prep.fim.segments import LEFT_TO_RIGHT, Ints, Permuted, Segments, totals, within
from crystalmix.prep.rows import shards, spans

NEW = ("row", "start", "stop", "fim", "cut1", "cut2", "origin")
BLOCK_ROWS = 128
Keep = Callable[[Path, int, Iterable[shards.Rows]], shards.Shard]


@dataclass
class Account:
    """What a shard's permutation added and dropped, in tokens."""

    sentinels: int = 0
    recut: int = 0  # tokens gained (or lost) where cuts fell within tokens
    overflow: int = 0
    permuted: int = 0
    ends: int = 0  # EOS left out: only the original does so

    def add(self, segments: Segments, made: Permuted, msl: int, left_out: int = 0) -> None:
        """Add a block; left_out: the EOS that were left out of it."""
        permuted = int((made.plans.form != LEFT_TO_RIGHT).sum())
        used = totals(made.runs.lengths, made.runs.ends)
        before = int((segments.stop - segments.start).sum())
        self.permuted += permuted
        self.sentinels += 3 * permuted
        self.ends += left_out
        self.recut += int(used.sum()) - before - 3 * permuted + left_out
        self.overflow += int(np.maximum(used - msl, 0).sum())


class Pieces:
    """Collects the spans of a shard's permuted rows, block by block."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in NEW}

    def add(self, first: int, origin: Ints, segments: Segments, made: Permuted, msl: int) -> None:
        """Add the segments of a block: its first row, and their places in the source's spans."""
        start = within(segments, made.lengths)
        stop = np.minimum(start + made.lengths, msl)
        plans = made.plans
        values = (segments.row + first, start, stop, plans.form, plans.first, plans.second, origin)
        for name, value in zip(NEW, values, strict=True):
            self._columns[name].append(value[start < stop])

    def table(self, source: pa.Table) -> pa.Table:
        """Return the spans: the source's document and offset, the rows and cuts of here."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        owner = source.take(pa.array(columns["origin"], pa.int64()))
        arrays = [
            pa.array(columns[field.name]).cast(field.type)
            if field.name in columns
            else owner[field.name].combine_chunks()
            for field in spans.SPANS
        ]
        return pa.table(arrays, schema=spans.SPANS)


@dataclass(frozen=True)
class Packed:
    """The packed rows of a shard in order, some at a time, and their spans."""

    rows: int
    blocks: Iterable[shards.Rows]
    spans: pa.Table

    @classmethod
    def of(cls, shard: Path) -> Packed:
        """Return the rows of a shard that is written."""
        table = spans.read(spans.path_of(shard))
        return cls(shards.shape(shard)[0], shards.blocks(shard, BLOCK_ROWS), table)


def permuted(
    packed: Packed,
    out: Path,
    blocks: Callable[[Packed, Account, Pieces], Iterator[shards.Rows]],
    keep: Keep = shards.write,
) -> tuple[shards.Shard, Account]:
    """Write the permuted rows of a shard, and their spans, to `out`.

    blocks: yields them, and adds each block to account and pieces. keep: writes rows, or counts.
    """
    account, pieces = Account(), Pieces()
    shard = keep(out, packed.rows, blocks(packed, account, pieces))
    spans.write(spans.path_of(out), pieces.table(packed.spans))
    return shard, account


def segments_of(block: shards.Rows, table: pa.Table, first: int) -> tuple[Segments, Ints]:
    """Return the segments of a shard's rows from `first` on, and their places in its spans."""
    rows, _, msl = block.shape
    low, high = np.searchsorted(table["row"].to_numpy(), [first, first + rows])
    part = table.slice(low, high - low)
    row = part["row"].to_numpy().astype(np.int64) - first
    start, stop = (part[name].to_numpy().astype(np.int64) for name in ("start", "stop"))
    ids = np.ascontiguousarray(block[:, 0]).reshape(-1)
    begins = part["offset"].to_numpy() == 0
    segments = Segments(ids, rows, row, row * msl + start, row * msl + stop, begins)
    return segments, np.arange(low, high)
