"""Figures of the notebooks: bars, flows, curves, matrices, agreement, fronts; light, with units.

Each takes plain numbers and returns a matplotlib Figure; matplotlib is imported when one is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.train.figures import flows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
COLOURS = ("#4C78A8", "#F58518", "#54A24B", "#B279A2", "#E45756", "#72B7B2", "#9D755D", "#BAB0AC")
INK, FAINT = "#333333", "#DDDDDD"
DOTS = 110


@dataclass(frozen=True)
class Panel:
    """Measured and predicted losses of one target, (runs,) each, and their rank correlation."""

    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats
    rho: float


@dataclass(frozen=True)
class FrontPoint:
    """Two losses of one mixture, with half widths of their intervals."""

    x: float
    y: float
    text: str
    measured: bool
    x_half: float = 0.0
    y_half: float = 0.0


@dataclass(frozen=True)
class Mark:
    """A value with its standard error, None where it is unknown."""

    text: str
    value: float
    error: float | None


def axes(
    width: float, height: float, rows: int = 1, columns: int = 1, **more: Any
) -> tuple["Figure", list[Any]]:
    """Return a light figure and its axes, row by row."""
    figure = _shown()(figsize=(width, height), dpi=DOTS, layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False, **more)).ravel().tolist()
    for axis in panels:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(INK)
        axis.tick_params(colors=INK, labelsize=9)
        axis.grid(visible=True, color=FAINT, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, panels


@cache
def _shown() -> "type[Figure]":
    """Return a figure that a notebook shows by itself, whatever its backend."""
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            content = BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return Shown


def label(axis: "Axes", x: str, y: str, title: str = "") -> None:
    """Name the axes, with their units, and the panel."""
    axis.set_xlabel(x, color=INK, fontsize=10)
    axis.set_ylabel(y, color=INK, fontsize=10)
    axis.set_title(title, color=INK, fontsize=11, loc="left")


def bars(shares: Mapping[str, Mapping[str, float]], notes: Mapping[str, str]) -> "Figure":
    """Draw mixtures as stacked bars, one a line; notes stand at their ends."""
    figure, [axis] = axes(8.5, 0.9 + 0.42 * len(shares))
    domains = list(dict.fromkeys(name for mixture in shares.values() for name in mixture))
    place = np.arange(len(shares))[::-1]
    left = np.zeros(len(shares))
    for number, domain in enumerate(domains):
        wide = np.array([mixture.get(domain, 0.0) for mixture in shares.values()])
        axis.barh(place, wide, left=left, height=0.68, label=domain, color=_colour(number))
        for y, x, w in zip(place, left, wide, strict=True):
            if w >= 0.07:
                axis.text(x + w / 2, y, f"{w:.0%}", ha="center", va="center", color="white", size=8)
        left += wide
    for y, name in zip(place, shares, strict=True):
        axis.text(1.01, y, notes.get(name, ""), va="center", color=INK, size=8)
    axis.set_yticks(place, list(shares))
    axis.set_xlim(0, 1)
    axis.grid(visible=False)
    label(axis, "share of tokens", "")
    figure.legend(loc="outside upper center", ncols=min(6, len(domains)), frameon=False, fontsize=9)
    return figure


def flow(
    links: Sequence[flows.Link], second: Sequence[flows.Link], heads: Sequence[str]
) -> "Figure":
    """Draw amounts that flow over three columns: links of the first two, then of the last two."""
    laid_out = flows.flow(links, second)
    assert laid_out is not None
    figure, [axis] = axes(9.5, 1.2 + 0.34 * laid_out.lines)
    way = np.linspace(0, 1, 30)
    bend = way**2 * (3 - 2 * way)
    for ribbon in laid_out.ribbons:
        ends = zip(ribbon.left, ribbon.right, strict=True)
        high, low = (1 - (start + (stop - start) * bend) / 100 for start, stop in ends)
        x, colour = ribbon.column + 0.02 + 0.96 * way, _colour(ribbon.middle)
        axis.fill_between(x, low, high, color=colour, alpha=0.35, linewidth=0)
    for number, bar in enumerate(laid_out.bars):
        x, high, low = bar.column, 1 - bar.top / 100, 1 - (bar.top + bar.height) / 100
        colour = _colour(number - laid_out.first) if x == 1 else INK
        axis.fill_between([x - 0.02, x + 0.02], low, high, color=colour, linewidth=0)
        side, away = ("right", -0.035) if x == 0 else ("left", 0.035)
        axis.text(x + away, (low + high) / 2, bar.name, ha=side, va="center", size=8, color=INK)
    for x, head in enumerate(heads):
        axis.text(x, 1.03, head, ha="center", color=INK, size=10)
    axis.set_xlim(-0.55, 2.5)
    axis.set_ylim(-0.02, 1.1)
    axis.axis("off")
    return figure


def curves(
    lines: Mapping[str, tuple[Floats, Floats]],
    x: str,
    y: str,
    strength: Mapping[str, float],
    title: str = "",
) -> "Figure":
    """Draw lines over steps in one panel; strength in [0, 1] gives each its colour."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, [axis] = axes(8, 3.6)
    shades = colormaps["viridis"]
    for name, (steps, values) in lines.items():
        axis.plot(steps, values, color=shades(strength[name]), linewidth=1.1, alpha=0.9)
    label(axis, x, y, title)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), shades), ax=axis, pad=0.01)
    bar.set_label("share of code", color=INK)
    return figure


