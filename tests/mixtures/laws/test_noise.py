"""Variance components: found again on average, and used for intervals, misfit and effects."""

import numpy as np
import pytest

from crystalmix.mixtures.laws.fit import fit
from crystalmix.mixtures.laws.noise import estimate, groups_of
from helpers.truths import OWN, SEED, Truth


def test_both_components_are_found_again_on_average() -> None:
    rng = np.random.default_rng(0)
    mixtures, draws = np.repeat(np.arange(3), 6), np.tile(np.arange(6), 3)
    losses = rng.normal(0, 2, (3, 400))[mixtures] + rng.normal(0, 0.5, (6, 400))[draws]
    noise = estimate(mixtures, draws, losses + rng.normal(0, 0.2, (18, 400)))
    assert (noise.own_freedom, noise.within_freedom) == (10, 15)
    assert noise.own.mean() == pytest.approx(0.04, rel=0.1)
    assert noise.seed.mean() == pytest.approx(0.25, rel=0.1)
    assert noise.run.mean() == pytest.approx(0.29, rel=0.1)
    assert noise.seed_error.mean() == pytest.approx(noise.seed.var(), rel=0.8)


def test_a_design_that_lacks_pairs_still_estimates() -> None:
    rng = np.random.default_rng(1)
    mixtures, draws = np.array([0, 0, 0, 0, 1, 1, 1, 2, 3]), np.array([0, 1, 2, 3, 0, 1, 4, 0, 0])
    effects = rng.normal(0, 0.5, (5, 2000))
    noise = estimate(mixtures, draws, effects[draws] + rng.normal(0, 0.2, (9, 2000)))
    assert noise.own_freedom == 1
    assert noise.own.mean() == pytest.approx(0.04, rel=0.1)
    assert noise.seed.mean() == pytest.approx(0.25, rel=0.1)


def test_without_replicates_or_pairs_what_is_unknown_is_no_number() -> None:
    losses = np.random.default_rng(2).normal(3, 0.1, (6, 2))
    none = estimate(np.arange(6), np.zeros(6, np.int64), losses)
    assert (none.own_freedom, none.within_freedom) == (0, 0)
    assert np.isnan(none.run).all()
    centre = estimate(np.array([0, 0, 0, 1, 2, 3]), np.array([0, 1, 2, 0, 0, 0]), losses)
    assert (centre.own_freedom, centre.within_freedom) == (0, 2)
    assert centre.run == pytest.approx(losses[:3].var(axis=0, ddof=1))
    assert np.isnan(centre.own).all()
    alike = estimate(np.array([0, 0, 0, 1, 2, 3]), None, losses)
    assert alike.own == pytest.approx(losses[:3].var(axis=0, ddof=1))
    assert alike.seed.tolist() == [0, 0]


def test_mixtures_that_are_equal_to_nine_digits_are_one() -> None:
    shares = np.array([[0.5, 0.5], [0.2, 0.8], [0.5 + 1e-12, 0.5 - 1e-12]])
    groups = groups_of(shares)
    assert groups[0] == groups[2] != groups[1]


def test_intervals_under_new_seeds_hold_and_misfit_is_rarely_seen_where_none_is() -> None:
    """Over 40 swarms; without the seed effect 73 to 77 % of new runs lay within 90 %."""
    inside, misfits, seeds = [], [], []
    for seed in range(40):
        truth = Truth(seed, returns=0.6)
        shares, draws = truth.designed()
        found = fit(shares, truth.seeded(shares, draws), draws=draws)
        others = truth.others(16)
        measured = truth.seeded(others, np.arange(16), seed=1)
        _, low, high = found.predict(others)
        inside.append(((low <= measured) & (measured <= high)).mean())
        misfits.append(found.misfit_of_all < 0.1)
        seeds.append(found.seed.mean() ** 0.5)
    assert 0.86 < np.mean(inside) < 0.94
    assert np.mean(misfits) <= 0.2
    assert np.mean(seeds) == pytest.approx(SEED, rel=0.15)


def test_a_misfit_of_one_and_a_half_times_the_noise_is_seen() -> None:
    seen = []
    for seed in range(20):
        truth = Truth(seed, returns=0.6)
        shares, draws = truth.designed()
        rng = np.random.default_rng(seed)
        bent = 1.5 * OWN * rng.standard_normal((len(shares), 4))[groups_of(shares)]
        seen.append(
            fit(shares, truth.seeded(shares, draws) + bent, draws=draws).misfit_of_all < 0.1
        )
    assert np.mean(seen) >= 0.5


def test_the_designs_own_seed_does_not_bend_the_law() -> None:
    """A large shift of draw 0 goes to its effect as far as replicates of other draws say so."""
    truth = Truth(3, returns=0.6)
    shares, draws = truth.designed(replicates=8)
    losses = truth.losses(shares) + np.where(draws == 0, 0.3, 0.0)[:, None]
    losses += 0.01 * np.random.default_rng(0).standard_normal(losses.shape)
    blind, aware = fit(shares, losses), fit(shares, losses, draws=draws)
    others = truth.others(16)
    errors = [np.abs(found.mean(others) - truth.losses(others)).mean() for found in (blind, aware)]
    assert errors[1] < 0.3 * errors[0]
