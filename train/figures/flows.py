"""Layout of amounts that flow over three columns, for pages and for figures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

HEIGHT = 100.0
WAYS = ((0, 490), (510, 1000))  # between the columns, of an SVG path

Link = tuple[str, str, float]


@dataclass(frozen=True)
class Bar:
    """A node of a flow: its column, and from where to where it stands, per cent from above."""

    name: str
    column: int
    top: float
    height: float


@dataclass(frozen=True)
class Ribbon:
    """A link from a column to the next: its top and bottom at both ends, per cent from above.

    middle: number of the bar of the middle column that it has an end in, which colours it.
    """

    column: int
    left: tuple[float, float]
    right: tuple[float, float]
    middle: int

    @property
    def path(self) -> str:
        """It as an SVG path, columns 500 apart and 20 wide."""
        x0, x1 = WAYS[self.column]
        (a0, a1), (b0, b1), bend = self.left, self.right, (x0 + x1) / 2
        return (
            f"M{x0},{a0:.2f} C{bend},{a0:.2f} {bend},{b0:.2f} {x1},{b0:.2f} "
            f"L{x1},{b1:.2f} C{bend},{b1:.2f} {bend},{a1:.2f} {x0},{a1:.2f} Z"
        )


@dataclass(frozen=True)
class Flow:
    """A flow through columns.

    first: where the middle column begins among the bars. lines: bars of the column that has most.
    """

    bars: tuple[Bar, ...]
    ribbons: tuple[Ribbon, ...]
    first: int
    lines: int


def flow(first: Sequence[Link], second: Sequence[Link]) -> Flow | None:
    """Lay out links of a left column to a middle one, and on to a right one; None without any."""
    if not first or not second:
        return None
    ins, outs = _summed((b, n) for _, b, n in first), _summed((a, n) for a, _, n in second)
    middle = {name: max(ins.get(name, 0.0), outs.get(name, 0.0)) for name in {**ins, **outs}}
    sides = _summed((a, n) for a, _, n in first), _summed((b, n) for _, b, n in second)
    amounts = [sides[0], middle, sides[1]]
    most = max(map(len, amounts))
    columns = [_stacked(column, most) for column in amounts]
    bars = tuple(
        Bar(name, place, top, height)
        for place, column in enumerate(columns)
        for name, (top, height) in column.items()
    )
    ribbons = [
        *_ribbons(first, 0, columns[0], columns[1], [*middle]),
        *_ribbons(second, 1, columns[1], columns[2], [*middle]),
    ]
    return Flow(bars, tuple(ribbons), len(sides[0]), most)


def _summed(amounts: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Add amounts up by name."""
    sums: dict[str, float] = {}
    for name, amount in amounts:
        sums[name] = sums.get(name, 0.0) + amount
    return sums


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
    place: int,
    left: Mapping[str, tuple[float, float]],
    right: Mapping[str, tuple[float, float]],
    middle: Sequence[str],
) -> Iterator[Ribbon]:
    """Yield the ribbons from a column to the next."""
    totals = _summed((a, n) for a, _, n in links), _summed((b, n) for _, b, n in links)
    done: list[dict[str, float]] = [{}, {}]
    for a, b, amount in links:
        edges: list[tuple[float, float]] = []
        for end, (name, column) in enumerate(((a, left), (b, right))):
            top, height = column[name]
            start = top + done[end].get(name, 0.0)
            width = height * amount / (totals[end][name] or 1.0)
            done[end][name] = done[end].get(name, 0.0) + width
            edges.append((start, start + width))
        yield Ribbon(place, edges[0], edges[1], middle.index(a if place else b))
