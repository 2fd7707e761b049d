"""Model Zoo 1.9's interleaved mixture, bit for bit: the order that trained CrystalCoder.

Facts (found by running it, `shuffle: false`): weights are normalised and zero weights left out; an
epoch has n = max(rows / weight) positions over the parts that weigh more than 5 %, each part
int(n * weight) of them; `numpy.random.default_rng(seed)` shuffles them, and each part's rows come
in order, starting again at its end. The next epoch has the same order. So it is not the order to
choose (a part of 4 % is repeated or cut short without a warning) but the one to audit.

Memory: one byte a position (8 in the original's dataset array and 22 in its others), and a count
of each part every 65,536 positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from crystalmix.mixtures.manifest.exact_order import OrderPart, Refs
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import DamageError, RefusalError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Strict, frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

VERSION: Final = "cerebras-1.9"
HEAVY = 0.05  # parts at most this heavy do not lengthen the epoch
STRIDE = 1 << 16  # positions between two counts
MOST_PARTS = 255  # a part's number is one byte
LONG = 1 << 24  # positions of an order that is kept in a file
KEPT = "order.u8"  # its name, beside the manifest
Zeros = Literal["aligned", "misaligned"]


@frozen
class ZooSettings(Strict):
    """Settings of Model Zoo's order, and which of its faults to reproduce.

    seed: `shuffle_seed`. subset: what `data_subset` means, as in 1.9.1 (other rows than asked) or
    in 2.0.3 (the rows asked). zeros: what a part of weight 0 does, as in ZooMixture.
    """

    seed: int = 1
    subset: Literal["1.9.1", "2.0.3"] = "2.0.3"
    zeros: Zeros = "aligned"


def slots(rows: Sequence[int], weights: Sequence[float], zeros: Zeros = "aligned") -> list[int]:
    """Return how many positions of an epoch of the mixture each part has.

    Raises RefusalError where no part is heavy enough to fix the length of an epoch, or it is 0.
    """
    scaled = np.array(weights, dtype=np.float64)
    scaled = scaled / scaled.sum()
    kept = [i for i, weight in enumerate(weights) if weight > 0]
    measured = [rows[i] for i in kept] if zeros == "aligned" else rows[: len(kept)]
    shares = scaled[kept].tolist()
    long = [n / share for n, share in zip(measured, shares, strict=True) if share > HEAVY]
    if not long:
        raise RefusalError(
            f"order cerebras: no part weighs more than {HEAVY:.0%}, so Model Zoo 1.9 can't "
            "tell the length of an epoch (it raises ValueError); use the exact order"
        )
    counts = [0] * len(weights)
    for i, share in zip(kept, shares, strict=True):
        counts[i] = int(max(long) * share)
    if not any(counts):  # 1 / .95 * .95 is less than 1
        raise RefusalError(
            "order cerebras: of so few rows an epoch of Model Zoo 1.9 is empty; use the exact order"
        )
    return counts


class ZooMixture:
    """Position -> (part, epoch, row) and back, as GptHDF5MapDataProcessor of Model Zoo 1.9.1.

    zeros: what a part of weight 0 does. `aligned` leaves it out whole; `misaligned` reproduces
    1.9.1, which pairs the weights that are left with the lengths of the first parts. kept: a file
    of the order, one byte a position, used where it exists.
    """

    def __init__(
        self,
        rows: Sequence[int],
        weights: Sequence[float],
        seed: int,
        zeros: Zeros = "aligned",
        kept: Path | None = None,
    ) -> None:
        self.kept: Final = [i for i, weight in enumerate(weights) if weight > 0]
        if len(self.kept) > MOST_PARTS:
            raise RefusalError(f"order cerebras: holds at most {MOST_PARTS} parts, got {len(rows)}")
        self.rows: Final = np.array([rows[i] for i in self.kept], dtype=np.int64)
        if not self.rows.all():
            raise RefusalError("order cerebras: a part that has a weight has no row; leave it out")
        counts = slots(rows, weights, zeros)
        self.slots: Final = [counts[i] for i in self.kept]
        self.length: Final = sum(self.slots)
        self.order: Final = self._saved(kept) if kept and kept.exists() else self._shuffled(seed)
        self._counts: Final = self._count()
        if self._counts[-1].tolist() != self.slots:
            raise DamageError(f"{kept}: is not the order of its manifest; remove it")

    def _shuffled(self, seed: int) -> NDArray[np.uint8]:
        order = np.repeat(np.arange(len(self.slots), dtype=np.uint8), self.slots)
        np.random.default_rng(seed).shuffle(order)
        return order

    def _saved(self, path: Path) -> NDArray[np.uint8]:
        if path.stat().st_size != self.length:
            raise DamageError(f"{path}: is not the order of its manifest; remove it")
        return np.memmap(path, dtype=np.uint8, mode="r")

    def _count(self) -> Int64s:
        """Return how many positions each part has before every STRIDE-th one: (n + 1, parts)."""
        blocks = range(0, self.length, STRIDE)
        counts = [
            np.bincount(self.order[low : low + STRIDE], minlength=len(self.slots)) for low in blocks
        ]
        return np.cumsum([np.zeros(len(self.slots), np.int64), *counts], axis=0)

    def refs(self, start: int, stop: int) -> Refs:
        """Return what the positions [start, stop) consume; `part` as the caller listed them."""
        pieces = [
            self._epoch(e, max(start, low), min(stop, low + self.length))
            for e, low in self._epochs(start, stop)
        ]
        part, epoch, row = (np.concatenate(column) for column in zip(*pieces, strict=True))
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
            mask = part == i
            draw[mask] = base + np.arange(int(mask.sum()))
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
        counts = [0] * parts
        for i, part in enumerate(self.kept):
            counts[part] = epochs * self.slots[i] + within[i]
        return counts

    def positions(self, part: int, row: int, stop: int) -> list[int]:
        """Return all positions below `stop` that consume a row of a part, ascending."""
        if part not in self.kept:
            return []
        kept = self.kept.index(part)
        draws = range(row, self.slots[kept], int(self.rows[kept]))
        within = [self._find(kept, draw) for draw in draws]
        epochs = range(-(-stop // self.length))
        positions = (epoch * self.length + position for epoch in epochs for position in within)
        return [position for position in positions if position < stop]

    def _find(self, kept: int, draw: int) -> int:
        """Return the position of a part's draw-th draw within an epoch."""
        block = int(np.searchsorted(self._counts[:, kept], draw, side="right")) - 1
        low = block * STRIDE
        places = np.flatnonzero(self.order[low : low + STRIDE] == kept)
        return low + int(places[draw - int(self._counts[block, kept])])


