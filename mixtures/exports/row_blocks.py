"""Blocks of rows to export: ids, mask and labels, where each row is from, and its documents."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.manifest import Manifest, RowRefs
from crystalmix.prep.rows import spans
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.rows.shards import Rows, block_rows
from crystalmix.prep.runtime.errors import RefusalError

Ints = NDArray[np.int64]
Column: TypeAlias = "pa.Array[Any]"
DOCUMENT = pa.struct(
    [
        ("source", pa.string()),
        ("document", pa.int64()),  # number within the source
        ("start", pa.int32()),  # first token of the piece in the row
        ("stop", pa.int32()),
        ("offset", pa.int64()),  # first token of the piece in the document
        ("fim", pa.int8()),  # 0 left to right, 1 PSM, 2 SPM
    ]
)
DOCUMENTS = pa.list_(DOCUMENT)


@dataclass(frozen=True)
class Block:
    """Some rows in the order of the export.

    rows: (n, 3, msl) int32. positions: of each row in the phase, (n,) int64. refs: where each is
    from. documents: list of pieces of each row, DOCUMENTS; null where they are not known.
    """

    manifest: Manifest
    positions: Ints
    rows: Rows
    refs: RowRefs
    documents: Column

    def tokens(self) -> NDArray[np.int32]:
        """Return ids and the last label of each row: (n, msl + 1) int32.

        Raises RefusalError for a row whose counted labels are not its ids one place on.
        """
        ids, mask, labels = (self.rows[:, channel] for channel in range(3))
        other = (labels[:, :-1] != ids[:, 1:]) & (mask[:, :-1] != 0)
        if other.any():
            row = int(np.flatnonzero(other.any(axis=1))[0])
            raise RefusalError(
                f"phase {self.manifest.phase}: position {int(self.positions[row])} has labels that "
                "are not its ids one place on, which tokens alone can't hold; export it to "
                "parquet, arrow or mds"
            )
        return np.concatenate([ids, labels[:, -1:]], axis=1)

    def references(self) -> dict[str, Column]:
        """Return where each row is from: step, slot, part, epoch, shard, row, documents."""
        names = np.array([part.name for part in self.manifest.parts])
        batch, paths = self.manifest.batch, self.manifest.paths
        return {
            "step": pa.array(self.positions // batch, pa.int64()),
            "slot": pa.array(self.positions % batch, pa.int32()),
            "part": pa.array(names[self.refs.part], pa.string()),
            "epoch": pa.array(self.refs.epoch, pa.int32()),
            "shard": pa.array([paths[shard] for shard in self.refs.shard.tolist()], pa.string()),
            "row": pa.array(self.refs.row, pa.int32()),
            "documents": self.documents,
        }


@dataclass(frozen=True)
class Range:
    """Positions [first, last) of a phase, or those of them that a part has."""

    first: int
    last: int
    part: int | None


def blocks(manifest: Manifest, build: Path, chosen: Range, documents: bool) -> Iterator[Block]:
    """Yield the rows of a range in order, in bounded memory."""
    names, size = manifest.paths, block_rows(manifest.msl)
    for first in range(chosen.first, chosen.last, size):
        last = min(first + size, chosen.last)
        refs, positions = manifest.rows(first, last), np.arange(first, last)
        if chosen.part is not None:
            here = np.flatnonzero(refs.part == chosen.part)
            columns = (refs.part, refs.epoch, refs.shard, refs.row)
            refs, positions = RowRefs(*(column[here] for column in columns)), positions[here]
        if len(positions):
            used, which = np.unique(refs.shard, return_inverse=True)
            paths = [build / names[shard] for shard in used.tolist()]
            rows = gather(paths, which, refs.row)
            own = replace(refs, shard=which)
            pieces = _documents(paths, own) if documents else pa.nulls(len(rows), DOCUMENTS)
            yield Block(manifest, positions, rows, refs, pieces)


def _documents(paths: list[Path], refs: RowRefs) -> Column:
    """Return the document pieces of rows, DOCUMENTS; null for rows of shards without spans."""
    pieces: list[list[dict[str, object]] | None] = [None] * len(refs.row)
    for shard in np.unique(refs.shard).tolist():
        places = np.flatnonzero(refs.shard == shard)
        table = spans.of_rows(paths[shard], refs.row[places])
        if table is None:
            continue
        of_row: dict[int, list[dict[str, object]]] = {}
        table = table.sort_by([("row", "ascending"), ("start", "ascending")])
        for piece in table.select(["row", *DOCUMENT.names]).to_pylist():
            of_row.setdefault(piece.pop("row"), []).append(piece)
        for place in places.tolist():
            pieces[place] = of_row.get(int(refs.row[place]), [])
    return pa.array(pieces, DOCUMENTS)


def part_positions(manifest: Manifest, part: int, numbers: list[int]) -> list[int]:
    """Return the positions of a part's rows by their number among them, counted from 0.

    A number that the phase does not reach gives its last position plus one.
    """
    total = manifest.steps * manifest.batch
    positions: list[int] = []
    for number in numbers:
        low, high = 0, total  # the least position p with counts(p + 1) > number
        while low < high:
            middle = (low + high) // 2
            if manifest.order.counts(middle + 1)[part] > number:
                high = middle
            else:
                low = middle + 1
        positions.append(low)
    return positions
