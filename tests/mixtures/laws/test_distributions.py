"""Statistics of fits against scipy's own and against plain definitions."""

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.laws import distributions as statistical
from crystalmix.prep.runtime.errors import CrystalmixError

VALUES = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=30)


@settings(max_examples=30)
@given(VALUES, st.randoms(use_true_random=False))
def test_rank_correlation_is_scipys_with_ties(values: list[float], random: Any) -> None:
    from scipy import stats

    first = np.array(values)
    second = np.array([random.randint(-3, 3) for _ in values], dtype=float)
    assert statistical.ranks(first) == pytest.approx(stats.rankdata(first) - 1)
    if len(set(values)) > 1 and len(set(second)) > 1:
        assert statistical.spearman(first, second) == pytest.approx(
            stats.spearmanr(first, second).statistic, abs=1e-12
        )
    else:
        assert np.isnan(statistical.spearman(first, second))


def test_quantiles_are_those_of_tables() -> None:
    assert statistical.student(10, 0.9) == pytest.approx(1.812, abs=1e-3)
    assert statistical.student(1e9, 0.95) == pytest.approx(1.960, abs=1e-3)
    assert statistical.fisher_tail(np.array([4.96]), 1, 10) == pytest.approx([0.05], abs=1e-3)


def test_regret_is_what_the_wrong_choice_costs() -> None:
    measured = np.array([3.0, 2.0, 2.5])
    assert statistical.regret(np.array([1.0, 2.0, 0.5]), measured) == 0.5
    assert statistical.regret(measured, measured) == 0


def test_without_scipy_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    told = "scipy is not installed; install crystalmix with its extra `ablate`"
    with pytest.raises(CrystalmixError, match=told):
        statistical.student(5, 0.9)