@frozen
class ZooOrder:
    """The `cerebras` order behind the interface of mixtures.manifest.exact_order.Order.

    shares: the weights as Model Zoo would read them.
    """

    parts: tuple[OrderPart, ...]
    shares: tuple[float, ...]
    settings: ZooSettings
    kept: Path | None = None

    @cached_property
    def mixture(self) -> ZooMixture:
        """The mixture, made at its first use."""
        rows = [part.rows for part in self.parts]
        seed, zeros = self.settings.seed, self.settings.zeros
        return ZooMixture(rows, self.shares, seed, zeros, self.kept)

    def is_as_drawn(self) -> bool:
        """Return whether the order, if it is kept in a file, is the one that its seed draws."""
        if self.kept is None or not self.kept.exists():
            return True
        drawn = ZooOrder(self.parts, self.shares, self.settings).mixture.order
        return np.array_equal(drawn, np.fromfile(self.kept, dtype=np.uint8))

    def keep(self, path: Path) -> None:
        """Write a long order to a file, so that its readers need not draw it again."""
        if self.mixture.length >= LONG and not path.exists():
            with replacing(path) as temporary:
                self.mixture.order.tofile(temporary)

    def refs(self, start: int, stop: int) -> Refs:
        """Return what the positions [start, stop) consume."""
        return self.mixture.refs(start, stop)

    def positions(self, part: int, row: int, stop: int) -> list[int]:
        """Return all positions below `stop` that consume a row of a part."""
        return self.mixture.positions(part, row, stop)

    def counts(self, position: int) -> list[int]:
        """Return how many of the first `position` positions each part has."""
        return self.mixture.counts(position, len(self.parts))


def beyond(rows: int, ranges: Sequence[tuple[float, float]], row: int) -> RefusalError:
    """Return the error for rows that do not exist."""
    return RefusalError(
        f"data_subset {list(ranges)} of {rows} rows as in Model Zoo 1.9.1 asks for row {row} "
        "(IndexError there); use the meaning of 2.0.3"
    )


def subset_bounds(
    rows: int, part: tuple[float, float], version: Literal["1.9.1", "2.0.3"]
) -> tuple[int, int]:
    """Return the rows [first, last) that one range of `data_subset` takes; all of them are whole.

    Raises RefusalError where 1.9.1 asks for rows that do not exist.
    """
    first, last = int(rows * part[0]), int(rows * part[1])
    if version == "2.0.3" or part == (0.0, 1.0):  # all of them: no `data_subset` there
        return first, last
    first, last = last - first, 2 * (last - first)  # its size is taken for its first row
    if last > rows:
        raise beyond(rows, [part], last - 1)
    return first, last
