"""Curves and flows of a page: numbers, and where they lie on a plot of 1000 by 100.

A plot is stretched to the width of the page by the browser; its labels are text beside it, so that
they are as readable on a phone as on a wall.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 1000.0, 100.0
GAP = 4.0  # between two bars of a column
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


@dataclass(frozen=True)
class Bar:
    """A node of a flow: its column, and from where to where it stands, per cent from above."""

    name: str
    column: int
    top: float
    height: float


@dataclass(frozen=True)
class Flow:
    """A flow through columns.

    ribbons: SVG paths with the number of the middle bar that colours them; first: where these begin
    among the bars. lines: bars of the column that has most.
    """

    bars: tuple[Bar, ...]
    ribbons: tuple[tuple[str, int], ...]
    first: int
    lines: int


Link = tuple[str, str, float]


def flow(first: Sequence[Link], second: Sequence[Link]) -> Flow | None:
    """Lay out links of a left column to a middle one, and on to a right one; None without any."""
    if not first or not second:
        return None
    names = [
        list(dict.fromkeys(a for a, _, _ in first)),
        list(dict.fromkeys([*(b for _, b, _ in first), *(a for a, _, _ in second)])),
        list(dict.fromkeys(b for _, b, _ in second)),
    ]
    amounts = [
        {name: sum(n for a, _, n in first if a == name) for name in names[0]},
        {
            name: max(
                sum(n for _, b, n in first if b == name), sum(n for a, _, n in second if a == name)
            )
            for name in names[1]
        },
        {name: sum(n for _, b, n in second if b == name) for name in names[2]},
    ]
    most = max(len(column) for column in names)
    columns = [_stacked(column, most) for column in amounts]
    bars = tuple(
        Bar(name, place, top, height)
        for place, column in enumerate(columns)
        for name, (top, height) in column.items()
    )
    ribbons = [
        *_ribbons(first, columns[0], columns[1], (0, 490), names[1], 1),
        *_ribbons(second, columns[1], columns[2], (510, 1000), names[1], 0),
    ]
    return Flow(bars, tuple(ribbons), len(names[0]), most)


def _stacked(amounts: Mapping[str, float], most: int) -> dict[str, tuple[float, float]]:
    """Return top and height of each bar, gaps so wide that each has a line for its name."""
    least = 0.6 * HEIGHT / most / 1.6
    free = HEIGHT - least * len(amounts)
    whole = sum(amounts.values()) or 1.0
    bars: dict[str, tuple[float, float]] = {}
    top = 0.0
    for name, amount in amounts.items():
        height = free * amount / whole
        bars[name] = (top + least / 2, height)
        top += height + least
    return bars


def _ribbons(
    links: Sequence[Link],
    left: Mapping[str, tuple[float, float]],
    right: Mapping[str, tuple[float, float]],
    ends: tuple[int, int],
    middle: Sequence[str],
    side: int,
) -> list[tuple[str, int]]:
    """Return the ribbons between two columns; side: which end of a link is in the middle column."""
    totals = [
        {name: sum(link[2] for link in links if link[end] == name) or 1.0 for name in column}
        for end, column in enumerate((left, right))
    ]
    done: list[dict[str, float]] = [{}, {}]
    ribbons: list[tuple[str, int]] = []
    for a, b, amount in links:
        edges: list[tuple[float, float]] = []
        for end, (name, column) in enumerate(((a, left), (b, right))):
            top, height = column[name]
            start = top + done[end].get(name, 0.0)
            width = height * amount / totals[end][name]
            done[end][name] = done[end].get(name, 0.0) + width
            edges.append((start, start + width))
        (x0, x1), ((a0, a1), (b0, b1)) = ends, edges
        bend = (x0 + x1) / 2
        path = (
            f"M{x0},{a0:.2f} C{bend},{a0:.2f} {bend},{b0:.2f} {x1},{b0:.2f} "
            f"L{x1},{b1:.2f} C{bend},{b1:.2f} {bend},{a1:.2f} {x0},{a1:.2f} Z"
        )
        ribbons.append((path, middle.index((a, b)[side])))
    return ribbons


def _brief(value: float, span: float) -> str:
    """Return a number with as many digits as tell it from its neighbours."""
    digits = max(0, min(6, 1 - floor(log10(span / TICKS)))) if span < 10 * TICKS else 0
    return f"{value:,.{digits}f}"
