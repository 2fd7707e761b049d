"""Rank correlations between scales, drift of the optimum, and the choice of further runs."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from crystalmix.mixtures.laws import least_squares
from crystalmix.mixtures.laws.across_scales import (
    _correlation_interval,  # pyright: ignore[reportPrivateUsage]
    allocate,
    largest_predicted,
    optima,
    scale_ranks,
)
from crystalmix.mixtures.laws.fit import Fit, FitSettings, fit
from crystalmix.mixtures.laws.recommend import RecommendSettings
from crystalmix.mixtures.laws.scale import Scales
from helpers.truths import NAMES, SizedTruth

SMALL, MIDDLE, TARGET = (1e5, 3e5), (3e5, 3e5), (9e5, 3e5)
EVEN = np.full(4, 0.25)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    truth = SizedTruth(0)
    shares, draws = truth.designed(minimum=0.01)
    both = np.vstack([shares, shares])
    sizes = Scales(np.repeat([SMALL[0], MIDDLE[0]], len(shares)), np.full(len(both), 3e5))
    of_size = np.concatenate([draws, draws + 5])
    losses = truth.at_seeded(both, sizes.parameters, sizes.tokens, of_size)
    names = FitSettings(domains=NAMES, targets=NAMES)
    return fit(both, losses, "joint", names, np.concatenate([draws, draws]), sizes)


def test_ranks_are_over_mixtures_that_both_scales_measured() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 8)
    one, other = rng.normal(size=8), rng.normal(size=6)
    again = one[:1] + 1.0  # the first mixture twice: its mean counts
    every = np.vstack([shares, shares[:1], shares[:6]])
    sizes = Scales(np.repeat([1.0, 2.0], [9, 6]), np.ones(15))
    [ranks] = scale_ranks(every, np.concatenate([one, again, other]), sizes)
    first = one[:6] + np.array([0.5, 0, 0, 0, 0, 0])
    assert ranks.mixtures == 6
    assert ranks.rho == pytest.approx(spearmanr(first, other).statistic)
    assert ranks.low < ranks.rho < ranks.high
    assert not scale_ranks(every[:12], np.zeros(12), Scales(sizes.parameters[:12], np.ones(12)))


def test_the_optimum_drifts_with_the_size_as_the_truth_does(fitted: Fit) -> None:
    caps = dict.fromkeys(NAMES, 1.0)
    settings = RecommendSettings(minimum=0.01)
    small, middle, target = optima(fitted, caps, caps, TARGET, settings)
    assert [best.measured for best in (small, middle, target)] == [True, True, False]
    truth, grid = SizedTruth(0), np.random.default_rng(1).dirichlet(np.ones(4), 20_000)
    for best, (size, tokens) in ((small, SMALL), (target, TARGET)):
        every = truth.at(grid, np.full(len(grid), size), np.full(len(grid), tokens)).mean(axis=1)
        exact = grid[every.argmin()]
        assert np.array(list(best.shares.values())) == pytest.approx(exact, abs=0.08)
    assert small.shares != target.shares


def law_variance(fitted: Fit, runs: list[tuple[tuple[float, float], np.ndarray]]) -> float:
    """The mean variance of the valued loss at the target with runs more, by inverting anew."""
    solution = np.concatenate([fitted.theta, fitted.effects], axis=1)
    curved = least_squares.normal(fitted.problems, solution)[1]
    own = fitted.theta.shape[1]
    mixtures = np.unique(np.round(fitted.shares, 9), axis=0)
    aims = fitted.at(*TARGET).law.jacobian(fitted.theta, mixtures)
    total = 0.0
    for t in range(4):
        information = np.linalg.inv(np.linalg.inv(curved[t])[:own, :own])
        for scale, mixture in runs:
            row = fitted.at(*scale).law.jacobian(fitted.theta, mixture[None])[t, 0]
            information = information + np.outer(row, row) / fitted.sigma[t] ** 2
        spread = np.linalg.inv(information)
        total += np.mean([EVEN[t] ** 2 * row @ spread @ row for row in aims[t]])
    return total


def test_one_further_run_is_the_best_of_all(fitted: Fit) -> None:
    costs = {SMALL: 1.0, MIDDLE: 3.0}
    runs, (before, after) = allocate(fitted, EVEN, TARGET, costs, 3.0)
    mixtures = np.unique(np.round(fitted.shares, 9), axis=0)
    none = law_variance(fitted, [])
    gains = {
        scale: max(none - law_variance(fitted, [(scale, m)]) for m in mixtures) / cost
        for scale, cost in costs.items()
    }
    assert before == pytest.approx(none**0.5, rel=1e-6)
    assert after < before
    assert (runs[0].parameters, runs[0].tokens) == max(gains, key=gains.__getitem__)


def test_a_budget_is_kept_and_more_of_it_says_more(fitted: Fit) -> None:
    costs = {SMALL: 1.0, MIDDLE: 3.0}
    sds = []
    for budget in (2.0, 10.0, 40.0):
        runs, (_, after) = allocate(fitted, EVEN, TARGET, costs, budget)
        assert sum(run.cost for run in runs) <= budget
        assert all(run.cost == run.runs * costs[run.parameters, run.tokens] for run in runs)
        sds.append(after)
    assert sds == sorted(sds, reverse=True)


def test_a_scale_that_costs_too_much_is_not_chosen(fitted: Fit) -> None:
    runs, _ = allocate(fitted, EVEN, TARGET, {SMALL: 1.0, MIDDLE: 1e6}, 5.0)
    assert [(run.parameters, run.runs) for run in runs] == [(SMALL[0], 5)]


def test_the_largest_of_three_scales_is_predicted_from_the_others(fitted: Fit) -> None:
    assert largest_predicted(fitted) is None
    truth, names = SizedTruth(0), FitSettings(domains=NAMES, targets=NAMES)
    shares, draws = truth.designed(minimum=0.01)
    sizes = np.repeat([1e5, 3e5, 9e5], [len(shares), len(shares), 8])
    every = np.vstack([shares, shares, shares[:8]])
    scales = Scales(sizes, np.full(len(every), 3e5))
    of_size = np.concatenate([draws, draws + 5, np.full(8, 10)])
    losses = truth.at_seeded(every, sizes, scales.tokens, of_size)
    again = np.concatenate([draws, draws, np.zeros(8, np.int64)])
    made = largest_predicted(fit(every, losses, "joint", names, again, scales))
    assert made is not None
    two = fit(
        every[:-8], losses[:-8], "joint", names, again[:-8], Scales(sizes[:-8], scales.tokens[:-8])
    )
    mean, low, high = two.at(9e5, 3e5).predict(every[-8:])
    assert (made.parameters, made.runs) == (9e5, 8)
    assert made.covered == pytest.approx(np.mean((low <= losses[-8:]) & (losses[-8:] <= high)))
    assert made.rmse == pytest.approx(np.sqrt(np.mean((mean - losses[-8:]) ** 2)), rel=1e-3)


def test_few_mixtures_in_the_same_order_leave_much_open() -> None:
    low, high = _correlation_interval(1.0, 5)
    assert 0.4 < low < 0.7
    assert high == 1
    assert low < _correlation_interval(1.0, 30)[0] < 1
