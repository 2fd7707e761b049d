"""Overlaps: how much of what a phase consumes, earlier phases consumed already.

A phase walks through a part in an order that follows from what the part holds, from its beginning
or from where earlier phases stopped: two phases that begin at the same place read the same rows
first, and that is exact. Parts that share
rows otherwise (halves, subsets) give expected values from counts alone: a part of which an earlier
one took e < 1 epochs was seen to that share, for rows of a subset lie evenly in an order. Within
one phase nothing counts as seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crystalmix.mixtures.recipes.phase import Part, common, same_rows

NOTED = 0.5  # of a part's rows, read before while others are unread: the least share for a note


@dataclass(frozen=True)
class Taken:
    """What a phase took of a part: rows consumed, epochs of what there is, and by which walk.

    start: the draw of the walk at which it began.
    """

    part: Part
    rows: int
    epochs: float
    walk: str = ""
    phase: str = ""
    start: int = 0

    @property
    def stop(self) -> int:
        """The draw behind its last one."""
        return self.start + self.rows


def seen(part: Part, rows: int, before: Sequence[Taken], walk: str = "", start: int = 0) -> int:
    """Return how many of the `rows` that a part consumes were consumed before.

    walk: how the phase walks through a part; two ways of walking meet by chance only. start: the
    draw at which it begins. Earlier phases have read a prefix of the walk together.
    """
    same = _same_walk(part, before, walk)
    share = sum(
        common(part, taken.part) * min(1.0, taken.epochs) for taken in before if taken not in same
    )
    longest = max(same, key=lambda taken: taken.stop, default=None)
    overlap = 0.0
    if longest is not None and longest.rows:
        epoch = longest.rows / longest.epochs  # rows
        prefix = min(epoch, longest.stop)
        first = max(0.0, min(start + rows, epoch) - start)
        overlap = max(0.0, min(start + first, prefix) - start)
        overlap += (rows - first) * prefix / epoch if prefix < epoch else rows - first
    return round(overlap + (rows - overlap) * min(1.0, share))


def notes(
    part: Part, rows: int, before: Sequence[Taken], walk: str = "", start: int = 0
) -> list[str]:
    """Return a line for each phase whose rows a part reads again while others are unread."""
    return [
        f"part {part.name} begins with the rows that phase {taken.phase} began with, "
        f"{min(rows, taken.rows):,} of its {rows:,}: say `from: continue` to read on where that "
        "phase stopped, or give the phases subsets apart (0.0-0.5, 0.5-1.0)"
        for taken in _same_walk(part, before, walk)
        if rows and taken.epochs < 1 and min(rows, taken.rows) >= NOTED * rows
        if start == taken.start
    ]


def _same_walk(part: Part, before: Sequence[Taken], walk: str) -> list[Taken]:
    return [taken for taken in before if taken.walk == walk and same_rows(taken.part, part)]
