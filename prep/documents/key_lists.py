"""Key lists: sorted digests and band hashes of documents, by which equal and near ones are found.

Beside a block's documents lie those of all that its raw file gave (`.digests`, `.bands`); they are
made with it. A sealed source has lists of what it kept, some million documents each, in the store
under a key of its content. What is there is not made again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.documents.merge import NEAR
from crystalmix.prep.documents.scan import row_groups
from crystalmix.prep.documents.schema import side
from crystalmix.prep.filters import near_pairs
from crystalmix.prep.filters.exact_duplicates import KEPT, OWN, Duplicates, halves
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.filters.near_pairs import Bands
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.store import reuse
from crystalmix.prep.store import store as artifacts
from crystalmix.prep.store.store import Store

if TYPE_CHECKING:
    from crystalmix.prep.engines.engine import Engine

VERSION = 1
DIGESTS, BANDS = "digests", "bands"
LIST_DOCUMENTS = 1 << 20  # of a sealed source in one list
BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Block:
    """Work item: make the lists of a block whose documents are there."""

    part: Path
    duplicates: Duplicates


@dataclass(frozen=True)
class Piece:
    """Work item: make a list of documents [first, stop) of a sealed source.

    near: for their bands; None for their digests. folder: of the source.
    """

    folder: Path
    first: int
    stop: int
    near: Near | None
    out: Path


def write_beside(part: Path, duplicates: Duplicates) -> None:
    """Write the lists of a block that duplicates are found by, beside its documents."""
    if duplicates.exact != "none":
        OWN.write(side(part, DIGESTS), _own(part))
    if duplicates.near is not None:
        near_pairs.write_bands(side(part, NEAR), None, side(part, BANDS), duplicates.near)


def of_blocks(
    kept: "Kept", parts: Sequence[Path], duplicates: Duplicates
) -> tuple[list[Path], list[Path]]:
    """Return the lists of digests and of bands of blocks, as asked; what is missing is made.

    kept: who runs the items, and the store of the blocks.
    """
    kinds = [DIGESTS] * (duplicates.exact != "none") + [BANDS] * (duplicates.near is not None)
    missing = [p for p in parts if not all(side(p, kind).exists() for kind in kinds)]
    kept.store.unseal("blocks", {part.stem for part in missing})
    for _ in kept.pool.map(
        _make_beside, [Block(part, duplicates) for part in missing], "key lists"
    ):
        pass
    digests, bands = ([side(p, kind) for p in parts if kind in kinds] for kind in (DIGESTS, BANDS))
    return digests, bands


def _make_beside(item: Block) -> Json:
    write_beside(item.part, item.duplicates)
    result = artifacts.done(item.part)
    if result is not None:
        artifacts.finish(item.part, result)  # seal the lists, too
    return {}


def _own(part: Path) -> Iterator[list[NDArray[Any]]]:
    first = 0
    with pq.ParquetFile(part, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=["digest", "record"]):
            both = halves(batch.column("digest"))
            rows = np.arange(first, first + len(batch))
            yield [both[:, 0], both[:, 1], batch.column("record").to_numpy(), rows]
            first += len(batch)


@dataclass(frozen=True)
class Kept:
    """Makes the lists of what sealed sources kept; store: where they stay.

    looked: artifacts that need no look before they are used again.
    """

    pool: "Engine"
    store: Store
    looked: set[Path] = field(default_factory=set[Path])

    def digests(self, folders: Sequence[Path]) -> list[list[Path]]:
        """Return the lists of the digests of each source, of KEPT."""
        return [[piece.out for piece in group] for group in self._made(folders, None)]

    def bands(self, folders: Sequence[Path], near: Near) -> list[list[Bands]]:
        """Return the lists of the bands of each source; first texts are numbered within it."""
        return [[Bands(p.out, p.first) for p in group] for group in self._made(folders, near)]

    def _made(self, folders: Sequence[Path], near: Near | None) -> list[list[Piece]]:
        pieces = [[*self._pieces(folder, near)] for folder in folders]
        outs = [piece.out for group in pieces for piece in group]
        reuse.renew(self.pool, self.store, "lists", outs, self.looked)
        due = {p.out: p for group in pieces for p in group if artifacts.done(p.out) is None}
        for _ in self.pool.map(_make_piece, [*due.values()], "key lists"):
            pass
        for folder, group in zip(folders, pieces, strict=True):
            self._note(folder, [piece.out.stem for piece in group])
        return pieces

    def _pieces(self, folder: Path, near: Near | None) -> Iterator[Piece]:
        receipt = receipts.read(folder)
        content: Json = {"version": VERSION, "content": receipt.content}
        if near is not None:  # of what was purged signatures are no more
            content |= {"near": asdict(near), "purged": receipt.purged.get("certificates", [])}
        count = sum(block.documents for block in receipt.blocks)
        for first in range(0, count, LIST_DOCUMENTS):
            stop = min(first + LIST_DOCUMENTS, count)
            key = artifacts.key_of({**content, "documents": [first, stop]})
            suffix = f".{DIGESTS if near is None else BANDS}"
            yield Piece(folder, first, stop, near, self.store.file("lists", key, suffix))

    def _note(self, folder: Path, keys: Sequence[str]) -> None:
        """Note that a source's lists are used, as long as it is."""
        target = folder.resolve()
        if target.parent.parent == self.store.path.resolve():
            self.store.add_uses(target.name, "lists", keys)


def _make_piece(item: Piece) -> Json:
    if item.near is None:
        KEPT.write(item.out, _kept(item))
    else:
        near_pairs.write_bands(item.folder / NEAR, (item.first, item.stop), item.out, item.near)
    artifacts.finish(item.out, {})
    return {}


def _kept(item: Piece) -> Iterator[list[NDArray[Any]]]:
    file, starts = row_groups(item.folder / "documents.parquet")
    low = int(np.searchsorted(starts, item.first, side="right")) - 1
    high = int(np.searchsorted(starts, item.stop))
    for group in range(low, high):
        both = halves(file.read_row_group(group, columns=["digest"])["digest"])
        inside = both[max(0, item.first - starts[group]) : item.stop - starts[group]]
        yield [inside[:, 0], inside[:, 1]]
