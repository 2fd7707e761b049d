"""Merging: the documents of all blocks in one file, without those that are not chosen.

`merge` leaves out what the choice between documents drops (duplicates, near-duplicates, all after
`limit`), numbers the others densely and joins the records of what was dropped, block by block.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.documents import dropped
from crystalmix.prep.documents.dropped import DropList, Write, growing
from crystalmix.prep.documents.schema import Tally, schema, side
from crystalmix.prep.documents.source import Source
from crystalmix.prep.runtime.atomic_files import replacing

BATCH_ROWS = 1 << 16
NEAR = "near"


@dataclass(frozen=True)
class Removed:
    """Documents of one block that are left out: records ascending, with reason and detail."""

    records: NDArray[np.int64]
    reasons: list[str]
    details: list[str | None]


@dataclass(frozen=True)
class Choice:
    """What is chosen of a source's documents: not those `removed` of a block, then `limit`.

    width: bytes of a signature, 0 where there are none.
    """

    removed: Callable[[int], Removed]
    limit: int | None = None
    width: int = 0


EVERYTHING = Choice(lambda _: Removed(np.empty(0, np.int64), [], []))


def merge(
    source: Source, parts: list[Path], out: Path, choice: Choice = EVERYTHING
) -> list[dict[str, Any]]:
    """Join the blocks' documents, numbered from 0 in block order; row groups keep within a block.

    dropped.parquet, and the signatures where there are any, go beside `out`. Returns for each block
    documents, characters, bytes, text_digest of what is kept, and what was dropped by reason.
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        columns = schema(source)
        writer = enter(pq.ParquetWriter(enter(replacing(out)), columns, compression="zstd"))
        drop = enter(growing(out.with_name(dropped.NAME), dropped.SCHEMA))
        sign: Callable[[bytes], object] = len
        if choice.width:
            sign = enter(enter(replacing(out.with_name(NEAR))).open("wb")).write
        output = _Writer(columns, choice, writer.write_table, drop, sign)
        return [output.add(number, part) for number, part in enumerate(parts)]


class _Writer:
    """Writer of the merged files of a source, block after block."""

    def __init__(
        self,
        columns: pa.Schema,
        choice: Choice,
        write: Write,
        drop: Write,
        sign: Callable[[bytes], object],
    ) -> None:
        self.columns, self.choice = columns, choice
        self.write, self.drop, self.sign = write, drop, sign
        self.documents = 0

    def add(self, number: int, part: Path) -> dict[str, Any]:
        """Join one block; return its account."""
        with pq.ParquetFile(side(part, "dropped")) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                self.drop(pa.Table.from_batches([batch]))
        removed, tally = self.choice.removed(number), Tally()
        counts: Counter[str] = Counter()
        row = 0  # of the block, of a batch's first document
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                table = pa.Table.from_batches([batch])
                kept = self._kept(table, removed, counts)
                if self.choice.width:
                    self._sign(side(part, "near"), row + np.flatnonzero(kept))
                row += len(table)
                self._write(table.filter(kept), tally)
        return {**tally.account(), "dropped": dict(sorted(counts.items()))}

    def _kept(self, table: pa.Table, removed: Removed, counts: Counter[str]) -> NDArray[np.bool_]:
        """Return a mask of the rows that stay; drop the others."""
        records = table["record"].to_numpy()
        places = np.flatnonzero(np.isin(removed.records, records)).tolist()
        removals: dict[Any, tuple[str, str | None]] = {
            int(removed.records[i]): (removed.reasons[i], removed.details[i]) for i in places
        }
        mask = ~np.isin(records, removed.records)
        if self.choice.limit is not None:
            over = mask & (np.cumsum(mask) > self.choice.limit - self.documents)
            removals |= dict.fromkeys(records[over].tolist(), ("limit", None))
            mask &= ~over
        if removals:
            drops, others = DropList(table["file"][0].as_py(), self.drop), table.filter(~mask)
            why = [removals[record] for record in others["record"].to_pylist()]
            drops.add(
                others["record"],
                [reason for reason, _ in why],
                digest=others["digest"],
                name=others["name"],
                detail=[detail for _, detail in why],
            )
            counts.update(drops.counts)
        return mask

    def _sign(self, path: Path, rows: NDArray[np.int64]) -> None:
        if len(rows):
            self.sign(np.memmap(path, "u1", "r").reshape(-1, self.choice.width)[rows].tobytes())

    def _write(self, table: pa.Table, tally: Tally) -> None:
        if table.num_rows == 0:
            return
        numbers = np.arange(self.documents, self.documents + table.num_rows)
        columns = [pa.array(numbers, pa.int64()), *table.columns[1:]]
        self.write(pa.table(columns, schema=self.columns))
        self.documents += table.num_rows
        tally.add(table)