def agreement(panels: Mapping[str, Panel], unit: str, title: str = "") -> "Figure":
    """Draw predicted against measured losses, one panel a domain."""
    figure, grid = axes(2.9 * len(panels), 3.1, columns=len(panels))
    figure.suptitle(title, color=INK, fontsize=11)
    for number, (axis, (name, panel)) in enumerate(zip(grid, panels.items(), strict=True)):
        measured, mean = panel.measured, panel.predicted
        error = np.vstack([mean - panel.low, panel.high - mean])
        edges = [min(measured.min(), mean.min()), max(measured.max(), mean.max())]
        axis.plot(edges, edges, color=FAINT, linewidth=1.4, zorder=1)
        axis.errorbar(
            measured, mean, yerr=error, fmt="o", color=_colour(number), markersize=4, linewidth=0.8
        )
        head = f"{name}  (rank {panel.rho:.3f})"
        label(axis, f"measured, {unit}", f"predicted, {unit}" if number == 0 else "", head)
    return figure


def matrix(
    values: Floats,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str, str],
    digits: int = 2,
    title: str = "",
) -> "Figure":
    """Draw a matrix with its numbers; labels: of rows, of columns, of the values."""
    figure, [axis] = axes(2.6 + 0.95 * len(columns), 1.7 + 0.5 * len(rows))
    shown = axis.imshow(values, cmap="Blues", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value > middle else INK
        axis.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color=colour, size=9)
    axis.set_xticks(range(len(columns)), list(columns))
    axis.set_yticks(range(len(rows)), list(rows))
    axis.grid(visible=False)
    label(axis, labels[1], labels[0], title)
    figure.colorbar(shown, ax=axis, pad=0.02).set_label(labels[2], color=INK)
    return figure


