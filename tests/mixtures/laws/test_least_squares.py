"""Least squares: the batch finds what scipy finds, one problem does not touch another."""

from typing import Any

import numpy as np
import pytest

from crystalmix.mixtures.laws import families as laws
from crystalmix.mixtures.laws import least_squares as leastsquares
from crystalmix.mixtures.laws.least_squares import Problems
from helpers.truths import Truth


def problems(kind: str = "effective", noise: float = 0.02, **changes: Any) -> Problems:
    truth = Truth(7)
    shares = truth.swarm()
    losses = truth.measured(shares, noise)
    law = laws.make(kind)
    mean, precision = law.prior(shares, losses)
    given: dict[str, Any] = {
        "losses": losses.T,
        "keep": np.ones((4, len(shares))),
        "sigma": np.full(4, noise),
        "mean": mean,
        "precision": precision,
        "effects": np.zeros((len(shares), 0)),
    }
    return Problems(law=law, shares=shares, **{**given, **changes})


def started(given: Problems) -> Any:
    return given.law.starts(given.shares, given.losses.T)[0]


@pytest.mark.parametrize("kind", ["effective", "loglinear"])
def test_the_batch_finds_the_minimum_that_scipy_finds(kind: str) -> None:
    from scipy import optimize

    given = problems(kind)
    theta, costs = leastsquares.minimise(given, started(given))
    for t in range(4):
        one = given.of(np.array([t]))

        def told(values: Any, one: Problems = one) -> Any:
            return float(leastsquares.cost(one, values[None])[0])

        found = optimize.minimize(told, theta[t] + 0.02, method="BFGS")
        assert costs[t] <= found.fun + 1e-4
        assert costs[t] == pytest.approx(told(theta[t]))


def test_the_gradient_is_zero_where_it_ends() -> None:
    given = problems()
    theta, _ = leastsquares.minimise(given, started(given))
    _, curved, gradient = leastsquares.normal(given, theta)
    step = np.linalg.solve(curved, gradient[..., None])[..., 0]
    assert np.einsum("bp,bp->b", step, gradient) == pytest.approx(np.zeros(4), abs=1e-5)


def test_the_gradient_is_the_derivative_of_the_cost() -> None:
    given = problems()
    theta = started(given) + 0.1
    _, _, gradient = leastsquares.normal(given, theta)
    for p in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[:, p] = 1e-6
        rise = leastsquares.cost(given, theta + step) - leastsquares.cost(given, theta - step)
        assert gradient[:, p] == pytest.approx(rise / 2e-6, rel=1e-3, abs=1e-2)


def test_a_problem_alone_ends_where_it_ends_in_the_batch() -> None:
    given = problems()
    start = started(given)
    together, _ = leastsquares.minimise(given, start)
    alone, _ = leastsquares.minimise(given.of(np.array([2])), start[2:3])
    assert alone[0] == pytest.approx(together[2], abs=1e-9)


def test_a_run_that_is_left_out_has_no_say() -> None:
    keep = np.ones((4, 20))
    keep[:, 5] = 0
    given = problems(keep=keep)
    losses = given.losses.copy()
    losses[:, 5] += 3
    start = started(given)
    theta, _ = leastsquares.minimise(given, start)
    moved, _ = leastsquares.minimise(problems(keep=keep, losses=losses), start)
    assert moved == pytest.approx(theta)


def test_a_run_that_failed_hardly_bends_the_law() -> None:
    given = problems()
    losses = given.losses.copy()
    losses[:, 5] += 1.0
    start = started(given)
    theta, _ = leastsquares.minimise(given, start)
    bent, _ = leastsquares.minimise(problems(losses=losses), start)
    others = Truth(7).others(30)
    off = given.law.value(bent, others) - given.law.value(theta, others)
    assert np.sqrt(np.mean(off**2)) < 0.06
    assert leastsquares.weights(np.array([0.0, 2.0, 50.0])) == pytest.approx(
        [1, 0.7071, 0.04], 1e-2
    )


def test_a_start_that_is_no_number_does_not_stop_the_others() -> None:
    given = problems()
    start = started(given)
    start[1] = np.nan
    theta, costs = leastsquares.minimise(given, start)
    assert np.isinf(costs[1])
    assert np.isfinite(theta[[0, 2, 3]]).all()
