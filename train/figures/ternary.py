"""Ternary plots: mixtures of three groups of domains as points and colours in a triangle."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.train.figures.charts import FAINT, INK, axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
HEIGHT = 3**0.5 / 2
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, HEIGHT]])
GRID = 60


def place(shares: Floats) -> Floats:
    """Return where mixtures of three lie in the plane: (n, 3) -> (n, 2)."""
    return shares @ CORNERS


def lattice(steps: int = GRID) -> Floats:
    """Return all mixtures of three whose shares are multiples of 1 / steps: (n, 3)."""
    i, j = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1), indexing="ij")
    kept = i + j <= steps
    first, second = i[kept] / steps, j[kept] / steps
    return np.column_stack([first, second, 1 - first - second])


def grouped(shares: Floats, domains: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Floats:
    """Add up shares (n, domains) by three groups of domains: (n, 3)."""
    at = {name: i for i, name in enumerate(domains)}
    return np.column_stack([shares[:, [at[n] for n in names]].sum(1) for names in groups.values()])


def simplex(points: Mapping[str, Floats], groups: Sequence[str], title: str = "") -> "Figure":
    """Draw sets of mixtures of three in a triangle; points: (n, 3) by label."""
    figure, [axis] = axes(5.6, 4.8)
    _frame(axis, groups)
    marks = (("o", "#4C78A8"), ("D", "#F58518"), ("s", "#54A24B"), ("*", "#E45756"))
    for (name, shares), (mark, colour) in zip(points.items(), marks, strict=False):
        axis.plot(*place(shares).T, mark, color=colour, label=name, markersize=6)
    axis.legend(frameon=False, fontsize=9, loc="upper right")
    axis.set_title(title, color=INK, fontsize=11, loc="left")
    return figure


def heat(
    shares: Floats,
    values: Floats,
    groups: Sequence[str],
    *,
    flat: NDArray[np.bool_],
    marked: Mapping[str, Floats],
    unit: str,
    title: str = "",
) -> "Figure":
    """Draw values of mixtures as colours; flat: mixtures as good as the best, ringed by a line."""
    figure, [axis] = axes(6.6, 5.0)
    _frame(axis, groups)
    x, y = place(shares).T
    shown = axis.tricontourf(x, y, values, levels=16, cmap="YlGnBu")
    axis.tricontour(x, y, flat.astype(float), levels=[0.5], colors="#E45756", linewidths=1.6)
    axis.plot([], [], color="#E45756", label="as good as the best")
    for (name, share), mark in zip(marked.items(), "*DsP", strict=False):
        axis.plot(*place(share[None]).T, mark, color=INK, markersize=9, label=name)
    axis.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1.1, 1.08))
    axis.set_title(title, color=INK, fontsize=11, loc="left")
    figure.colorbar(shown, ax=axis, shrink=0.7, pad=0.06).set_label(unit, color=INK)
    return figure


def _frame(axis: Any, groups: Sequence[str]) -> None:  # noqa: ANN401  an Axes
    """Draw the triangle, lines at each fifth with their shares, and the names of its corners."""
    closed = np.vstack([CORNERS, CORNERS[:1]])
    axis.plot(*closed.T, color=INK, linewidth=1)
    for number in range(3):
        a, b = CORNERS[(number + 1) % 3], CORNERS[(number + 2) % 3]
        for share in (0.2, 0.4, 0.6, 0.8):
            ends = np.array([share * CORNERS[number] + (1 - share) * other for other in (a, b)])
            axis.plot(*ends.T, color=FAINT, linewidth=0.7, zorder=0)
            out = ends[0] + (ends[0] - ends[1]) * 0.035 / max(1e-9, 1 - share)
            axis.text(*out, f"{share:.0%}", size=7, color="#888888", ha="center", va="center")
    offsets = ((-0.03, -0.07), (0.03, -0.07), (0.0, 0.05))
    for corner, name, (dx, dy) in zip(CORNERS, groups, offsets, strict=True):
        axis.text(corner[0] + dx, corner[1] + dy, name, ha="center", color=INK, size=10)
    axis.set_aspect("equal")
    axis.set_xlim(-0.12, 1.12)
    axis.set_ylim(-0.12, HEIGHT + 0.12)
    axis.axis("off")
