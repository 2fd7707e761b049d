"""Overlaps: how much of what a phase consumes, earlier phases consumed already.

From counts alone, hence expected values: a part of which an earlier part took e < 1 epochs was seen
to that share, for each epoch walks through the rows in a random order; halves of a domain are
disjoint, and rows of a subset lie evenly in both. Within one phase nothing counts as seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mixtures.phase import Part


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


def common(part: Part, other: Part) -> float:
    """Return the share of a part's rows that another part draws from too.

    >>> common(Part("c4", 1, subset=(0.0, 0.2)), Part("c4", 1, half="even", subset=(0.1, 1.0)))
    0.25
    """
    if part.domain != other.domain:
        return 0.0
    low, high = part.subset or (0.0, 1.0)
    other_low, other_high = other.subset or (0.0, 1.0)
    inside = max(0.0, min(high, other_high) - max(low, other_low)) / (high - low)
    if part.half is None and other.half is not None:
        return inside / 2
    return inside if other.half in {None, part.half} else 0.0
