"""Merging: the documents of all blocks in one file, without those that are not chosen.

`merge` leaves out what the choice between documents drops (duplicates, near-duplicates, all after
`limit`), numbers the others densely and joins the records of what was dropped, block by block. Of
many documents work items write pieces, whose bytes are then joined to the same file.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.documents import dropped
from crystalmix.prep.documents.dropped import DropList, Gathered, Write, growing
from crystalmix.prep.documents.schema import KeptBlock, Tally, schema, side
from crystalmix.prep.documents.source import Source
from crystalmix.prep.readers import parquet_join
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.records import quick_record
from crystalmix.prep.runtime.types import Json

if TYPE_CHECKING:
    from crystalmix.prep.engines.engine import Engine

BATCH_ROWS = 1 << 16
GROUP_BYTES = 1 << 25  # of a row group, in memory, unless one batch has more
ITEM_DOCUMENTS = 1 << 20  # of a work item, unless one block has more
NEAR = "near"
REMOVED = pa.schema(
    [
        ("block", pa.int32()),
        ("record", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


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


@dataclass(frozen=True)
class Items:
    """Who runs work items, and the folder through which they pass files."""

    pool: "Engine"
    folder: Path


@dataclass(frozen=True)
class Piece:
    """Work item: blocks of a source that follow each other, as a piece of its documents.

    out: the piece. removed: a file of what is left out, by place in `parts` (REMOVED). first: the
    documents kept before them. limit, width: of the choice.
    """

    source: Source
    parts: tuple[Path, ...]
    out: Path
    removed: Path
    first: int
    limit: int | None
    width: int


def merge(
    source: Source,
    parts: Sequence[Path],
    out: Path,
    choice: Choice = EVERYTHING,
    items: Items | None = None,
) -> list[KeptBlock]:
    """Join the blocks' documents, numbered from 0 in block order.

    dropped.parquet, and the signatures where there are any, go beside `out`. Returns what is kept
    of each block, and what was dropped by reason. A row group has whole batches of up to BATCH_ROWS
    documents of a block, at most one of each block: `seal.documents_digest` is by batches.
    """
    counts = [pq.read_metadata(part).num_rows for part in parts]
    if items is None or sum(counts) <= ITEM_DOCUMENTS:
        return _write(source, parts, out, choice, ends={end for _, end in _bounds(counts)})
    pieces = [*_pieces(source, parts, counts, choice, items.folder)]
    accounts = [
        quick_record(account, KeptBlock, str(out))
        for result in items.pool.map(_write_piece, pieces, "documents joined")
        for account in result["blocks"]
    ]
    parquet_join.join([piece.out for piece in pieces], out)
    drops = [piece.out.with_suffix(f".{dropped.NAME}") for piece in pieces]
    parquet_join.join(drops, out.with_name(dropped.NAME))
    if choice.width:
        with replacing(out.with_name(NEAR)) as temporary, temporary.open("wb") as joined:
            for piece in pieces:
                with piece.out.with_suffix(f".{NEAR}").open("rb") as file:
                    copyfileobj(file, joined)
    return accounts


def _bounds(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the blocks [first, stop) of each item. counts: documents of each block."""
    bounds, first, taken = list[tuple[int, int]](), 0, 0
    for number, count in enumerate(counts):
        if number > first and taken + count > ITEM_DOCUMENTS:
            bounds.append((first, number))
            first, taken = number, 0
        taken += count
    return [*bounds, (first, len(counts))]


