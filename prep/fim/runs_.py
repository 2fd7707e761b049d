"""Runs: rows laid out from slices of ids, without a loop over rows.

A row of the output is a list of runs, each a slice [start, start + length) of one array of ids. All
rows of a block are gathered at once; what does not fit a row is cut off, what is short is padded.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
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
    >>> told = Runs(source, *map(np.array, ([2, 0, 3], [2, 2, 1], [2, 3])))
    >>> [part.tolist() for part in lay(told, 3, 0)]
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
