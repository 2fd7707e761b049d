"""Overlaps: how much of what a phase consumes, earlier phases consumed already.

From counts alone, hence expected values: a part of which an earlier part took e < 1 epochs was seen
to that share, for each epoch walks through the rows in a random order; halves of a domain are
disjoint, and rows of a subset lie evenly in both. Within one phase nothing counts as seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mixtures.phase import Part, common


@dataclass(frozen=True)
class Taken:
    """What a phase took of a part: the part, rows consumed, and epochs of what there is."""

    part: Part
    rows: int
    epochs: float


def seen(part: Part, rows: int, before: Sequence[Taken]) -> int:
    """Return how many of the `rows` that a part consumes were consumed before, as expected."""
    share = sum(common(part, taken.part) * min(1.0, taken.epochs) for taken in before)
    return round(rows * min(1.0, share))
