"""What fitting a folder's documents came to: its groups, how many rows each has, and counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from crystalmix.prep.packing.fits import FittedCounts
from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.rows.token_blocks import Stream
from crystalmix.prep.runtime.types import Json


@dataclass(frozen=True)
class Fitted:
    """The groups of a folder: their bounds in its stream, and rows before each and in all."""

    stream: Stream
    bounds: tuple[int, ...]
    ends: tuple[int, ...]  # (groups + 1,), from 0
    counts: FittedCounts
    settings: PackSettings

    @property
    def rows(self) -> int:
        """Rows of the folder."""
        return self.ends[-1]

    def groups_of(self, first: int, last: int) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Return the bounds of the groups that hold rows [first, last), and their place there."""
        low = int(np.searchsorted(self.ends, first, side="right")) - 1
        high = int(np.searchsorted(self.ends, last, side="left"))
        return self.bounds[low : high + 1], (first - self.ends[low], last - self.ends[low])


def merged(
    stream: Stream, bounds: Sequence[int], settings: PackSettings, results: Sequence[Json]
) -> Fitted:
    """Put together what runs of groups were counted to have (`fitted_rows.Counts`), in order."""
    rows = [count for result in results for count in result["rows"]]
    shortest = [result["shortest"] for result in results if result["shortest"] is not None]
    sums = {key: sum(result[key] for result in results) for key in ("pieces", "cut", "stream_cut")}
    counts = FittedCounts(groups=len(rows), shortest=min(shortest, default=0), **sums)
    return Fitted(stream, tuple(bounds), tuple(accumulate(rows, initial=0)), counts, settings)
