"""Plots of a run: loss per part, realised shares against those asked, held-out loss, over steps.

The phases stand one after the other; a part has one colour in all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.figures.charts import palette
from crystalmix.train.figures.mixture_plot import checked, saved
from crystalmix.train.record import metrics
from crystalmix.train.record import views as trace
from crystalmix.train.record.run_folder import WHERE, PhaseFolder, build_of, read_claim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
POINTS = 200  # a line is a running mean over a POINTS-th of its steps
WHOLE = "SELECT step, loss FROM steps WHERE phase = ? AND loss IS NOT NULL ORDER BY step"
LOSSES = 'SELECT step, part, "rows", tokens, loss FROM losses WHERE phase = ? ORDER BY step'
RECORDED = "SELECT phase, min(step) AS first, max(step) AS last FROM steps GROUP BY phase"
WIDTH, HEIGHT, DOTS = 10.0, 3.2, 150


@dataclass(frozen=True)
class Line:
    """One line of a panel: x in steps over all phases, y; level: what was asked."""

    label: str
    x: Floats
    y: Floats
    level: float | None = None


def draw(run: Path, build: Path | None, file: Path) -> str:
    """Draw a run into a file (PNG, SVG or PDF) and say so; UsageError without matplotlib."""
    checked(file)
    if not (run / WHERE).exists():
        raise InputError(f"{run}: is no run; give the --out of `crystalmix train` to --plot")
    from matplotlib.figure import Figure

    place = build_of(run, build)
    starts, steps = _starts(run, place)
    losses, shares = _lines(run, place, starts)
    panels = {
        f"loss of all rows ({_units(run, starts)})": _whole(run, place, starts),
        "loss (nats per token with loss)": losses,
        "share of rows so far": shares,
    }
    if held_out := _held_out(run, starts):
        panels["held-out loss (nats per token)"] = held_out
    title = "Losses and shares of parts"
    figure = Figure(figsize=(WIDTH, HEIGHT * len(panels)), dpi=DOTS, layout="constrained")
    figure.suptitle(f"{title}; a line is a mean over a {POINTS}-th of the steps")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    colours = palette([line.label for lines in panels.values() for line in lines])
    for axis, (label, lines) in zip(axes, panels.items(), strict=True):
        _panel(axis, label, lines, colours)
        for phase, start in starts.items():
            axis.axvline(start, color="0.7", linewidth=0.8)
            if axis is axes[0]:
                axis.annotate(f" {phase}", (start, 1.01), xycoords=("data", "axes fraction"))
    axes[-1].set_xlabel("step (phases one after the other)")
    axes[-1].set_xlim(0, steps)
    return saved(figure, file)


def _units(run: Path, phases: Iterable[str]) -> str:
    claims = (read_claim(PhaseFolder(run / phase)) for phase in phases)
    return " or ".join(dict.fromkeys(claim.loss_unit for claim in claims))


def _starts(run: Path, build: Path) -> tuple[dict[str, int], int]:
    """Return where each recorded phase begins on the axis, in their order, and where it ends."""
    recorded = trace.connect(build, run).rows(RECORDED)
    last = {entry["phase"]: entry["last"] for entry in recorded}
    starts, start = dict[str, int](), 0
    for manifest in read_manifests(build):
        if manifest.phase in last:
            starts[manifest.phase] = start
            start += last[manifest.phase] + 1
    return starts, start


def _lines(run: Path, build: Path, starts: dict[str, int]) -> tuple[list[Line], list[Line]]:
    """Return smoothed losses and realised shares, a line for each phase and part."""
    traced = trace.connect(build, run)
    losses, shares = list[Line](), list[Line]()
    for phase, start in starts.items():
        manifest = traced.manifests[phase]
        rows = traced.table(LOSSES, [phase])  # hundreds of thousands of steps: no dicts
        step, count, tokens, loss, part_of = (
            rows[name].to_numpy() for name in ("step", "rows", "tokens", "loss", "part")
        )
        steps = np.unique(step)
        total = np.arange(1, len(steps) + 1) * manifest.batch
        for part in manifest.parts:
            here = part_of == part.name
            counts = np.zeros(len(steps))
            counts[np.searchsorted(steps, step[here])] = count[here]
            share = np.cumsum(counts) / np.maximum(total, 1)
            shares.append(Line(part.name, steps + float(start), share, part.asked))
            here &= tokens > 0
            losses.append(Line(part.name, step[here] + float(start), _smooth(loss[here])))
    return losses, shares


def _whole(run: Path, build: Path, starts: dict[str, int]) -> list[Line]:
    """Return the loss of all rows, a line for each phase: as recorded, and smoothed."""
    traced = trace.connect(build, run)
    lines: list[Line] = []
    for phase, start in starts.items():
        rows = traced.table(WHOLE, [phase])
        x, loss = rows["step"].to_numpy() + float(start), rows["loss"].to_numpy()
        smooth = _smooth(loss)
        lines += [Line("each step", x, loss)] * (smooth is not loss)
        lines.append(Line("all rows", x, smooth))
    return lines


def _held_out(run: Path, starts: dict[str, int]) -> list[Line]:
    """Return held-out losses, a line for each phase, part and kind."""
    lines: list[Line] = []
    for phase, start in starts.items():
        every = metrics.evaluations(PhaseFolder(run / phase))
        entries = [entry for entry in every if entry.loss is not None]
        for part, kind in dict.fromkeys((e.part, e.kind) for e in entries):
            own = [e for e in entries if (e.part, e.kind) == (part, kind)]
            x = np.array([entry.step for entry in own], np.float64) + start
            y = np.array([entry.loss for entry in own], np.float64)
            lines.append(Line(f"{part}, {kind.replace('_', ' ')}", x, y))
    return lines


def _panel(axis: "Axes", label: str, lines: list[Line], colours: dict[str, Any]) -> None:
    few = all(len(line.x) <= POINTS // 4 for line in lines)
    named: set[str] = set()
    for line in lines:
        once: dict[str, Any] = {} if line.label in named else {"label": line.label}
        named.add(line.label)
        marker = "." if few else None
        axis.plot(line.x, line.y, color=colours[line.label], linewidth=1.2, marker=marker, **once)
        if line.level is not None and len(line.x):
            ends = (line.x[0], line.x[-1])
            axis.plot(ends, (line.level,) * 2, color=colours[line.label], linewidth=0.8, ls=":")
    if any(line.level is not None for line in lines):
        axis.plot([], [], color="0.4", linewidth=0.8, ls=":", label="asked")
        axis.set_ylim(bottom=0)
    axis.set_ylabel(label)
    axis.grid(visible=True, color="0.92")
    columns = 1 + len(named) // 14
    axis.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False, ncols=columns
    )


def _smooth(values: Floats) -> Floats:
    """Return the mean of each value and those just before it, over a POINTS-th of them."""
    window = len(values) // POINTS
    if window < 2:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / (last - first)
