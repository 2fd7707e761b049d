"""Repetition: repeated tokens are worth less and less, and R* is found again from a curve."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from crystalmix.mixtures.laws.fit import FitSettings, fit
from crystalmix.mixtures.laws.fit_repetition import (
    GRID,
    Steepness,
    fit_repetition,
    steepness,
)
from crystalmix.mixtures.laws.repeated_tokens import effective

EPOCHS = np.array([1.0, 2, 4, 8, 16, 32])
# Nats above one epoch, of six proxies of 0.2 M parameters that read Python's tokens this often.
MEASURED = np.array([0.0, -0.007, 0.024, 0.050, 0.196, 0.337])


@given(st.floats(0.01, 1), st.floats(0.01, 0.5), st.floats(0.1, 100))
def test_effective_shares_lie_between_what_is_fresh_and_what_is_read(
    share: float, once: float, rstar: float
) -> None:
    worth, slope, by_rstar = effective(np.array([share]), np.array([once]), np.array([rstar]))
    assert min(share, once) - 1e-12 <= worth[0] <= share + 1e-12
    assert worth[0] <= once * (1 + rstar) + 1e-12
    assert 0 <= slope[0] <= 1
    assert by_rstar[0] >= -1e-12


@given(st.floats(0.02, 0.99), st.floats(0.01, 0.5), st.floats(0.5, 50))
def test_its_derivatives_are_true(share: float, once: float, rstar: float) -> None:
    def worth(x: float, r: float) -> float:
        return float(effective(np.array([x]), np.array([once]), np.array([r]))[0][0])

    _, slope, by_rstar = effective(np.array([share]), np.array([once]), np.array([rstar]))
    step = 1e-6
    if abs(share - once) > 1e-4:
        rise = (worth(share + step, rstar) - worth(share - step, rstar)) / (2 * step)
        assert slope[0] == pytest.approx(rise, abs=1e-4)
    rise = (worth(share, rstar * np.exp(step)) - worth(share, rstar * np.exp(-step))) / (2 * step)
    assert by_rstar[0] == pytest.approx(rise, abs=1e-4)


def test_worth_is_concave_in_the_share() -> None:
    shares = np.linspace(0.01, 1, 300)
    worth = effective(shares, np.full(300, 0.1), np.full(300, 7.0))[0]
    assert (np.diff(worth, 2) <= 1e-12).all()


@pytest.mark.parametrize("rstar", [3.0, 7.0, 15.4])
@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_rstar_is_found_again(rstar: float, exponent: float) -> None:
    once = 1 / EPOCHS
    worth = effective(np.ones(6), once, np.full(6, rstar))[0]
    rise = -np.log(worth) if exponent == 0 else (worth**-exponent - 1) / exponent
    found = fit_repetition(EPOCHS, 2.5 + 0.2 * rise, exponent)
    assert found.rstar == pytest.approx(rstar, rel=0.02)
    assert found.base == pytest.approx(2.5, abs=1e-3)
    assert found.slope == pytest.approx(0.2, rel=0.02)
    assert found.predict(EPOCHS) == pytest.approx(2.5 + 0.2 * rise, abs=1e-3)


def test_intervals_of_rstar_hold_as_often_as_they_say() -> None:
    epochs = np.repeat(EPOCHS, 2)
    rise = -np.log(effective(np.ones(12), 1 / epochs, np.full(12, 7.0))[0])
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = fit_repetition(epochs, 2.5 + 0.2 * rise + 0.02 * rng.standard_normal(12))
        held += found.low <= 7.0 and (found.high is None or found.high >= 7.0)
    assert 0.82 <= held / 200 <= 0.97


@pytest.mark.parametrize(("turns", "level"), [(1, 0.9), (2, 0.9), (2, 0.6)])
def test_the_interval_ends_where_fishers_test_of_one_parameter_says(
    turns: int, level: float
) -> None:
    epochs = np.repeat(EPOCHS, turns)
    free = len(epochs) - 3  # base, slope and R*

    def rise(rstar: float) -> np.ndarray:
        return -np.log(effective(np.ones(len(epochs)), 1 / epochs, np.full(len(epochs), rstar))[0])

    noise = 0.003 * np.random.default_rng(2).standard_normal(len(epochs))
    losses = 2.5 + 0.2 * rise(7.0) + noise

    def squares(rstar: float) -> float:
        design = np.stack([np.ones(len(epochs)), rise(rstar)], axis=1)
        return float(np.linalg.lstsq(design, losses, rcond=None)[1][0])

    found = fit_repetition(epochs, losses, level=level)
    assert found.sigma**2 == pytest.approx(squares(found.rstar) / free)
    most = squares(found.rstar) * (1 + stats.f.ppf(level, 1, free) / free)
    step = GRID[1] / GRID[0]
    assert squares(found.low) <= most < squares(found.low / step)
    assert found.high is not None
    assert squares(found.high) <= most < squares(found.high * step)


def test_the_measured_curve_has_an_rstar_of_single_digits() -> None:
    found = fit_repetition(EPOCHS, MEASURED, 0.5)
    assert 1 < found.rstar < 15
    assert found.predict(EPOCHS) == pytest.approx(MEASURED, abs=0.05)
    assert json.loads(json.dumps(asdict(found)))["rstar"] == found.rstar


def test_a_flat_curve_tells_nothing_of_rstar() -> None:
    found = fit_repetition(EPOCHS, np.array([2.5, 2.51, 2.49, 2.5, 2.505, 2.495]))
    assert (found.low, found.high) == (0.0, None)


def test_too_few_runs_are_told() -> None:
    with pytest.raises(ValueError, match="epochs: needs at least 4 runs"):
        fit_repetition(np.array([1.0, 2, 4]), np.zeros(3))
    with pytest.raises(ValueError, match="epochs: needs at least 4 runs of 1 or more"):
        fit_repetition(np.array([0.5, 1, 2, 4]), np.zeros(4))


# Losses on Python of ten proxies of 0.2 M parameters that read it 1 to 16 times, two draws each.
TWICE = np.array([1.0, 2, 4, 8, 16, 1, 2, 4, 8, 16])
LOSSES = np.array([4.491, 4.499, 4.520, 4.566, 4.662, 4.579, 4.527, 4.547, 4.593, 4.678])


def test_how_steep_the_loss_is_decides_what_the_curve_alone_can_not() -> None:
    alone = fit_repetition(TWICE, LOSSES)
    assert alone.rstar > 100  # under a loss of many nats for each factor e: no such law is known
    known = fit_repetition(TWICE, LOSSES, known=Steepness(0.3, 0.05, 0.043, 15.0))
    assert 5 < known.rstar < 25
    assert known.high is not None
    assert 1 < known.low < known.rstar < known.high < 60
    assert known.slope == pytest.approx(0.3, abs=0.1)


def test_intervals_under_a_known_steepness_hold_as_often_as_they_say() -> None:
    epochs = np.repeat(EPOCHS[:5], 2)
    rise = -np.log(effective(np.ones(10), 1 / epochs, np.full(10, 12.0))[0])
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        told = Steepness(0.3 + 0.05 * rng.standard_normal(), 0.05, 0.03, 12.0)
        found = fit_repetition(
            epochs, 4.5 + 0.3 * rise + 0.03 * rng.standard_normal(10), known=told
        )
        held += found.low <= 12.0 <= found.high
    assert 0.82 <= held / 300 <= 0.97


def test_steepness_is_that_of_the_law_where_the_domain_is_fresh() -> None:
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.ones(3), 40)
    worth = effective(shares, np.array([0.2, 2, 2]), np.full(3, 10.0))[0]
    loss = 3 + 0.5 * (worth @ np.array([[1.0], [0.3], [0.1]])) ** -0.3
    settings = FitSettings(domains=("a", "b", "c"), targets=("a",), once=(0.2, 2.0, 2.0))
    noisy = loss + 0.002 * rng.standard_normal(loss.shape)
    centre = np.array([0.4, 0.3, 0.3])
    told = steepness(fit(shares, noisy, "effective", settings), centre, "a")
    power = float(centre @ np.array([1.0, 0.3, 0.1]))
    true = 0.3 * 0.5 * power**-1.3 * centre[0]
    assert told.slope == pytest.approx(true, abs=3 * told.error)
    assert 0 < told.error < 0.3 * true
    assert told.sigma == pytest.approx(0.002, rel=0.5)
