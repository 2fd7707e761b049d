"""Curves of a page: numbers, and where they lie on a plot of 1000 by 100.

A plot is stretched to the width of the page by the browser; its labels are text beside it, so that
they are as readable on a phone as on a wall.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 1000.0, 100.0
TICKS = 4


@dataclass(frozen=True)
class Curve:
    """A line of a plot; y has None where nothing is known."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Tick:
    """A number on an axis; place: per cent of it, from the left or from above."""

    text: str
    place: float


@dataclass(frozen=True)
class Mark:
    """A point that stands out, and where it leads; x, y: per cent from the left and from above."""

    text: str
    target: str
    x: float
    y: float


@dataclass(frozen=True)
class Plot:
    """A plot to draw. paths: of each curve its label and an SVG path. bounds: phases on x."""

    paths: tuple[tuple[str, str], ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    bounds: tuple[Tick, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Point:
    """A point to mark on a plot, in its own numbers."""

    text: str
    target: str
    x: float
    y: float


def plot(
    curves: Sequence[Curve], bounds: Mapping[str, float], points: Sequence[Point] = ()
) -> Plot | None:
    """Lay out curves over common axes; None where no curve has a point.

    bounds: where each phase begins on x.
    """
    lines = [
        (c.label, [(x, y) for x, y in zip(c.x, c.y, strict=True) if y is not None and isfinite(y)])
        for c in curves
    ]
    every = [point for _, line in lines for point in line]
    if not every:
        return None
    x_ticks = ticks(0.0, max(1.0, *(x for x, _ in every)), ends=False)
    heights = [y for _, y in every]
    heights += [point.y for point in points if isfinite(point.y)]
    y_ticks = ticks(min(heights), max(heights), ends=True)
    right, low, high = max(1.0, *(x for x, _ in every)), y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return x / right

    def down(y: float) -> float:
        return 1 - (y - low) / (high - low)

    paths = tuple(
        (
            label,
            "M" + " L".join(f"{WIDTH * across(x):.1f},{HEIGHT * down(y):.2f}" for x, y in line),
        )
        for label, line in lines
        if line
    )
    return Plot(
        paths,
        tuple(Tick(f"{x:,.0f}", 100 * across(x)) for x in x_ticks),
        tuple(Tick(_brief(y, high - low), 100 * down(y)) for y in y_ticks),
        tuple(Tick(name, 100 * across(x)) for name, x in bounds.items()),
        tuple(
            Mark(p.text, p.target, 100 * across(p.x), 100 * down(p.y))
            for p in points
            if isfinite(p.y)
        ),
    )


def ticks(low: float, high: float, *, ends: bool) -> list[float]:
    """Return round numbers from low to high; ends: such as enclose both.

    >>> ticks(5.3, 8.9, ends=True), ticks(0, 36, ends=False)
    ([5.0, 6.0, 7.0, 8.0, 9.0], [0, 10, 20, 30])
    """
    span = (high - low) or abs(high) or 1.0
    size = 10 ** floor(log10(span / TICKS))
    step = next(size * f for f in (1, 2, 2.5, 5, 10) if size * f >= span / TICKS * 0.999)
    first, last = floor(low / step), ceil(high / step) if ends else floor(high / step)
    return [round(step * number, 10) for number in range(first, max(last, first + 1) + 1)]


def _brief(value: float, span: float) -> str:
    """Return a number with as many digits as tell it from its neighbours."""
    digits = max(0, min(6, 1 - floor(log10(span / TICKS)))) if span < 10 * TICKS else 0
    return f"{value:,.{digits}f}"