def _pieces(
    source: Source, parts: Sequence[Path], counts: Sequence[int], choice: Choice, folder: Path
) -> Iterator[Piece]:
    """Yield the items; what each leaves out is written down. counts: documents of each block."""
    first = 0
    for begin, stop in _bounds(counts):
        out = folder / f"piece-{begin:06d}.parquet"
        removed, count = out.with_suffix(".removed.parquet"), 0
        with growing(removed, REMOVED) as write:
            for number in range(begin, stop):
                left_out = choice.removed(number)
                columns = (left_out.records, left_out.reasons, left_out.details)
                block = np.full(len(left_out.records), number - begin)
                write(
                    pa.table([pa.array(block), *map(pa.array, columns)], REMOVED.names).cast(
                        REMOVED
                    )
                )
                count += counts[number] - len(left_out.records)
        own = tuple(parts[begin:stop])
        yield Piece(source, own, out, removed, first, choice.limit, choice.width)
        first += count
        if choice.limit is not None:
            first = min(first, choice.limit)


def _write_piece(item: Piece) -> Json:
    table = pq.read_table(item.removed)
    blocks = table["block"].to_numpy()

    def removed(block: int) -> Removed:
        low, high = np.searchsorted(blocks, (block, block + 1)).tolist()
        own = table.slice(low, high - low)
        reasons: list[Any] = own["reason"].to_pylist()
        details = own["detail"].to_pylist()
        return Removed(own["record"].to_numpy(), reasons, details)

    choice = Choice(removed, item.limit, item.width)
    drop, near = (item.out.with_suffix(f".{name}") for name in (dropped.NAME, NEAR))
    joined = _write(item.source, item.parts, item.out, choice, item.first, (drop, near))
    return {"blocks": [asdict(block) for block in joined]}


def _write(
    source: Source,
    parts: Sequence[Path],
    out: Path,
    choice: Choice,
    first: int = 0,
    beside: tuple[Path, Path] | None = None,
    ends: Container[int] = (),
) -> list[KeptBlock]:
    """Join blocks as `merge` does, numbered from `first`.

    beside: dropped records, signatures. ends: blocks before which a row group ends, as pieces do.
    """
    drops, near = beside or (out.with_name(dropped.NAME), out.with_name(NEAR))
    with ExitStack() as stack:
        enter = stack.enter_context
        columns = schema(source)
        writer = enter(pq.ParquetWriter(enter(replacing(out)), columns, compression="zstd"))
        drop = enter(growing(drops, dropped.SCHEMA))
        sign: Callable[[bytes], object] = len
        if choice.width:
            sign = enter(enter(replacing(near)).open("wb")).write
        groups = _RowGroups(writer.write_table)
        output = _Writer(columns, choice, groups.add, drop, sign)
        output.documents = first
        blocks: list[KeptBlock] = []
        for number, part in enumerate(parts):
            if number in ends:
                groups.end()
            blocks.append(output.add(number, part))
        groups.end()
        return blocks


class _RowGroups:
    """Writer of row groups: whole batches, as many as fit, at most one of each raw file."""

    def __init__(self, write: Write) -> None:
        self.write, self.gathered = write, Gathered()
        self.file: object = None  # of the last batch

    def add(self, table: pa.Table) -> None:
        """Add a batch of one file."""
        file, rows = table["file"][0].as_py(), self.gathered.rows + len(table)
        if (
            file == self.file
            or rows > BATCH_ROWS
            or self.gathered.bytes + table.nbytes > GROUP_BYTES
        ):
            self.end()
        self.gathered.add(table)
        self.file = file

    def end(self) -> None:
        """End the row group."""
        if self.gathered.rows:
            self.write(self.gathered.take())
        self.file = None


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

    def add(self, number: int, part: Path) -> KeptBlock:
        """Join one block; return its account."""
        with pq.ParquetFile(side(part, "dropped"), pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                self.drop(pa.Table.from_batches([batch]))
        removed, tally = self.choice.removed(number), Tally()
        counts: Counter[str] = Counter()
        row = 0  # of the block, of a batch's first document
        with pq.ParquetFile(part, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                table = pa.Table.from_batches([batch])
                mask = self._kept(table, removed, counts)
                if self.choice.width:
                    self._sign(side(part, "near"), row + np.flatnonzero(mask))
                row += len(table)
                self._write(table.filter(mask), tally)
        return tally.kept(counts)

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
