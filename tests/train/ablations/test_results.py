"""Insight and factors: an ablation's folder as arrays that agree with its tables."""

import numpy as np
import pytest

from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.ablations import factor_results as factors
from crystalmix.train.ablations.results import Insight
from crystalmix.train.figures import charts as figures
from crystalmix.train.figures import ternary
from helpers.ablations import tiny, varied


def test_the_law_fitted_anew_is_that_of_the_report() -> None:
    seen = Insight(tiny())
    law = next(law for law in seen.report.laws if law.law == seen.spec.law)
    assert float(np.mean(seen.fit.rho)) == pytest.approx(law.rho, abs=1e-6)
    left = seen.left_out()
    assert set(left) == set(seen.domains)
    for one in left.values():
        assert (one.low < one.predicted).all()
        assert (one.predicted < one.high).all()


def test_three_domains_are_three_groups_and_the_heat_holds_the_best() -> None:
    seen = Insight(tiny())
    assert list(seen.groups()) == seen.domains
    grid, values, flat, marked = seen.heat()
    assert np.allclose(grid.sum(1), 1)
    assert flat.any()
    assert values[flat].max() <= values.min() + seen.report.recommendation.sigma + 1e-6
    assert set(marked) == {"recommended", "current"}


def test_curves_are_one_a_mixture_with_its_share_of_code() -> None:
    seen = Insight(tiny())
    lines, strength = seen.curves()
    assert len(lines) == 11
    steps, losses = lines["centre"]
    assert len(steps) == len(losses) == 40 - 14
    assert strength["centre"] == pytest.approx(2 / 3)


def test_a_front_trades_language_for_code() -> None:
    points = [point for point in Insight(tiny()).front() if not point.measured]
    assert points[-1].x <= points[0].x + 1e-9
    assert points[-1].y >= points[0].y - 1e-9


def test_forgetting_is_told_phase_by_phase() -> None:
    seen = Insight(varied())
    phases, losses = factors.forgetting(seen, "crystal-3")
    assert phases == ["after phase 1", "after phase 2", "after phase 3"]
    assert losses.shape == (3, 3)
    code = seen.domains.index("python")
    assert losses[0, code] > losses[2, code]
    with pytest.raises(InputError, match="no run of order code-then-language"):
        factors.forgetting(seen, "code-then-language")


def test_a_difference_of_levels_has_an_interval_over_draws() -> None:
    gap = factors.difference(varied(), "order", "crystal-3", "crystal")
    assert gap.pairs == 2
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < gap.difference < gap.high
    line = factors.answer(gap, "a third phase")
    assert line.startswith("a third phase: ")
    assert "2 pairs" in line
    more = factors.difference(varied(), "order", "crystal-3", "crystal", questions=2)
    assert (more.half_width or 0) > (gap.half_width or 9)
    with pytest.raises(InputError, match="need two draws each"):
        factors.difference(varied(), "order", "crystal-3", "backwards")


def test_a_lattice_covers_the_triangle() -> None:
    found = ternary.lattice(10)
    assert len(found) == 66
    assert np.allclose(found.sum(1), 1)
    assert np.allclose(ternary.place(np.eye(3)), ternary.CORNERS)


def test_figures_have_labelled_axes_and_are_pictures() -> None:
    drawn = figures.trace(np.arange(9.0), np.arange(9.0), [3])
    [axis] = drawn.axes
    assert axis.get_xlabel() == "step"
    assert "nats" in axis.get_ylabel()
    picture = drawn._repr_png_()  # pyright: ignore
    assert picture.startswith(b"\x89PNG")


def test_bars_stand_for_shares() -> None:
    drawn = figures.bars({"a": {"x": 0.25, "y": 0.75}}, {"a": "x twice"})
    widths = [patch.get_width() for patch in drawn.axes[0].patches]  # pyright: ignore
    assert widths == [0.25, 0.75]
