"""Segments: the pieces of documents that a block of rows holds, and their permuted form as runs.

A row of the output is a list of runs, each a slice [start, start + length) of one array of ids.
All rows of a block are gathered at once; what exceeds a row is cut off, a short row is padded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ints: TypeAlias = "NDArray[np.int64]"

LEFT_TO_RIGHT, PSM, SPM = 0, 1, 2
Piece = tuple[list[int], tuple[int, int], list[int]]  # new ids, a slice of the block's, new ids
Pieces = tuple[list[Piece], list[Piece], list[Piece]]  # prefix, middle, suffix


@frozen
class Runs:
    """The rows of a block as runs of one source, in the order of the output.

    source: (n,) int32 ids. starts, lengths: (runs,). ends: (rows,) how many runs lie before the
    end of each row.
    """

    source: NDArray[np.int32]
    starts: Ints
    lengths: Ints
    ends: Ints


def totals(lengths: Ints, ends: Ints) -> Ints:
    """Return the sum of each group of lengths, groups ending at `ends` (possibly empty): (n,)."""
    sums = np.concatenate([[0], np.cumsum(lengths)])[np.concatenate([[0], ends])]
    return np.diff(sums)


def lay(runs: Runs, width: int, pad: int) -> tuple[NDArray[np.int32], Ints]:
    """Lay runs out as rows: their first `width` ids (rows, width), and how many they had (rows,).

    >>> source = np.array([5, 6, 7, 8], np.int32)
    >>> runs = Runs(source, *map(np.array, ([2, 0, 3], [2, 2, 1], [2, 3])))
    >>> [part.tolist() for part in lay(runs, 3, 0)]
    [[[7, 8, 5], [8, 0, 0]], [4, 1]]
    """
    rows = len(runs.ends)
    used = totals(runs.lengths, runs.ends)
    if used.min(initial=width) == used.max(initial=width) == width:
        starts, lengths = runs.starts, runs.lengths
    else:
        stops = np.cumsum(runs.lengths)
        row = np.repeat(np.arange(rows), np.diff(runs.ends, prepend=0))
        limit = (np.cumsum(used) - used + width)[row]
        kept = np.clip(limit - (stops - runs.lengths), 0, runs.lengths)
        starts = np.insert(runs.starts, runs.ends, 0)
        lengths = np.insert(kept, runs.ends, np.maximum(width - used, 0))
    places = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    places += np.arange(rows * width)
    out = runs.source.take(places, mode="clip").reshape(rows, width)
    short = np.flatnonzero(used < width)
    if len(short):
        out[short] = np.where(np.arange(width) < used[short, None], out[short], pad)
    return out, used


@frozen
class Sentinels:
    """The ids of <fim_prefix>, <fim_middle> and <fim_suffix>."""

    prefix: int
    middle: int
    suffix: int


@frozen
class Segments:
    """The segments of a block of rows, in order.

    ids: (rows * msl,) int32, the block's inputs. row, start, stop: (n,), the row of each segment
    and its place in ids. begins: (n,) bool, whether a document begins there.
    """

    ids: NDArray[np.int32]
    rows: int
    row: Ints
    start: Ints
    stop: Ints
    begins: NDArray[np.bool_]

    @property
    def ends(self) -> Ints:
        """How many segments lie before the end of each row: (rows,)."""
        return np.searchsorted(self.row, np.arange(self.rows), side="right")


@frozen
class Plans:
    """What each segment is to become: its form and two sorted cuts, -1 where left as it is."""

    form: NDArray[np.int8]
    first: Ints
    second: Ints


@frozen
class Permuted:
    """The rows of a block with their segments permuted.

    lengths: (n,) tokens of each segment now. middles: (n,) where in it the middle begins, 0 where
    it is as it was.
    """

    runs: Runs
    plans: Plans
    lengths: Ints
    middles: Ints


def within(segments: Segments, lengths: Ints) -> Ints:
    """Return where in its row each permuted segment begins: (n,)."""
    start = np.cumsum(lengths) - lengths
    first = np.concatenate([[0], segments.ends])[segments.row]
    return start - start[first]


class Writer:
    """Collects the runs of a block's segments, one after the other."""

    def __init__(self, segments: Segments, marks: Sentinels) -> None:
        self.segments, self.marks = segments, marks
        self._new: list[int] = []
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._ends: list[int] = []
        self._middles: list[int] = []
        self._base = len(segments.ids)

    def keep(self, start: int, stop: int) -> None:
        """Add ids of the block."""
        if start < stop:
            self._starts.append(start)
            self._lengths.append(stop - start)

    def put(self, ids: list[int]) -> None:
        """Add new ids."""
        if ids:
            self._starts.append(self._base + len(self._new))
            self._lengths.append(len(ids))
            self._new += ids

    def permute(
        self, form: int, prefix: list[Piece], middle: list[Piece], suffix: list[Piece]
    ) -> int:
        """Add the pieces with their sentinels in the order of a form; return the middle's size."""
        marks = self.marks
        if form == PSM:
            self.put([marks.prefix])
            self._pieces(prefix)
            self.put([marks.suffix])
            self._pieces(suffix)
            self.put([marks.middle])
        else:
            self.put([marks.prefix, marks.suffix])
            self._pieces(suffix)
            self.put([marks.middle])
            self._pieces(prefix)
        self._pieces(middle)
        return sum(len(head) + stop - start + len(tail) for head, (start, stop), tail in middle)

    def _pieces(self, pieces: list[Piece]) -> None:
        for head, (start, stop), tail in pieces:
            self.put(head)
            self.keep(start, stop)
            self.put(tail)

    def end(self, counted: int | None = None) -> None:
        """End a segment; counted: the tokens from its middle on, None where it is as it was."""
        first = self._ends[-1] if self._ends else 0
        self._ends.append(len(self._starts))
        length = sum(self._lengths[first:])
        self._middles.append(0 if counted is None else length - counted)

    def permuted(self, plans: Plans) -> Permuted:
        """Return what was collected."""
        ends, lengths = np.array(self._ends, np.int64), np.array(self._lengths, np.int64)
        source = np.concatenate([self.segments.ids, np.array(self._new, dtype=np.int32)])
        of_rows = np.concatenate([[0], ends])[self.segments.ends]
        runs = Runs(source, np.array(self._starts, np.int64), lengths, of_rows)
        middles = np.array(self._middles, np.int64)
        return Permuted(runs, plans, totals(lengths, ends), middles)