def front(points: Sequence[FrontPoint], x: str, y: str, title: str = "") -> "Figure":
    """Draw a front of two losses with its band, and measured points with error bars."""
    figure, [axis] = axes(6, 4.2)
    line = sorted((p for p in points if not p.measured), key=lambda p: p.x)
    at, height = ([getattr(p, side) for p in line] for side in ("x", "y"))
    low, high = ([p.y + sign * p.y_half for p in line] for sign in (-1, 1))
    axis.plot(at, height, color=_colour(0), linewidth=1.5, label="predicted front")
    axis.fill_between(at, low, high, color=_colour(0), alpha=0.15, linewidth=0)
    for point in line:
        if point.text:
            offset = {"xytext": (5, 4), "textcoords": "offset points"}
            axis.annotate(point.text, (point.x, point.y), size=8, color=_colour(0), **offset)
    for number, point in enumerate([p for p in points if p.measured], start=1):
        axis.errorbar(
            point.x,
            point.y,
            xerr=point.x_half,
            yerr=point.y_half,
            fmt="o",
            capsize=3,
            color=_colour(number),
            label=f"{point.text}, measured",
        )
    axis.margins(x=0.12, y=0.08)
    label(axis, x, y, title)
    axis.legend(frameon=False, fontsize=9)
    return figure


def bands(at: Floats, curves: Mapping[str, Floats], x: str, y: str, title: str = "") -> "Figure":
    """Draw curves with their bands: each (3, n), the curve, its low and its high end."""
    figure, [axis] = axes(6, 3.8)
    for number, (name, (middle, low, high)) in enumerate(curves.items()):
        axis.plot(at, middle, color=_colour(number), linewidth=1.5, label=name)
        axis.fill_between(at, low, high, color=_colour(number), alpha=0.18, linewidth=0)
    label(axis, x, y, title)
    axis.legend(frameon=False, fontsize=9)
    return figure


def levels(groups: Mapping[str, Sequence[Mark]], y: str, title: str = "") -> "Figure":
    """Draw levels of factors side by side: value with its standard error, one panel a factor."""
    wide = [max(2.4, 0.9 * len(group)) for group in groups.values()]
    figure, grid = axes(1.2 + sum(wide), 3.4, columns=len(groups), sharey=True, width_ratios=wide)
    figure.suptitle(title, color=INK, fontsize=11)
    for number, (axis, (name, group)) in enumerate(zip(grid, groups.items(), strict=True)):
        place = np.arange(len(group))
        values, errors = [mark.value for mark in group], [mark.error or 0.0 for mark in group]
        axis.errorbar(place, values, yerr=errors, fmt="o", color=_colour(number), capsize=3)
        axis.set_xticks(place, [mark.text.replace("-then-", "\nthen ") for mark in group])
        label(axis, "", y if number == 0 else "", name)
    return figure


def repetition(
    epochs: Floats, losses: Floats, fitted: tuple[Floats, Floats], title: str
) -> "Figure":
    """Draw a repetition curve: measured losses, and the fitted line, over epochs."""
    figure, [axis] = axes(6, 3.6)
    axis.plot(*fitted, color=_colour(0), linewidth=1.4, label="fitted")
    axis.plot(epochs, losses, "o", color=_colour(1), label="measured")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({*epochs.tolist()}), [f"{e:g}" for e in sorted({*epochs.tolist()})])
    label(axis, "epochs over the same number of tokens", "held-out loss, nats per token", title)
    axis.legend(frameon=False, fontsize=9)
    return figure


def trace(steps: Floats, losses: Floats, spikes: Sequence[int]) -> "Figure":
    """Draw a loss over steps, with the steps that stand out."""
    figure, [axis] = axes(8, 3.0)
    axis.plot(steps, losses, color=_colour(0), linewidth=1.1)
    chosen = np.isin(steps, spikes)
    axis.plot(steps[chosen], losses[chosen], "o", color=_colour(4), label="stands out")
    label(axis, "step", "training loss, nats per token", "Training loss")
    axis.legend(frameon=False, fontsize=9)
    return figure


def palette(labels: Sequence[str]) -> dict[str, Any]:
    """Return a colour for each label, of its own as far as there are twenty."""
    from matplotlib import colormaps

    names = dict.fromkeys(labels)
    colours: Any = colormaps["tab10" if len(names) <= 10 else "tab20"]
    return dict(zip(names, cycle(colours.colors), strict=False))


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
