"""Fits: into which row, and where in it, each piece of a group goes; counts of them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


@frozen
class FittedCounts:
    """What fitting came to, for the receipt.

    cut: documents longer than a row. stream_cut: those that rows which run on would cut.
    """

    groups: int
    pieces: int
    shortest: int
    cut: int
    stream_cut: int


@frozen
class Fit:
    """The rows of a group: pieces in the order of rows and of their places in the row.

    piece: which piece of the group; row: counted from the group's first; start: the first token's
    place in the row. All are (pieces,) int64.
    """

    piece: Numbers
    row: Numbers
    start: Numbers
    rows: int


def best_fit(sizes: Numbers, capacity: int) -> Fit:
    """Put pieces, longest first, each into the row where the least room is left.

    Pieces of one size go in their own order. Of rows with equal room the one that has had it the
    longest is taken; a row is opened for a piece that fits into none. Rows are in the order in
    which they were opened.

    >>> fit = best_fit(np.array([2, 5, 3, 8, 3]), 8)
    >>> [fit.piece[fit.row == row].tolist() for row in range(fit.rows)]
    [[3], [1, 2], [4, 0]]
    """
    order = np.argsort(-sizes, kind="stable")
    ordered = sizes[order].tolist()
    full = int(np.searchsorted(-sizes[order], 1 - capacity))  # pieces that fill a row
    row, start = list(range(full)), [0] * full
    waiting: list[deque[int]] = [deque() for _ in range(capacity)]  # rows by the room they have
    rooms, rows = 0, full  # bit r is set where a row has room r
    for size in ordered[full:]:
        enough = rooms >> size
        if enough:
            left = (enough & -enough).bit_length() - 1  # room after this piece, the least there is
            room = left + size
            queue = waiting[room]
            here = queue.popleft()
            if not queue:
                rooms ^= 1 << room
            place = capacity - room
        else:
            here, place, left = rows, 0, capacity - size
            rows += 1
        row.append(here)
        start.append(place)
        if left:
            waiting[left].append(here)
            rooms |= 1 << left
    return _in_rows(order, np.array(row, np.int64), np.array(start, np.int64), rows)


def next_fit(sizes: Numbers, capacity: int) -> Fit:
    """Put pieces, longest first, into one row until the next does not fit, then open another.

    As Model Zoo's VSL: never looks back; a piece of capacity + 1 has a row of its own.

    >>> fit = next_fit(np.array([3, 5, 2, 9]), 8)
    >>> [fit.piece[fit.row == row].tolist() for row in range(fit.rows)]
    [[3], [1, 0], [2]]
    """
    order = np.argsort(-sizes, kind="stable")
    row: list[int] = []
    start: list[int] = []
    here, used = -1, capacity + 1
    for size in sizes[order].tolist():
        if used + size > capacity:
            here, used = here + 1, 0
        row.append(here)
        start.append(used)
        used += size
    return _in_rows(order, np.array(row, np.int64), np.array(start, np.int64), here + 1)


def _in_rows(piece: Numbers, row: Numbers, start: Numbers, rows: int) -> Fit:
    order = np.argsort(row, kind="stable")
    return Fit(piece[order], row[order], start[order], rows)
