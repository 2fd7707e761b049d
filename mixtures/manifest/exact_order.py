"""The order of consumption: position -> (part, epoch, row) and back, from numbers alone.

A mixture is interleaved by a Huffman tree over its parts. Of its first n positions, a node of
weight s sends L(n) = floor((n * a + floor(s / 2)) / s) to its left child of weight a, the rest to
the right one. So the count of any part before any position, and the position of any draw, are
known without replay, for any horizon. Each part then walks through its rows in a fresh permutation
per epoch.

Why no prefix strays from a part's exact share by PREFIX_BOUND: L(n) is n * a / s rounded to the
nearest, so a node adds an error of at most 1/2 to each child's count, and an error e in the count
of a node of weight w reaches a leaf of weight w0 below it as e * w0 / w. Let w0 < w1 < w2 ... be
the weights from the leaf upward, without the root, whose count is exact: the leaf is within
1/2 * sum(w0 / wk). When Huffman's algorithm made wk, from w(k-1) and its sibling, these two were
the lightest nodes. The node that later joins wk existed too, or was made of nodes that were, so
it weighs at least w(k-1), and w(k+1) >= wk + w(k-1). Hence wk >= w0 * (1, 1, 2, 3, 5, ...), and the
sum is below 1 + 1 + 1/2 + 1/3 + 1/5 + ... = 3.35989, the reciprocal Fibonacci constant. A window,
such as a step, is the difference of two prefixes: within twice the bound.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, lru_cache
from math import gcd, lcm
from operator import index
from typing import TYPE_CHECKING, Final, NamedTuple

from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.permutation import Permutation, forward_each
from crystalmix.prep.runtime.randomness import key
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

VERSION: Final = "exact-1"
PREFIX_BOUND: Final = 1.68  # rows; half of 3.35989 (proof above)
LIMIT: Final = 2**62  # of weights and positions: the sum of two residues stays within int64


class _Split(NamedTuple):
    """An inner node: its children, the left child's weight, and both children's."""

    left: int
    right: int
    weight: int
    total: int

    def count(self, n: int) -> int:
        """Return L(n): how many of the first n positions go to the left child."""
        return (n * self.weight + self.total // 2) // self.total

    def find_left(self, draw: int) -> int:
        """Return the position that is the left child's `draw`-th: the least n, L(n + 1) > draw."""
        return ((draw + 1) * self.total - self.total // 2 - 1) // self.weight

    def find_right(self, draw: int) -> int:
        """Return the same for the right child, whose count is n - L(n)."""
        return (draw * self.total + self.total // 2) // (self.total - self.weight)

    def goes_left(self, start: int, size: int) -> NDArray[np.bool_]:
        """Return which of the positions start, start + 1, ... go to the left child.

        L rises at n where ((n + 1) * a + h) mod s < a. The residues are made by doubling, so that
        nothing exceeds 2 * s < 2**63: r[m:2m] = r[0:m] + m * a (mod s).
        """
        residues = np.empty(size, dtype=np.int64)
        residues[:1] = ((start + 1) * self.weight + self.total // 2) % self.total
        done = 1
        while done < size:
            more = residues[done : 2 * done]
            np.add(residues[: len(more)], done * self.weight % self.total, out=more)
            np.subtract(more, self.total, out=more, where=more >= self.total)
            done *= 2
        return residues < self.weight


class Interleave:
    """The interleaving of parts with exact integer weights: position -> (part, draw) and back.

    Equal weights are ordered by their place in `weights`; scaling all weights changes nothing.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 1:
            raise ValueError(f"weights must be positive integers, one at least, got {weights}")
        weights = [index(weight) for weight in weights]  # numpy's integers would wrap
        _check_sum(weights)
        self._parts: Final = len(weights)
        self._splits: Final[list[_Split]] = []
        self._parents: Final = [0] * (2 * len(weights) - 1)
        # a node's number is its age: parts first, then inner nodes as they are made, the root last
        heap = [(weight, number) for number, weight in enumerate(weights)]
        heapq.heapify(heap)
        for number in range(len(weights), 2 * len(weights) - 1):
            (light, left), (heavy, right) = heapq.heappop(heap), heapq.heappop(heap)
            self._splits.append(_Split(left, right, light, light + heavy))
            self._parents[left] = self._parents[right] = number
            heapq.heappush(heap, (light + heavy, number))

    def counts(self, position: int) -> list[int]:
        """Return how many of the first `position` positions each part has."""
        return self._arrivals(position)[: self._parts]

    def assign(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """Return each position's part and the number of the draw within it, for [start, stop)."""
        places = np.arange(_span(start, stop), dtype=np.int64)
        first = self._arrivals(start)
        slots = [places] * len(first)  # of each node; all but the root's are overwritten
        for number, split in self._down():
            slot = slots[number]
            left = split.goes_left(first[number], len(slot))
            slots[split.left], slots[split.right] = slot[left], slot[~left]
        part, draw = np.empty_like(places), np.empty_like(places)
        for leaf in range(self._parts):
            part[slots[leaf]] = leaf
            draw[slots[leaf]] = first[leaf] + np.arange(len(slots[leaf]), dtype=np.int64)
        return part, draw

    def position(self, part: int, draw: int) -> int:
        """Return the position of a draw of a part: the inverse of `assign`."""
        if not (0 <= part < self._parts and draw >= 0):
            values = f"part {part}, draw {draw}"
            raise ValueError(f"part must lie in [0, {self._parts}) and draw be >= 0, got {values}")
        node, draw, root = index(part), index(draw), len(self._parents) - 1
        while node != root:
            parent = self._parents[node]
            split = self._splits[parent - self._parts]
            draw = split.find_left(draw) if node == split.left else split.find_right(draw)
            node = parent
        return draw

    def _arrivals(self, position: int) -> list[int]:
        """Return how many of the first `position` positions reach each node."""
        counts = [_span(0, position)] * len(self._parents)
        for number, split in self._down():
            counts[split.left] = split.count(counts[number])
            counts[split.right] = counts[number] - counts[split.left]
        return counts

    def _down(self) -> Iterator[tuple[int, _Split]]:
        """Yield inner nodes with their numbers, parents before children."""
        for i in reversed(range(len(self._splits))):
            yield self._parts + i, self._splits[i]


@frozen
class OrderPart:
    """A part as the order sees it: its exact weight, rows available, and digest of its content.

    start: the draw of its own sequence of (epoch, row) at which it begins.
    """

    name: str
    weight: int
    rows: int
    digest: str
    start: int = 0


@frozen
class Refs:
    """What n consecutive positions consume, (n,) int64 each; part is a place in the listing."""

    part: Int64s
    epoch: Int64s
    row: Int64s


class Order:
    """The `exact` order of a phase: position -> (part, epoch, row) and back.

    Listing the parts otherwise only relabels them. A part's sequence of (epoch, row) depends on the
    seed, its digest and its rows alone, so two parts of one digest walk through the same rows.
    """

    def __init__(self, parts: Sequence[OrderPart], seed: int) -> None:
        _check_parts(parts)
        self.parts: Final = tuple(parts)
        self.seed: Final = index(seed)
        ranked = sorted(range(len(parts)), key=lambda at: (parts[at].weight, parts[at].name))
        self._ranks: Final = {part: rank for rank, part in enumerate(ranked)}
        self._interleave: Final = Interleave([parts[part].weight for part in ranked])

    @cached_property
    def _ranked(self) -> Int64s:
        """The part, as a place in the listing, of each rank: (parts,)."""
        return np.array([*self._ranks], dtype=np.int64)

    def refs(self, start: int, stop: int) -> Refs:
        """Return what the positions in [start, stop) consume."""
        rank, draw = self._interleave.assign(start, stop)
        places = self._ranked[rank]
        rows = np.array([part.rows for part in self.parts], dtype=np.int64)[places]
        walks: list[Permutation] = []
        origins: list[int] = []  # where in `walks` the part's epoch 0 is, or would be
        counts = zip(self.parts, self.counts(start), self.counts(stop), strict=True)
        for part, before, after in counts:
            first, last = part.start + before, part.start + after
            epochs = range(first // part.rows, -(-last // part.rows))
            origins.append(len(walks) - epochs.start)
            walks += [self._walk(part, epoch) for epoch in epochs]
        draw += np.array([part.start for part in self.parts], dtype=np.int64)[places]
        epoch = draw // rows
        which = np.array(origins, dtype=np.int64)[places] + epoch
        return Refs(places, epoch, forward_each(walks, which, draw % rows))

    def positions(self, part: int, row: int, stop: int) -> list[int]:
        """Return all positions below `stop` that consume a row of a part, ascending."""
        if not (0 <= part < len(self.parts) and 0 <= row < self.parts[part].rows):
            raise ValueError(f"no row {row} of a part {part} among {len(self.parts)} parts")
        order_part = self.parts[part]
        first = order_part.start
        last = first + self.counts(stop)[part]
        row_1 = np.array([row], dtype=np.int64)  # (1,)
        positions: list[int] = []
        for epoch in range(first // order_part.rows, -(-last // order_part.rows)):
            draw = epoch * order_part.rows + int(self._walk(order_part, epoch).inverse(row_1)[0])
            if first <= draw < last:
                positions.append(self._interleave.position(self._ranks[part], draw - first))
        return positions

    def draws_of(self, part: int, rows: Int64s, stop: int) -> tuple[Int64s, Int64s, Int64s]:
        """Return which row, epoch and position of every draw below `stop` of rows of a part.

        rows: (n,); which: indices of it. As `positions` for each row, in one pass for all.
        """
        order_part = self.parts[part]
        first, rank = order_part.start, self._ranks[part]
        last = first + self.counts(stop)[part]
        blocks: list[tuple[Int64s, Int64s, Int64s]] = []
        for epoch in range(first // order_part.rows, -(-last // order_part.rows)):
            draw = epoch * order_part.rows + self._walk(order_part, epoch).inverse(rows)
            which = np.flatnonzero((draw >= first) & (draw < last))
            draws = (draw[which] - first).tolist()
            places = [self._interleave.position(rank, draw) for draw in draws]
            blocks.append((which, np.full(len(which), epoch), np.array(places, dtype=np.int64)))
        none = np.empty(0, np.int64)
        columns = zip(*blocks, strict=True) if blocks else ([none],) * 3
        which, epochs, positions = (np.concatenate([none, *column]) for column in columns)
        return which, epochs, positions

    def counts(self, position: int) -> list[int]:
        """Return how many of the first `position` positions each part has, as listed."""
        counts = self._interleave.counts(position)
        return [counts[self._ranks[part]] for part in range(len(self.parts))]

    def _walk(self, part: OrderPart, epoch: int) -> Permutation:
        """Return the order of a part's rows in one epoch."""
        return _permutation(self.seed, part.digest, epoch, part.rows)


@lru_cache(maxsize=4096)
def _permutation(seed: int, digest: str, epoch: int, rows: int) -> Permutation:
    """Make the permutation of one epoch; its key names neither the part nor its place."""
    return Permutation(rows, key(seed, "order", VERSION, digest, epoch))


def integer_weights(weights: Sequence[Fraction]) -> list[int]:
    """Return the least integers in the same proportions.

    >>> integer_weights([Fraction("0.5"), Fraction("0.3"), Fraction("0.2")])
    [5, 3, 2]
    """
    if not weights or min(weights) < 0 or max(weights) == 0:
        raise ValueError(f"weights must not be negative, nor all 0, got {[*map(str, weights)]}")
    denominator = lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * denominator) for weight in weights]
    common = gcd(*whole)
    whole = [weight // common for weight in whole]
    _check_sum(whole)
    return whole


def largest_remainders(
    exact: Mapping[str, float] | Mapping[str, Fraction] | Mapping[str, Decimal], total: int
) -> dict[str, int]:
    """Round amounts to whole ones that sum to `total`; the largest remainders are rounded up.

    >>> largest_remainders({"a": 3.5, "b": 3.25, "c": 3.25}, 10)
    {'a': 4, 'b': 3, 'c': 3}
    """
    whole = {name: int(amount) for name, amount in exact.items()}
    left = total - sum(whole.values())
    for name in sorted(exact, key=lambda name: (whole[name] - exact[name], name))[:left]:
        whole[name] += 1
    return whole


def _check_sum(weights: Sequence[int]) -> None:
    """Refuse weights whose residues would not fit int64."""
    total = sum(weights)
    if total >= LIMIT:
        raise ValueError(
            f"weights as integers must sum to less than 2**62, got {total}, of which the largest "
            f"is {max(weights)}, in {len(weights)} parts; write the weights with fewer digits"
        )


def _check_parts(parts: Sequence[OrderPart]) -> None:
    """Refuse names that occur twice (they settle ties) and parts without rows."""
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"parts must have distinct names, got {twice} more than once")
    for part in parts:
        if part.rows < 1:
            raise ValueError(f"part {part.name}: rows must be positive, got {part.rows}")
        if not 0 <= part.start < LIMIT:
            raise ValueError(f"part {part.name}: start must lie in [0, 2**62), got {part.start}")


def _span(start: int, stop: int) -> int:
    """Return how many positions lie in [start, stop)."""
    if not 0 <= start <= stop < LIMIT:
        raise ValueError(f"need 0 <= start <= stop < 2**62, got start {start}, stop {stop}")
    return index(stop) - index(start)
