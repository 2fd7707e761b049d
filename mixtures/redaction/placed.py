"""Places of documents: the packed rows that hold them, and the rows that phases draw.

The shards that may hold a document follow from the ranges of documents (`lookups`); their spans
alone are read. A row's place after the shuffle follows from the shuffle's formula; where there is
none (the original's shuffle), the origin tables are read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.build.lookups import Lookups
from crystalmix.mixtures.manifest import opened as manifest_opened
from crystalmix.mixtures.manifest.exact_order import Order
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.opened import OpenedRows
from crystalmix.prep.rows import document_ranges, shuffle, spans
from crystalmix.prep.runtime import randomness, receipts
from crystalmix.prep.runtime.atomic_files import readable
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.permutation import Permutation
from crystalmix.prep.runtime.receipts import Receipt

Numbers = NDArray[np.int64]
Documents = dict[str, Numbers]  # ascending numbers of documents, by source


@dataclass(frozen=True)
class Pieces:
    """Pieces of documents in the packed rows of a folder, equally long arrays.

    number: of the row in the folder, counted on over its shards. start, stop: tokens of the row.
    source: its index in `sources`. offset: of the piece in the document. fim: 0 none, 1 PSM,
    2 SPM.
    """

    sources: tuple[str, ...]
    number: Numbers
    start: Numbers
    stop: Numbers
    source: Numbers
    document: Numbers
    offset: Numbers
    fim: Numbers


class Folder:
    """A folder of rows: its receipt, and the numbers of its rows over all shards.

    opened: by its table of shards; of the receipt its recipe alone is known then.
    """

    def __init__(self, path: Path, *, opened: bool = False) -> None:
        self.path = path
        read = manifest_opened.rows(path) if opened else None
        self.receipt: Receipt = read.receipt if read else receipts.read(path)
        self.names = read.shards if read else OpenedRows.of(self.receipt).shards

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return self.names.rows

    @cached_property
    def place_of(self) -> dict[str, int]:
        """The place of each shard."""
        return {name: place for place, name in enumerate(self.names)}

    def located(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Return the shard (its place) and the row in it of each row's number."""
        return self.names.located(numbers)


class DomainRows:
    """The rows of a domain: the folder that phases draw from, and the packed folders behind it.

    opened: as of `Folder`.
    """

    def __init__(self, last: Path, *, opened: bool = False) -> None:
        self.last = Folder(last, opened=opened)
        joined = self.last.receipt.stage in {"shuffle", "join"}
        inputs = [last.parent / name for name in self.last.receipt.inputs] if joined else [last]
        self.packed = [Folder(path, opened=opened) for path in inputs] if joined else [self.last]
        self.bases = np.cumsum([0, *(folder.rows for folder in self.packed)])

    @cached_property
    def behind(self) -> list[Folder]:
        """The folders that row-level FIM was applied to, which no phase draws from."""
        return [
            Folder(folder.path.parent / name)
            for folder in self.packed
            if folder.receipt.stage == "fim"
            for name in folder.receipt.inputs
        ]

    def pieces(
        self, lookups: Lookups, documents: Documents, folders: Sequence[Folder] | None = None
    ) -> Iterator[tuple[Folder, Pieces]]:
        """Yield the pieces of documents in each packed folder, or in some folders."""
        for folder in self.packed if folders is None else folders:
            ranges = lookups.ranges(folder.path)
            tables: list[pa.Table] = []
            numbers = [np.empty(0, np.int64)]
            for name in ranges.shards(documents):
                table = document_ranges.pieces(folder.path / name, documents)
                [place] = folder.names.places(name)
                numbers.append(folder.names.row(place) + table["row"].to_numpy().astype(np.int64))
                tables.append(table)
            if tables:
                yield folder, _pieces(pa.concat_tables(tables), np.concatenate(numbers))

    def origins(self, numbers: Numbers) -> Iterator[tuple[Folder, Numbers, Numbers]] | None:
        """Yield by packed folder which rows of the last are of it, and their numbers in it.

        numbers: of rows of the last folder. None where origin tables alone know it.
        """
        items = numbers
        if self.last.receipt.stage == "shuffle":
            if (order := self._order) is None:
                return None
            items = order.forward(numbers)
        owners = np.searchsorted(self.bases, items, side="right") - 1
        return (
            (folder, own, items[own] - self.bases[place])
            for place, folder in enumerate(self.packed)
            for own in [np.flatnonzero(owners == place)]
            if len(own)
        )

    @cached_property
    def _order(self) -> Permutation | None:
        """The shuffle as a formula: last row -> packed row."""
        receipt = self.last.receipt
        if receipt.seed is None or receipt.version != shuffle.VERSION:
            return None
        key = randomness.key(receipt.seed, "shuffle", receipt.settings["domain"])
        return Permutation(self.last.rows, key)

    def final(self, folder: Folder, numbers: Numbers) -> Numbers:
        """Return the numbers in the last folder of rows of a packed folder."""
        items = self.bases[self.packed.index(folder)] + numbers
        if self.last.receipt.stage != "shuffle":
            return items
        return self._inverse[items] if self._order is None else self._order.inverse(items)

    @cached_property
    def _inverse(self) -> Numbers:
        """The whole order, from the origin tables: the original's shuffle has no formula."""
        inverse = np.full(self.last.rows, -1, np.int64)
        bases = {
            f"{folder.path.name}/{name}": int(base) + folder.names.row(place)
            for folder, base in zip(self.packed, self.bases, strict=False)
            for place, name in enumerate(folder.names)
        }
        for place, name in enumerate(self.last.names):
            table = pq.read_table(readable(spans.path_of(self.last.path / name, "origin")))
            origins: Any = table["origin"].combine_chunks()
            starts = np.array([bases.get(o, -1) for o in origins.dictionary.to_pylist()], np.int64)
            own = starts[origins.indices.to_numpy()] + table["origin_row"].to_numpy()
            inverse[own] = self.last.names.row(place) + np.arange(len(own))
        if (inverse < 0).any():
            raise DamageError(f"{self.last.path}: its origins are no order; build again")
        return inverse


