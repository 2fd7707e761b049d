"""Laws: their derivatives are true, and those that say so are convex."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.laws import families as laws
from crystalmix.mixtures.laws.fit import KINDS
from helpers.truths import Truth

ONCE = np.array([0.1, 0.3, 0.2, 0.5])
EVERY = [(kind, once) for kind in KINDS for once in (None, ONCE)]
IDS = [f"{kind}{'' if once is None else ', repeated'}" for kind, once in EVERY]
SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=15)


def random(law: laws.Law, seed: int) -> tuple[Any, Any]:
    """Parameters of two targets near those of a real law, and five mixtures."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(4), 9)
    losses = 2 + rng.random((9, 2)) * 2
    start = law.starts(shares, losses)[0]
    theta = start + 0.2 * rng.standard_normal(start.shape)
    return theta, rng.dirichlet(np.full(4, 3.0), 5)


@pytest.mark.parametrize(("kind", "once"), EVERY, ids=IDS)
@FEW
@given(SEEDS)
def test_the_jacobian_is_the_derivative_by_parameters(kind: str, once: Any, seed: int) -> None:
    law = laws.make(kind, once)
    theta, shares = random(law, seed)
    exact = law.jacobian(theta, shares)
    assert exact.shape == (2, 5, theta.shape[1])
    assert len(law.names("abcd")) == theta.shape[1]
    for p in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[:, p] = 1e-6
        rise = law.value(theta + step, shares) - law.value(theta - step, shares)
        assert exact[..., p] == pytest.approx(rise / 2e-6, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("kind", "once"), EVERY, ids=IDS)
@FEW
@given(SEEDS)
def test_the_slope_is_the_derivative_by_shares(kind: str, once: Any, seed: int) -> None:
    law = laws.make(kind, once)
    theta, shares = random(law, seed)
    exact = law.slope(theta, shares)
    assert exact.shape == (2, 5, 4)
    for d in range(4):
        step = np.zeros(4)
        step[d] = 1e-7
        rise = law.value(theta, shares + step) - law.value(theta, shares - step)
        assert exact[..., d] == pytest.approx(rise / 2e-7, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("kind", "once"), EVERY, ids=IDS)
@FEW
@given(SEEDS, st.floats(0.01, 0.99))
def test_a_law_that_says_so_is_convex(kind: str, once: Any, seed: int, part: float) -> None:
    law = laws.make(kind, once)
    theta, shares = random(law, seed)
    if not law.convex:
        return
    between = law.value(theta, part * shares[:-1] + (1 - part) * shares[1:])
    chord = law.value(theta, shares)
    assert (between <= part * chord[:, :-1] + (1 - part) * chord[:, 1:] + 1e-9).all()


def test_the_quadratic_law_claims_no_single_optimum() -> None:
    claimed = {kind: laws.make(kind).convex for kind in KINDS}
    assert claimed == dict.fromkeys(KINDS, True) | {"quadratic": False}
    assert laws.make("effective", ONCE).convex
    assert not laws.make("loglinear", ONCE).convex


def test_the_effective_law_is_the_written_formula() -> None:
    truth = Truth(3)
    c, a, w = truth.parameters
    theta = np.column_stack([c, np.log(a), np.log(w)])
    shares = truth.others(6)
    told = laws.make("effective").value(theta, shares).T
    assert told == pytest.approx(truth.losses(shares))


def test_a_law_of_shares_read_once_is_that_of_shares() -> None:
    plain, repeated = laws.make("effective"), laws.make("effective", np.ones(4))
    theta, shares = random(plain, 1)
    with_rstar = np.column_stack([theta, np.zeros(2)])
    assert repeated.value(with_rstar, shares) == pytest.approx(plain.value(theta, shares))


def test_repeated_tokens_never_count_more_than_fresh_ones() -> None:
    plain, repeated = laws.make("effective"), laws.make("effective", ONCE)
    theta, shares = random(plain, 2)
    with_rstar = np.column_stack([theta, np.full(2, np.log(7.0))])
    assert (repeated.value(with_rstar, shares) >= plain.value(theta, shares) - 1e-12).all()


def test_leading_axes_are_problems_of_their_own() -> None:
    law = laws.make("effective")
    theta, shares = random(law, 4)
    many = np.stack([theta, theta + 0.1])
    assert law.value(many, shares)[1].tolist() == law.value(theta + 0.1, shares).tolist()
    assert law.jacobian(many, shares).shape == (2, 2, 5, 6)


def test_an_unknown_law_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="law: must be one of concave, effective, .* got cubic"):
        laws.make("cubic")
