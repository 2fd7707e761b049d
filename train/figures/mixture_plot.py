"""Plots of plans, builds and ablations: shares asked and got, lengths, a recommended mixture.

Each takes plain numbers, so that a plan is drawn like the build that comes of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crystalmix.mixtures.laws.recommend import Recommendation
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.figures import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Share = tuple[str, float, float]  # part, asked, got
SUFFIXES = (".png", ".svg", ".pdf")
MOST_LENGTHS = 40  # of a picture, the first ones
COPIES_ROWS = 6  # bars that a panel of copies is as high as
ROW, WIDTH, HEAD = 0.34, 9.0, 1.3  # inches: of a bar, of a picture, of a panel's title and axis


@dataclass(frozen=True)
class Lengths:
    """Tokens of the documents of a source in a domain, by percentile."""

    label: str
    p10: float
    median: float
    p90: float


@dataclass(frozen=True)
class Copies:
    """Epochs of documents by equal buckets of their ranks; got: None where nothing is built."""

    label: str
    asked: tuple[float, ...]
    got: tuple[float, ...] | None


def checked(file: Path) -> Path:
    """Return a file to draw into; UsageError where it is of another kind, or without matplotlib."""
    if file.suffix not in SUFFIXES:
        raise UsageError(f"--plot: must end in {', '.join(SUFFIXES)}, got {file.name!r}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UsageError(
            "--plot: matplotlib is not installed; install crystalmix with its extra `plot`"
        ) from None
    return file


def saved(figure: "Figure", file: Path) -> str:
    """Write a figure and say so."""
    with replacing(file) as place:
        figure.savefig(place, format=file.suffix[1:])
    return f"drew {file}"


def shares(
    title: str,
    phases: Mapping[str, Sequence[Share]],
    lengths: Sequence[Lengths] = (),
    copies: Sequence[Copies] = (),
) -> "Figure":
    """Draw what the parts of each phase ask and get, copies and lengths of documents."""
    shown = lengths[:MOST_LENGTHS]
    rows = [len(parts) for parts in phases.values()]
    rows += [COPIES_ROWS] * len(copies) + [len(shown)] * bool(shown)
    heights = [HEAD + ROW * count for count in rows]
    figure, panels = charts.axes(WIDTH, sum(heights), len(rows), height_ratios=heights)
    figure.suptitle(title, color=charts.INK, fontsize=12)
    for axis, (name, parts) in zip(panels, phases.items(), strict=False):
        _shares(axis, name, parts)
    for axis, entry in zip(panels[len(phases) :], copies, strict=False):
        _copies(axis, entry)
    if shown:
        left_out = len(lengths) - len(shown)
        more = f" (the first {len(shown)}, {left_out} left out)" if left_out else ""
        _lengths(panels[-1], f"lengths of documents, by domain and source{more}", shown)
    return figure


def recommended(title: str, mixture: Recommendation) -> "Figure":
    """Draw a recommended mixture with the intervals of its shares, and the current one."""
    figure, [axis] = charts.axes(WIDTH, HEAD + 0.4 + ROW * len(mixture.shares))
    place = np.arange(len(mixture.shares))[::-1]
    best = np.array([*mixture.shares.values()])
    low, high = np.array([mixture.interval[name] for name in mixture.shares]).T
    axis.errorbar(
        best,
        place,
        xerr=np.maximum([best - low, high - best], 0.0),
        fmt="o",
        capsize=3,
        color=charts.COLOURS[0],
        label="recommended, bars: its interval (bootstrap)",
    )
    current = [mixture.current[name] for name in mixture.shares]
    axis.plot(current, place, "D", color=charts.COLOURS[1], label="current")
    axis.set_yticks(place, [*mixture.shares])
    axis.set_xlim(0, 1)
    charts.label(axis, "share of tokens", "", title)
    axis.legend(frameon=False, fontsize=9)
    return figure


def _shares(axis: "Axes", name: str, parts: Sequence[Share]) -> None:
    place = np.arange(len(parts))[::-1]
    names, targets, got = zip(*parts, strict=True)
    axis.barh(place, got, height=0.66, color=charts.COLOURS[0], label="got")
    axis.plot(targets, place, "|", color=charts.INK, markersize=13, label="asked")
    for y, value in zip(place, got, strict=True):
        axis.text(value, y, f"  {value:.2%}", va="center", color=charts.INK, size=8)
    axis.set_yticks(place, names)
    axis.set_xlim(0, max(1e-9, 1.35 * max((*got, *targets), default=1.0)))
    charts.label(axis, "share of rows", "", name)
    _legend(axis)


def _copies(axis: "Axes", copies: Copies) -> None:
    count = len(copies.asked)
    place = (np.arange(count) + 0.5) / count
    got = copies.asked if copies.got is None else copies.got
    colour = charts.COLOURS[-1] if copies.got is None else charts.COLOURS[0]
    label = "asked" if copies.got is None else "got"
    axis.bar(place, got, width=0.8 / count, color=colour, label=label)
    if copies.got is not None:
        axis.plot(place, copies.asked, "_", color=charts.INK, markersize=11, label="asked")
    charts.label(axis, "percentile", "epochs", copies.label)
    _legend(axis)


def _lengths(axis: "Axes", title: str, lengths: Sequence[Lengths]) -> None:
    place = np.arange(len(lengths))[::-1]
    low, high = (np.array([getattr(entry, key) for entry in lengths]) for key in ("p10", "p90"))
    axis.barh(
        place,
        np.maximum(high - low, 1e-9),
        left=low,
        height=0.5,
        color=charts.COLOURS[0],
        alpha=0.5,
        label="10th to 90th percentile",
    )
    medians = [entry.median for entry in lengths]
    axis.plot(medians, place, "|", color=charts.INK, markersize=11, label="median")
    axis.set_yticks(place, [entry.label for entry in lengths])
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    if max(high) < 10 * max(1, min(low)):  # one decade has no room for its own marks alone
        axis.xaxis.set_minor_formatter("{x:,.0f}")
    charts.label(axis, "tokens of a document", "", title)
    _legend(axis)


def _legend(axis: "Axes") -> None:
    """Put the legend beside the title, where no bar is."""
    axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncol=2)