def _pieces(table: pa.Table, numbers: Numbers) -> Pieces:
    source: Any = table["source"].combine_chunks().dictionary_encode()
    columns = {
        name: table[name].to_numpy().astype(np.int64)
        for name in ("start", "stop", "document", "offset", "fim")
    }
    return Pieces(
        sources=tuple(source.dictionary.to_pylist()),
        number=numbers,
        source=source.indices.to_numpy().astype(np.int64),
        **columns,
    )


@dataclass(frozen=True)
class Draws:
    """Draws of a part: which of some rows, in which epoch of the part, at which position."""

    part: int
    which: Numbers
    epoch: Numbers
    position: Numbers


class Drawn:
    """The rows that a phase draws: from rows of a folder to the positions that consume them."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.stop = manifest.steps * manifest.batch
        self.places = {path: place for place, path in enumerate(manifest.paths)}
        # of each folder and part: name of a shard, rows of the part before it, its first and last
        self.parts: dict[str, dict[int, list[tuple[str, int, int, int]]]] = {}
        for part, described in enumerate(manifest.parts):
            before = 0
            for shard in described.shards:
                inside, _, name = shard.path.rpartition("/")  # a Path would cost minutes
                own = self.parts.setdefault(inside, {}).setdefault(part, [])
                own.append((name, before, shard.first, shard.last))
                before += shard.last - shard.first

    def of(self, folder: Folder, inside: Path, shard: Numbers, row: Numbers) -> Iterator[Draws]:
        """Yield the draws of rows of a folder, part by part.

        inside: the folder's path below the build. shard: of each row, its place in the folder.
        row: in that shard.
        """
        for part, shards in self.parts.get(inside.as_posix(), {}).items():
            shift = np.zeros(len(folder.names), np.int64)  # from a shard's row to the part's
            first, last = shift.copy(), shift.copy()
            for name, before, low, high in shards:
                place = folder.place_of[name]
                shift[place], first[place], last[place] = before - low, low, high
            drawn = np.flatnonzero((row >= first[shard]) & (row < last[shard]))
            if len(drawn):
                own, epoch, position = self._draws(part, row[drawn] + shift[shard[drawn]])
                yield Draws(part, drawn[own], epoch, position)

    def _draws(self, part: int, rows: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Return which of a part's rows is drawn, in which epoch, at which position."""
        order = self.manifest.order
        if isinstance(order, Order):
            return order.draws_of(part, rows, self.stop)
        pairs = [
            (number, position)
            for number, row in enumerate(rows.tolist())
            for position in order.positions(part, row, self.stop)
        ]
        which, positions = np.array(pairs, np.int64).reshape(-1, 2).T
        epochs = [order.refs(place, place + 1).epoch[0] for place in positions.tolist()]
        return which, np.array(epochs, np.int64), positions
