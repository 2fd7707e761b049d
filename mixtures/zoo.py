"""Model Zoo 1.9's interleaved mixture, bit for bit: the order that trained CrystalCoder.

Facts (found by running it, `shuffle: false`): weights are normalised and zero weights left out; an
epoch has n = max(rows / weight) positions over the parts that weigh more than 5 %, each part
int(n * weight) of them; `numpy.random.default_rng(seed)` shuffles them, and each part's rows come
in order, starting again at its end. The next epoch has the same order. So it is not the order to
choose (a part of 4 % is repeated or cut short without a word) but the one to audit.

Memory: one byte a position (8 in the original's dataset array and 22 in its others), and a count
of each part every 65,536 positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mixtures.order import OrderPart, Refs
from prep.errors import RefusalError

VERSION: Final = "cerebras-1.9"
HEAVY = 0.05  # parts at most this heavy do not lengthen the epoch
STRIDE = 1 << 16  # positions between two counts
MOST_PARTS = 255  # a part's number is one byte
Int64s = NDArray[np.int64]
Zeros = Literal["aligned", "misaligned"]


class ZooMixture:
    """Position -> (part, epoch, row) and back, as GptHDF5MapDataProcessor of Model Zoo 1.9.1.

    zeros: what a part of weight 0 does. `aligned` leaves it out whole; `misaligned` reproduces
    1.9.1, which pairs the weights that are left with the lengths of the first parts.
    """

    def __init__(
        self, rows: Sequence[int], weights: Sequence[float], seed: int, zeros: Zeros = "aligned"
    ) -> None:
        scaled = np.array(weights, dtype=np.float64)
        scaled = scaled / scaled.sum()
        self.kept: Final = [i for i, weight in enumerate(weights) if weight > 0]
        if len(self.kept) > MOST_PARTS:
            raise RefusalError(f"order cerebras: holds at most {MOST_PARTS} parts, got {len(rows)}")
        self.rows: Final = np.array([rows[i] for i in self.kept], dtype=np.int64)
        kept = scaled[self.kept]
        measured = self.rows if zeros == "aligned" else np.array(rows[: len(kept)])
        long = [n / w for n, w in zip(measured.tolist(), kept.tolist(), strict=True) if w > HEAVY]
        if not long:
            raise RefusalError(
                f"order cerebras: no part weighs more than {HEAVY:.0%}, so Model Zoo 1.9 can't "
                "tell the length of an epoch (it raises ValueError); use the exact order"
            )
        self.slots: Final = [int(max(long) * weight) for weight in kept.tolist()]
        self.length: Final = sum(self.slots)
        self.order: Final = np.repeat(np.arange(len(self.slots), dtype=np.uint8), self.slots)
        np.random.default_rng(seed).shuffle(self.order)
        self._counts: Final = self._count()

    def _count(self) -> Int64s:
        """Return how many positions each part has before every STRIDE-th one: (n + 1, parts)."""
        blocks = range(0, self.length, STRIDE)
        counts = [
            np.bincount(self.order[low : low + STRIDE], minlength=len(self.slots)) for low in blocks
        ]
        return np.cumsum([np.zeros(len(self.slots), np.int64), *counts], axis=0)

    def refs(self, start: int, stop: int) -> Refs:
        """Return what the positions [start, stop) consume; `part` as the caller listed them."""
        found = [
            self._epoch(e, max(start, low), min(stop, low + self.length))
            for e, low in self._epochs(start, stop)
        ]
        part, epoch, row = (np.concatenate(column) for column in zip(*found, strict=True))
        return Refs(np.array(self.kept, dtype=np.int64)[part], epoch, row)

    def _epochs(self, start: int, stop: int) -> list[tuple[int, int]]:
        first, last = start // self.length, max(start, stop - 1) // self.length
        return [(epoch, epoch * self.length) for epoch in range(first, last + 1)]

    def _epoch(self, epoch: int, start: int, stop: int) -> tuple[Int64s, Int64s, Int64s]:
        """Return part, repeat of the part and row of positions within one epoch of the mixture."""
        low, high = start - epoch * self.length, stop - epoch * self.length
        part = self.order[low:high].astype(np.int64)
        before = self.counts_within(low)
        draw = np.empty_like(part)
        for i, base in enumerate(before):
            here = part == i
            draw[here] = base + np.arange(int(here.sum()))
        rows = self.rows[part]
        repeats = -(-np.array(self.slots) // self.rows)[part]  # of a part in an epoch, begun ones
        return part, epoch * repeats + draw // rows, draw % rows

    def counts_within(self, position: int) -> list[int]:
        """Return how many of an epoch's first `position` positions each kept part has."""
        block = position // STRIDE
        rest = np.bincount(self.order[block * STRIDE : position], minlength=len(self.slots))
        return (self._counts[block] + rest).tolist()

    def counts(self, position: int, parts: int) -> list[int]:
        """Return how many of the first `position` positions each of the listed parts has."""
        epochs, rest = divmod(position, self.length)
        within = self.counts_within(rest)
        told = [0] * parts
        for i, part in enumerate(self.kept):
            told[part] = epochs * self.slots[i] + within[i]
        return told

    def positions(self, part: int, row: int, stop: int) -> list[int]:
        """Return all positions below `stop` that consume a row of a part, ascending."""
        if part not in self.kept:
            return []
        kept = self.kept.index(part)
        draws = range(row, self.slots[kept], int(self.rows[kept]))
        within = [self._find(kept, draw) for draw in draws]
        epochs = range(-(-stop // self.length))
        every = (epoch * self.length + position for epoch in epochs for position in within)
        return [position for position in every if position < stop]

    def _find(self, kept: int, draw: int) -> int:
        """Return the position of a part's draw-th draw within an epoch."""
        block = int(np.searchsorted(self._counts[:, kept], draw, side="right")) - 1
        low = block * STRIDE
        here = np.flatnonzero(self.order[low : low + STRIDE] == kept)
        return low + int(here[draw - int(self._counts[block, kept])])


@dataclass(frozen=True)
class ZooOrder:
    """The `cerebras` order behind the interface of mixtures.order.Order."""

    parts: tuple[OrderPart, ...]
    mixture: ZooMixture

    def refs(self, start: int, stop: int) -> Refs:
        """Return what the positions [start, stop) consume."""
        return self.mixture.refs(start, stop)

    def positions(self, part: int, row: int, stop: int) -> list[int]:
        """Return all positions below `stop` that consume a row of a part."""
        return self.mixture.positions(part, row, stop)

    def counts(self, position: int) -> list[int]:
        """Return how many of the first `position` positions each part has."""
        return self.mixture.counts(position, len(self.parts))


def subset_rows(
    rows: int, ranges: Sequence[tuple[float, float]], version: Literal["1.9.1", "2.0.3"]
) -> Int64s:
    """Return the rows that `data_subset` takes, in order.

    2.0.3 takes the rows [int(n * a), int(n * b)) of each range. 1.9.1 swaps the ends of the ranges
    in the subset with their offsets in the data: `0.0-0.1` gives the second tenth, `0.0-0.5` and
    `0.5-1.0` the same rows, `0.0-1.0` rows that are not there (IndexError; a RefusalError here).
    """
    bounds = [(int(rows * low), int(rows * high)) for low, high in ranges]
    ends = np.cumsum([high - low for low, high in bounds])
    offsets = np.array([low for low, _ in bounds]) - np.concatenate([[0], ends[:-1]])
    taken = np.arange(int(ends[-1]), dtype=np.int64)
    edges, shifts = (ends, offsets) if version == "2.0.3" else (offsets, ends)
    found = taken + shifts[np.searchsorted(edges[:-1], taken, side="right")]
    if len(found) and int(found.max()) >= rows:
        raise RefusalError(
            f"data_subset {ranges} of {rows} rows as in Model Zoo 1.9.1 asks for row "
            f"{int(found.max())} (IndexError there); use the meaning of 2.0.3"
        )
    return found


def batches(
    length: int, batch: int, *, csx: int = 1, worker: int = 0, epochs: int = 1
) -> list[list[list[int]]]:
    """Return the row numbers of each batch of one worker, epoch by epoch (CBSampler of Model Zoo).

    The index stream runs over the epochs; micro-batches of batch / csx go to the workers in turn,
    and each worker joins csx of its own to a batch. What does not fill a batch is carried on.
    """
    micro, told = batch // csx, []
    carried: list[int] = []
    pending: list[int] = []
    number = 0
    for _ in range(epochs):
        stream = [*carried, *range(length)]
        whole = len(stream) // micro * micro
        carried = stream[whole:]
        made: list[list[int]] = []
        for first in range(0, whole, micro):
            if number % csx == worker:
                pending += stream[first : first + micro]
                if len(pending) == batch:
                    made.append(pending)
                    pending = []
            number += 1
        told.append(made)
    return told
