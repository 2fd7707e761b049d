"""Figures: what is drawn stands where the numbers say, with labels and units."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from crystalmix.train.figures import charts as figures
from crystalmix.train.figures import ternary
from crystalmix.train.figures.charts import FrontPoint, Mark, Panel

EVERY = np.arange(6.0)
POINTS = [
    FrontPoint(1.0, 3.0, "20 % code", measured=False, y_half=0.1),
    FrontPoint(2.0, 2.0, "60 % code", measured=False, y_half=0.2),
    FrontPoint(1.5, 2.4, "current", measured=True, x_half=0.1, y_half=0.1),
]
LEVELS = {
    "fim": [Mark("0", 4.0, 0.1), Mark("0.9", 4.2, None)],
    "order": [Mark("language-then-code", 4.1, 0.1)],
}
PANEL = Panel(EVERY, EVERY + 0.1, EVERY - 0.4, EVERY + 0.6, 0.9)


def drawn() -> Iterator[tuple[str, Any]]:
    """Yield every kind of figure with axes."""
    yield "curves", figures.curves({"a": (EVERY, EVERY)}, "step", "loss, nats", {"a": 0.3})
    yield "agreement", figures.agreement({"wiki": PANEL, "python": PANEL}, "nats per token")
    told = ("loss on", "a token of", "worth, in tokens")
    yield "matrix", figures.matrix(np.eye(2), ["a", "b"], ["a", "b"], told)
    yield "front", figures.front(POINTS, "language, nats", "code, nats")
    yield "levels", figures.levels(LEVELS, "valued loss, nats")
    line = (np.array([1.0, 4.0]), np.array([4.0, 4.2]))
    yield "repetition", figures.repetition(np.array([1.0, 4.0]), line[1], line, "R* = 7")
    yield "trace", figures.trace(EVERY, EVERY, [2])


NAMES = ("curves", "agreement", "matrix", "front", "levels", "repetition", "trace")


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_light_and_labelled(name: str) -> None:
    figure = dict(drawn())[name]
    assert figure.get_facecolor()[:3] == (1.0, 1.0, 1.0)
    first = figure.axes[0]
    assert first.get_ylabel(), name
    assert first.get_xlabel() or name == "levels"
    assert "nats" in first.get_ylabel() + first.get_xlabel() or name == "matrix"
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_matrix_shows_its_numbers() -> None:
    made = figures.matrix(np.array([[0.25, 1.0]]), ["a"], ["b", "c"], ("", "", ""))
    assert [text.get_text() for text in made.axes[0].texts] == ["0.25", "1.00"]


def test_a_step_that_stands_out_is_marked_where_it_is() -> None:
    made = figures.trace(EVERY, EVERY**2, [4])
    marks = made.axes[0].lines[1]
    assert (marks.get_xdata().tolist(), marks.get_ydata().tolist()) == ([4.0], [16.0])


def test_flows_are_as_wide_as_their_amounts() -> None:
    made = figures.flow(
        [("s", "a", 30.0), ("t", "a", 10.0), ("t", "b", 40.0)],
        [("a", "one", 40.0), ("b", "one", 20.0), ("b", "two", 20.0)],
        ("source", "domain", "phase"),
    )
    words = {text.get_text() for text in made.axes[0].texts}
    assert words == {"s", "t", "a", "b", "one", "two", "source", "domain", "phase"}
    # three ribbons, three more, and a bar for each of six names
    assert len(made.axes[0].collections) == 12


def test_a_front_names_its_points_by_their_share_of_code() -> None:
    axis = figures.front(POINTS, "x", "y").axes[0]
    assert {text.get_text() for text in axis.texts} == {"20 % code", "60 % code"}
    assert axis.get_legend().get_texts()[-1].get_text() == "current, measured"


def test_corners_of_a_triangle_are_pure_mixtures() -> None:
    made = ternary.simplex({"design": np.eye(3)}, ["a", "b", "c"])
    points = next(line for line in made.axes[0].lines if line.get_label() == "design")
    assert np.allclose(points.get_xydata(), ternary.CORNERS)
    assert {"a", "b", "c"} <= {text.get_text() for text in made.axes[0].texts}


def test_groups_add_up_their_domains() -> None:
    shares = np.array([[0.1, 0.2, 0.3, 0.4]])
    groups = {"x": ["a", "d"], "y": ["b"], "z": ["c"]}
    assert np.allclose(ternary.grouped(shares, ["a", "b", "c", "d"], groups), [[0.5, 0.2, 0.3]])


def test_a_heat_has_its_unit_and_its_marks() -> None:
    grid = ternary.lattice(12)
    values = ((grid - 1 / 3) ** 2).sum(axis=1)
    made = ternary.heat(
        grid, values, ["a", "b", "c"], flat=values < 0.05, marked={"best": grid[40]}, unit="nats"
    )
    assert made.axes[1].get_ylabel() == "nats"
    words = [text.get_text() for text in made.axes[0].get_legend().get_texts()]
    assert words == ["as good as the best", "best"]
