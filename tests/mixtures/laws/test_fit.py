"""Fitting: a known law is found again, and intervals hold as often as they say."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.laws import least_squares
from crystalmix.mixtures.laws.families import LEAST_EXPONENT
from crystalmix.mixtures.laws.fit import FEW, KINDS, Fit, FitSettings, fit
from crystalmix.mixtures.laws.repeated_tokens import effective
from crystalmix.prep.runtime.errors import RefusalError
from helpers.truths import Truth


def fitted(seed: int = 0, noise: float = 0.02, kind: str = "effective", **size: Any) -> Fit:
    truth = Truth(seed)
    shares = truth.swarm(**size)
    return fit(shares, truth.measured(shares, noise), kind)


def test_parameters_are_found_again_without_noise() -> None:
    truth = Truth(1)
    shares = truth.swarm(count=40)
    found = fit(shares, truth.losses(shares), "effective")
    c, a, w = truth.parameters
    assert found.theta[:, 0] == pytest.approx(c, abs=2e-3)
    assert np.exp(found.theta[:, 1]) == pytest.approx(a, rel=5e-3)
    assert np.exp(found.theta[:, 2:]) == pytest.approx(w, rel=2e-2)
    assert found.sigma.max() < 1e-4


def test_the_transfer_matrix_is_that_of_the_truth() -> None:
    truth = Truth(1)
    shares = truth.swarm(count=40)
    w = truth.parameters[2]
    found = fit(shares, truth.losses(shares), "effective").transfer()
    assert found == pytest.approx(w / w.max(axis=1, keepdims=True), abs=0.01)


def test_intervals_of_new_runs_and_of_the_law_hold_as_often_as_they_say() -> None:
    """Over 24 swarms of 20 runs, mixtures that were not fitted."""
    runs, laws, sigmas = [], [], []
    for seed in range(24):
        truth = Truth(seed)
        found, others = fitted(seed), truth.others(16)
        _, low, high = found.predict(others)
        measured = truth.measured(others, 0.02, seed=1)
        runs.append(((measured >= low) & (measured <= high)).mean())
        _, low, high = found.predict(others, run=False)
        exact = truth.losses(others)
        laws.append(((exact >= low) & (exact <= high)).mean())
        sigmas.append(found.sigma.mean() / 0.02)
    assert 0.85 < np.mean(runs) < 0.95
    assert 0.82 < np.mean(laws) < 0.97
    assert 0.93 < np.mean(sigmas) < 1.06


def test_a_wider_level_gives_wider_intervals() -> None:
    truth = Truth(2)
    shares = truth.swarm()
    losses = truth.measured(shares, 0.02)
    narrow = fit(shares, losses, settings=FitSettings(level=0.5)).predict(shares)
    wide = fit(shares, losses, settings=FitSettings(level=0.99)).predict(shares)
    assert (wide[2] - wide[1] > 2 * (narrow[2] - narrow[1])).all()
    assert narrow[0].tolist() == wide[0].tolist()


def test_the_effective_law_ranks_new_mixtures_best_and_has_no_regret() -> None:
    error: dict[str, list[float]] = {kind: [] for kind in KINDS}
    regrets = []
    for seed in range(8):
        truth = Truth(seed)
        others = truth.others(32)
        exact = truth.losses(others)
        for kind in KINDS:
            told = fitted(seed, kind=kind).mean(others)
            error[kind].append(float(np.sqrt(np.mean((told - exact) ** 2))))
            if kind == "effective":
                regrets.append(exact.mean(1)[told.mean(1).argmin()] - exact.mean(1).min())
    means = {kind: np.mean(errors) for kind, errors in error.items()}
    assert means["effective"] < 0.5 * means["loglinear"] < means["quadratic"] < means["linear"]
    assert means["effective"] < 0.02
    assert np.mean(regrets) < 0.005


def test_pure_error_is_the_scatter_of_replicates() -> None:
    found = fitted(replicates=4, noise=0.05)
    centre = found.losses[[0, 16, 17, 18, 19]]
    assert found.pure == pytest.approx(centre.std(axis=0, ddof=1))
    none = fitted(replicates=0)
    assert np.isnan(none.pure).all()
    assert np.isnan(none.misfit).all()


def test_a_law_that_does_not_fit_is_told_by_its_misfit() -> None:
    wrong, right = [], []
    for seed in range(5):
        wrong.append(fitted(seed, kind="linear").misfit)
        right.append(fitted(seed).misfit)
    assert np.mean(np.array(wrong) < 0.05) >= 0.8
    assert np.median(right) > 0.05


def test_leaving_one_out_is_fitting_without_it() -> None:
    truth = Truth(5)
    shares = truth.swarm()
    losses = truth.measured(shares, 0.02)
    found = fit(shares, losses)
    for run in (0, 7, 13):
        rest = found.problems.of(np.arange(4))
        rest.keep[:, run] = 0
        theta, _ = least_squares.minimise(rest, found.theta)
        assert found.left_out[run] == pytest.approx(
            found.law.value(theta, shares)[:, run], abs=1e-3
        )


def test_leverage_tells_many_runs_what_fitting_anew_would() -> None:
    truth = Truth(6)
    shares = truth.swarm(count=FEW - 4)
    losses = truth.measured(shares, 0.02)
    exact = fit(shares, losses).left_out
    more = np.vstack([shares, truth.others(1)])
    quick = fit(more, truth.measured(more, 0.02)).left_out
    assert len(more) > FEW
    assert np.sqrt(np.mean((quick[:FEW] - exact) ** 2)) < 0.01


@settings(max_examples=10)
@given(st.permutations(range(20)), st.permutations(range(4)))
def test_the_order_of_runs_and_targets_does_not_matter(runs: list[int], targets: list[int]) -> None:
    truth = Truth(8)
    shares = truth.swarm()
    losses = truth.measured(shares, 0.02)
    one, two = fit(shares, losses), fit(shares[runs], losses[runs][:, targets])
    others = truth.others(5)
    assert two.mean(others) == pytest.approx(one.mean(others)[:, targets], abs=1e-4)
    assert two.sigma == pytest.approx(one.sigma[targets], rel=1e-2)


def test_the_same_runs_give_the_same_fit_to_the_last_bit() -> None:
    one, two = fitted(3), fitted(3)
    assert one.theta.tobytes() == two.theta.tobytes()
    assert one.left_out.tobytes() == two.left_out.tobytes()


def test_repetition_is_fitted_with_its_rstar() -> None:
    truth = Truth(9)
    once = np.array([0.5, 0.05, 0.06, 0.08])
    shares = truth.swarm(count=60)
    losses = truth.losses(effective(shares, once, np.array([6.0]))[0])
    noisy = losses + 0.01 * np.random.default_rng(0).standard_normal(losses.shape)
    found = fit(shares, noisy, "effective", FitSettings(once=tuple(once)))
    assert 3 < np.exp(found.theta[:, -1].mean()) < 12
    blind = fit(shares, noisy, "effective")
    assert found.sigma.mean() < 0.8 * blind.sigma.mean()


def test_the_content_is_json_with_names() -> None:
    settings = FitSettings(domains=("a", "b", "c", "d"), targets=("w", "x", "y", "z"))
    truth = Truth(4)
    shares = truth.swarm(replicates=0)
    told = fit(shares, truth.measured(shares, 0.02), settings=settings).content()
    read = json.loads(json.dumps(told))
    assert read["domains"] == ["a", "b", "c", "d"]
    assert list(read["targets"]) == ["w", "x", "y", "z"]
    parameters = read["targets"]["w"]["parameters"]
    weights = [f"log w:{name}" for name in "abcd"]
    assert list(parameters) == ["log c", "log(a - 0.05)", "logit g", *weights]
    assert read["targets"]["w"]["sigma_pure"] is None


def test_an_error_that_the_runs_do_not_tell_is_null_and_warns_of_nothing() -> None:
    """Warnings are errors here: a variance below 0 must not come to a root."""
    found = fitted()
    worse = found.covariance.copy()
    worse[0] *= -1
    badly = replace(found, covariance=worse)
    told = json.loads(json.dumps(badly.content(), allow_nan=False))["targets"]
    assert {one["error"] for one in told["t0"]["parameters"].values()} == {None}
    assert told["t1"] == found.content()["targets"]["t1"]
    mean, low, high = badly.predict(found.shares, run=False)
    assert np.isnan(low[:, 0]).all()
    assert np.isnan(high[:, 0]).all()
    assert np.isfinite(mean).all()
    assert [side[:, 1:].tolist() for side in (low, high)] == [
        side[:, 1:].tolist() for side in found.predict(found.shares, run=False)[1:]
    ]


def test_more_parameters_than_runs_give_json_without_a_warning() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(6), 4)
    for kind in KINDS:
        found = fit(shares, np.full((4, 2), 3.0), kind)
        told = json.loads(json.dumps(found.content(), allow_nan=False))
        assert list(told["targets"]) == ["t0", "t1"]
        found.predict(shares)


def test_runs_that_are_all_alike_are_fitted_or_refused_in_words() -> None:
    told: list[str] = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        shares = np.tile(rng.dirichlet(np.ones(4)), (4, 1))
        try:
            found = fit(shares, 3 + rng.normal(0, 0.01, (4, 2)), "effective")
        except RefusalError as error:
            told.append(str(error))
        else:
            assert np.isfinite(found.mean(shares)).all()
    [one] = set(told)
    assert "4 of them are too few or too alike to fit the effective law to 4 domains" in one


def test_a_target_that_never_changes_is_fitted_and_has_no_ranks() -> None:
    shares = Truth(1).swarm()
    found = fit(shares, np.full((20, 1), 2.5))
    assert found.mean(shares) == pytest.approx(np.full((20, 1), 2.5), abs=1e-3)
    assert found.content()["targets"]["t0"]["leave_one_out_rho"] is None


@pytest.mark.parametrize(
    ("shares", "losses", "told"),
    [
        (np.ones((3, 1)), np.ones((3, 1)), "a law needs at least 4, got 3"),
        (np.ones((5, 1)), np.ones((4, 1)), "do not pair"),
        (np.ones((5, 1)), np.full((5, 1), np.nan), "are no numbers"),
    ],
)
def test_runs_that_tell_too_little_are_refused(shares: Any, losses: Any, told: str) -> None:
    with pytest.raises(RefusalError, match=told):
        fit(shares, losses)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (FitSettings(once=(0.5, 0.5)), "once: must have one entry for each of 4, got 2"),
        (FitSettings(domains=("a", "b")), "domains: must have one entry for each of 4, got 2"),
        (FitSettings(targets=("a",)), "targets: must have one entry for each of 4, got 1"),
    ],
)
def test_settings_must_match_the_columns(settings: FitSettings, told: str) -> None:
    truth = Truth(1)
    shares = truth.swarm()
    with pytest.raises(ValueError, match=told):
        fit(shares, truth.losses(shares), settings=settings)


def test_intervals_hold_for_a_truth_of_another_family() -> None:
    """Domains that saturate each by itself: misfit must widen the intervals."""
    held = []
    for seed in range(12):
        truth = Truth(seed)
        shares, others = truth.swarm(), truth.others(16)
        rng = np.random.default_rng(seed)
        noisy = truth.losses(shares**0.7) + 0.02 * rng.standard_normal((20, 4))
        _, low, high = fit(shares, noisy).predict(others)
        measured = truth.losses(others**0.7) + 0.02 * rng.standard_normal((16, 4))
        held.append(((low <= measured) & (measured <= high)).mean())
    assert 0.82 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("changes", [{"level": 1.0}, {"level": 0.0}, {"once": (0.1, 0.0)}])
def test_settings_that_break_a_rule_are_told(changes: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        FitSettings(**changes)


def test_the_concave_law_predicts_a_concave_truth_best_and_loses_nothing_on_todays() -> None:
    """Both from 20 runs, over 8 truths each; the exponent's prior is learnt from the runs alone."""
    for returns, most in ((0.55, 0.6), (1.0, 1.1)):
        errors: dict[str, list[float]] = {"concave": [], "effective": []}
        for seed in range(8):
            truth = Truth(seed, returns=returns)
            shares, others = truth.swarm(), truth.others(32)
            for kind, told in errors.items():
                found = fit(shares, truth.measured(shares, 0.01), kind)
                told.append(float(np.abs(found.mean(others) - truth.losses(others)).mean()))
        assert np.mean(errors["concave"]) < most * np.mean(errors["effective"])


def test_the_concave_laws_parameters_are_physical() -> None:
    truth = Truth(2, returns=0.55)
    shares = truth.swarm()
    found = fit(shares, truth.measured(shares, 0.05))
    c, a = np.exp(found.theta[:, 0]), LEAST_EXPONENT + np.exp(found.theta[:, 1])
    assert (c > 0).all()
    assert (c < found.losses.min(axis=0)).all()
    assert (a > LEAST_EXPONENT).all()
    with pytest.raises(RefusalError, match=r"losses: must be above 0 for the concave law"):
        fit(shares, truth.losses(shares) - 3)
