"""Where documents begin in rows: the lengths of their pieces, from spans through origins.

Nothing is inferred from ids. What is kept is a few numbers a row of the shards read lately, so that
rows of any order cost one look into a table.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.rows.spans import path_of
from crystalmix.prep.runtime.atomic_files import readable
from crystalmix.prep.runtime.errors import InputError

KEPT = 4096  # tables of shards; some hundred kilobytes each
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class _Spans:
    """Spans of a shard, first[row] to first[row + 1] those of a row: where each begins and ends."""

    first: Numbers
    start: NDArray[np.int32]
    stop: NDArray[np.int32]


class DocumentStarts:
    """The pieces of documents in rows of some shards, packed ones or shuffled ones."""

    def __init__(self, shards: Sequence[Path], msl: int) -> None:
        self.shards, self.msl = shards, msl
        self._spans = lru_cache(KEPT)(_spans)
        self._origin = lru_cache(KEPT)(_origin)

    def lengths(self, which: Iterable[int], rows: Iterable[int]) -> list[Numbers]:
        """Return the lengths of the pieces in each row, row rows[i] of shards[which[i]].

        Padding behind the last piece is one more, so that each row's lengths add up to msl. Raises
        InputError where a shard has neither spans nor an origin.
        """
        return [self._of(self.shards[shard], row) for shard, row in zip(which, rows, strict=True)]

    def _of(self, shard: Path, row: int) -> Numbers:
        origin = self._origin(shard)
        if origin is not None:
            names, which, numbers = origin
            shard, row = shard.parent.parent / names[which[row]], int(numbers[row])
        spans = self._spans(shard)
        low, high = spans.first[row : row + 2].tolist()
        ends = [*spans.start[low:high].tolist()[1:], *spans.stop[high - 1 : high].tolist()]
        edges = [0, *ends, *[self.msl] * (not ends or ends[-1] < self.msl)]
        return np.diff(edges)


def whole(msl: int) -> Numbers:
    """Return the lengths of a row over which attention is not masked: one piece."""
    return np.array([msl], np.int64)


def numbered(lengths: Sequence[Numbers]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the piece that each place of rows is of, counted over all rows, and its place there.

    >>> piece, place = numbered([np.array([3, 1]), np.array([4])])
    >>> piece.tolist(), place.tolist()
    ([[0, 0, 0, 1], [2, 2, 2, 2]], [[0, 1, 2, 0], [0, 1, 2, 3]])
    """
    every = np.concatenate(lengths)
    starts = np.cumsum(every) - every
    piece = np.repeat(np.arange(len(every)), every)
    place = np.arange(len(piece)) - starts[piece]
    shape = len(lengths), -1
    return piece.reshape(shape).astype(np.int32), place.reshape(shape).astype(np.int32)


def cumulative(lengths: Sequence[Numbers]) -> NDArray[np.int32]:
    """Return `cu_seqlens` of rows laid end to end: 0, then where each piece ends.

    >>> cumulative([np.array([3, 1]), np.array([4])]).tolist()
    [0, 3, 4, 8]
    """
    return np.cumsum([0, *np.concatenate(lengths)]).astype(np.int32)


def _spans(shard: Path) -> _Spans:
    path = path_of(shard)
    if not path.exists():
        raise InputError(
            f"{path}: is missing, which says where documents begin in {shard.name}; restore it, or "
            "build the phase with rows.documents: open"
        )
    table = pq.read_table(readable(path), columns=["row", "start", "stop"])
    row, start, stop = (table[name].to_numpy() for name in table.column_names)
    count = int(row[-1]) + 1 if len(row) else 0
    first = np.searchsorted(row, np.arange(count + 1))
    return _Spans(first, start.astype(np.int32), stop.astype(np.int32))


def _origin(shard: Path) -> tuple[list[str], NDArray[np.int32], NDArray[np.int32]] | None:
    """Return names of the shards that a shuffled shard's rows are from, which, and their rows."""
    path = path_of(shard, "origin")
    if not path.exists():
        return None
    table = pq.read_table(readable(path), columns=["origin", "origin_row"])
    origin: Any = table["origin"].combine_chunks()
    names, which = origin.dictionary.to_pylist(), origin.indices.to_numpy()
    return names, which.astype(np.int32), table["origin_row"].to_numpy().astype(np.int32)
