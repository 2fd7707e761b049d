"""Recommend: near the true optimum, within caps, with honest intervals, or refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.ablations.published_mixtures import uniform
from crystalmix.mixtures.laws import convex_search as convex
from crystalmix.mixtures.laws import resample as drawing
from crystalmix.mixtures.laws.fit import Fit, FitSettings, fit
from crystalmix.mixtures.laws.recommend import (
    Recommendation,
    RecommendSettings,
    recommend,
    refusal,
)
from crystalmix.mixtures.laws.repeated_tokens import effective
from crystalmix.mixtures.laws.resample import draw
from crystalmix.prep.runtime.errors import RefusalError
from helpers.truths import NAMES, Truth

EVEN = dict.fromkeys(NAMES, 0.25)
FREE = dict.fromkeys(NAMES, 1.0)


def fitted(seed: int = 0, noise: float = 0.02, kind: str = "effective") -> Fit:
    truth = Truth(seed)
    shares = truth.swarm()
    names = FitSettings(domains=NAMES, targets=NAMES)
    return fit(shares, truth.measured(shares, noise), kind, names)


FITTED = fitted()


def recommended(found: Fit = FITTED, **changes: Any) -> Recommendation:
    given: dict[str, Any] = {"value": FREE, "caps": FREE, "current": EVEN}
    given |= {name: changes.pop(name) for name in ("value", "caps", "current") if name in changes}
    settings = RecommendSettings(**{"draws": 40, "minimum": 0.02, **changes})
    return recommend(found, **given, settings=settings)


def test_intervals_of_gain_and_of_shares_hold_and_regret_is_small() -> None:
    """Over 12 swarms, against the truth."""
    gains, shares, regrets = [], [], []
    region = (np.full(4, 0.02), np.ones(4))
    for seed in range(12):
        truth = Truth(seed)
        found = recommended(fitted(seed), draws=40)
        best, chosen = convex.optimum(truth.aim, region), np.array(list(found.shares.values()))
        gain = truth.aim(np.full(4, 0.25))[0] - truth.aim(chosen)[0]
        gains.append(found.gain[1] <= gain <= found.gain[2])
        within = zip(best, found.interval.values(), strict=True)
        shares += [low - 1e-3 <= share <= high + 1e-3 for share, (low, high) in within]
        regrets.append(truth.aim(chosen)[0] - truth.aim(best)[0])
    assert np.mean(gains) >= 0.75
    assert 0.82 <= np.mean(shares) <= 0.99
    assert max(regrets) < 0.02
    assert np.mean(regrets) < 0.002


def test_the_true_optimum_in_use_is_hardly_ever_beaten_on_paper() -> None:
    """The gain of what looks best is corrected for having been chosen: 16 swarms."""
    better, held = [], []
    region = (np.full(4, 0.02), np.ones(4))
    for seed in range(16):
        truth = Truth(seed, returns=0.6)
        shares, draws = truth.designed()
        found = fit(
            *(shares, truth.seeded(shares, draws), "concave"),
            FitSettings(domains=NAMES, targets=NAMES),
            draws,
        )
        best = convex.optimum(truth.aim, region)
        told = recommended(found, current=dict(zip(NAMES, best.tolist(), strict=True)), draws=60)
        chosen = np.array(list(told.shares.values()))
        better.append(told.gain[1] > 0)
        held.append(told.gain[1] <= truth.aim(best)[0] - truth.aim(chosen)[0] <= told.gain[2])
    assert np.mean(better) <= 0.07
    assert np.mean(held) >= 0.7


@settings(max_examples=12)
@given(
    st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4).filter(lambda caps: sum(caps) > 1),
    st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4).filter(lambda v: sum(v) > 0.1),
)
def test_a_recommendation_never_violates_caps(caps: list[float], value: list[float]) -> None:
    highest = dict(zip(NAMES, caps, strict=True))
    valued = dict(zip(NAMES, value, strict=True))
    found = recommended(caps=highest, value=valued, draws=20)
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-9)
    for name, share in found.shares.items():
        assert min(0.02, highest[name]) <= share <= highest[name]
        low, high = found.flat[name]
        assert low <= share <= high <= highest[name]
        assert found.interval[name][1] <= highest[name]


def test_the_same_seed_gives_the_same_recommendation() -> None:
    assert recommended() == recommended()
    other = recommended(seed=1)
    assert other.shares == recommended().shares
    assert other.interval != recommended().interval


def test_a_clear_gain_is_distinguishable_and_of_predicted_size() -> None:
    found = recommended(current={"language": 0.9, "python": 0.1})
    assert found.distinguishable
    assert found.gain[0] == pytest.approx(found.current_loss - found.loss)
    assert found.gain[1] > 0.1
    assert list(found.predicted) == list(NAMES)
    mean, low, high = found.predicted["python"]
    assert low < mean < high
    assert found.current["web"] == 0


def test_against_itself_a_mixture_is_not_distinguishable() -> None:
    best = recommended(draws=200)
    again = recommended(current=best.shares)
    assert not again.distinguishable
    assert "not distinguishable: the gain over the current mixture, " in again.refusal
    assert "keep it, or train more mixtures" in again.refusal


def test_noise_that_hides_the_ranks_is_refused() -> None:
    found = recommended(fitted(3, noise=1.0))
    assert found.rho < 0.9
    assert "not recommended: left-out runs are ranked at rho" in found.refusal
    assert recommended(fitted(3, noise=1.0), least_rho=-1.0).refusal != found.refusal


def test_ranks_that_do_not_exist_are_refused_too() -> None:
    assert "rho nan" in refusal(float("nan"), (0.1, 0.05, 0.2))
    assert refusal(0.95, (0.1, 0.05, 0.2)) == ""
    assert "train more mixtures" in refusal(0.95, (0.1, 0.05, 0.2), freedom=1.0)
    assert "may be none" in refusal(0.95, (0.1, 0.0, 0.2))
    assert "may be none" in refusal(0.95, (0.1, float("nan"), float("nan")))


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_what_is_told_is_of_the_targets_that_are_valued_and_of_the_level(level: float) -> None:
    """Held against the draws and residuals themselves; targets without value have no say."""
    weights = np.array([0.25, 0.75, 0, 0])
    ranked = replace(FITTED, rho=np.array([0.95, 0.99, np.nan, 0.1]))
    value = {"language": 1.0, "python": 3.0}
    found = recommended(ranked, value=value, level=level)
    compared = np.array([list(EVEN.values()), list(found.shares.values())])
    errors = []
    for theta in draw(FITTED, 40, 0):
        again = recommended(replace(ranked, theta=theta), value=value, draws=20)
        pair = np.array([list(EVEN.values()), list(again.shares.values())])
        seen, true = (weights @ FITTED.law.value(t, pair) for t in (theta, FITTED.theta))
        errors.append((seen[0] - seen[1]) - (true[0] - true[1]))
    edges = np.quantile(errors, (0.5 + level / 2, 0.5 - level / 2))
    assert found.gain[1:] == pytest.approx(tuple(found.gain[0] - edges), abs=2e-4)
    told = weights @ FITTED.law.value(FITTED.theta, compared)
    assert (found.current_loss, found.loss) == pytest.approx(tuple(told))
    rest = FITTED.residuals @ weights
    assert found.sigma**2 == pytest.approx((rest**2).sum() / (FITTED.freedom @ weights))
    assert found.rho == pytest.approx(0.25 * 0.95 + 0.75 * 0.99)
    assert found.distinguishable


def test_beyond_the_flat_region_no_mixture_is_within_one_sigma_of_the_optimum() -> None:
    found = recommended()

    def aim(shares: Any) -> Any:
        losses = FITTED.law.value(FITTED.theta, shares[None])
        return float(losses.mean()), FITTED.law.slope(FITTED.theta, shares[None])[:, 0].mean(axis=0)

    for place, (low, high) in enumerate(found.flat.values()):
        assert 0.04 < low < high < 0.9
        for share, near in ((low - 0.01, False), (low + 0.01, True), (high + 0.01, False)):
            bounds = np.full(4, 0.02), np.ones(4)
            for bound in bounds:
                bound[place] = share
            best = aim(convex.optimum(aim, bounds))[0]
            assert (best <= found.loss + found.sigma) == near


def test_what_is_valued_more_gets_more() -> None:
    code = recommended(value={"python": 1.0})
    prose = recommended(value={"language": 1.0})
    assert code.shares["python"] > 0.8 > prose.shares["python"]
    assert prose.shares["language"] > code.shares["language"]


def test_standardised_targets_weigh_less_where_they_vary_more() -> None:
    spread = FITTED.losses.std(axis=0)
    by_hand = recommended(value=dict(zip(NAMES, 1 / spread, strict=True)))
    assert recommended(standardise=True).shares == pytest.approx(by_hand.shares, abs=1e-6)
    assert recommended().shares != pytest.approx(by_hand.shares, abs=1e-3)


def test_divergence_keeps_the_optimum_near_the_current_mixture() -> None:
    current = {"language": 0.7, "python": 0.1, "javascript": 0.1, "web": 0.1}
    away = []
    for kl in (0.0, 0.1, 10.0):
        shares = recommended(current=current, kl=kl).shares
        away.append(sum(abs(shares[name] - current[name]) for name in NAMES))
    assert away[0] > away[1] > away[2]
    assert away[2] < 0.1


def test_repetition_under_the_law_lessens_a_small_domain() -> None:
    truth = Truth(0)
    shares = truth.swarm(count=40)
    once = np.array([1.0, 0.05, 1.0, 1.0])
    losses = truth.losses(effective(shares, once, np.full(4, 1.0))[0])
    names = FitSettings(domains=NAMES, targets=NAMES, once=tuple(once))
    found = fit(shares, losses, settings=names)
    fresh = fit(shares, truth.losses(shares), settings=FitSettings(domains=NAMES, targets=NAMES))
    assert found.law.convex
    scarce, plenty = recommended(found, draws=20), recommended(fresh, draws=20)
    assert scarce.shares["python"] < 0.7 * plenty.shares["python"]


def test_draws_scatter_about_the_fit_as_its_covariance_says() -> None:
    draws = draw(FITTED, 300, 0)
    assert draws.shape == (300, 4, 6)
    others = Truth(0).others(10)
    spread = FITTED.law.value(draws, others).std(axis=0)
    jacobian = FITTED.law.jacobian(FITTED.theta, others)
    told = np.sqrt(np.einsum("tmp,tpq,tmq->tm", jacobian, FITTED.covariance, jacobian))
    assert 0.8 < np.median(spread / told) < 1.4
    assert draw(FITTED, 300, 0).tobytes() == draws.tobytes()


def test_few_runs_draw_as_wide_as_students_distribution_says() -> None:
    """Seven runs of a law of four parameters; linear, so that its intervals are exact."""
    truth = Truth(0)
    shares = truth.swarm(count=6, replicates=1)
    found = fit(shares, truth.measured(shares, 0.02), "linear")
    assert found.freedom == pytest.approx(3, abs=0.01)
    edges = np.quantile(found.law.value(draw(found, 400, 0), truth.others(8)), (0.05, 0.95), axis=0)
    _, low, high = found.predict(truth.others(8), run=False)
    assert np.median((edges[1] - edges[0]) / (high - low).T) == pytest.approx(1, abs=0.12)


def test_where_runs_tell_nothing_draws_are_those_of_the_prior() -> None:
    found = fitted(kind="linear")
    targets, count = found.theta.shape
    turn = np.random.default_rng(3).standard_normal((count, count))
    prior = np.linalg.inv(turn @ turn.T + np.eye(count))
    nothing = {"sigma": np.full(targets, 1e6), "mean": found.theta}
    precision = np.repeat(np.linalg.inv(prior)[None], targets, axis=0)
    loose = replace(found.problems, precision=precision, **nothing)
    draws = draw(replace(found, problems=loose, sigma=loose.sigma), 4000, 0)
    for target in range(targets):
        told = np.cov(draws[:, target].T)
        assert told == pytest.approx(prior, abs=0.1 * prior.diagonal().max())
        assert draws[:, target].mean(axis=0) == pytest.approx(found.theta[target], abs=0.1)


def test_draws_of_targets_move_together_as_far_as_their_residuals_do() -> None:
    truth, rng = Truth(1), np.random.default_rng(5)
    shares = truth.swarm()
    together = 0.05 * rng.standard_normal((len(shares), 1))  # of a run, bad for all or for none
    found = fit(shares, truth.measured(shares, 0.02) + together, "linear")
    rest = found.losses.T - found.law.value(found.theta, shares)
    rest /= np.sqrt((rest**2).sum(axis=1, keepdims=True))
    values = found.law.value(draw(found, 1000, 0), truth.others(1))[..., 0]  # (draws, targets)
    assert np.corrcoef(values.T) == pytest.approx(rest @ rest.T, abs=0.1)
    assert (rest @ rest.T).min() > 0.3


def test_draws_are_the_same_however_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(FITTED, 30, 3)
    monkeypatch.setattr(
        drawing, "ROOM", 7 * len(FITTED.shares) * 6 * 4
    )  # seven, and two in the end
    parts = draw(FITTED, 30, 3)
    others = Truth(0).others(5)
    assert FITTED.law.value(parts, others) == pytest.approx(
        FITTED.law.value(whole, others), abs=1e-5
    )
    assert FITTED.law.value(whole[:7], others) != pytest.approx(
        FITTED.law.value(whole[7:14], others), abs=1e-3
    )


def test_the_content_is_json() -> None:
    told = json.loads(json.dumps(recommended().content()))
    assert told["shares"].keys() == set(NAMES)
    assert told["distinguishable"] in {True, False}
    assert len(told["gain"]) == 3


def test_a_law_without_a_single_optimum_is_refused() -> None:
    with pytest.raises(RefusalError, match="law quadratic: has no single optimum"):
        recommended(fitted(kind="quadratic"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"value": {"poems": 1.0}}, "value: names must be of language"),
        ({"value": {"python": -1.0}}, "value: must be at least 0"),
        ({"value": {}}, "value: must be above 0 for some target"),
        ({"current": {"python": 0.5}}, "current: must sum to 1"),
        ({"draws": 5}, "draws: must be at least 20"),
        ({"minimum": -0.1}, "minimum: must be at least 0"),
        ({"level": 1.0}, "level: must lie in"),
        ({"kl": -1.0}, "kl: must be at least 0"),
    ],
)
def test_settings_that_break_a_rule_are_told(changes: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        recommended(**changes)


def test_caps_that_leave_no_mixture_are_refused() -> None:
    with pytest.raises(RefusalError, match="no mixture lies between; allow more epochs"):
        recommended(caps=dict.fromkeys(NAMES, 0.2))
    with pytest.raises(RefusalError, match="no mixture lies between"):
        recommended(minimum=0.3)
    # a cap below the least share of all is the least share of its domain
    assert recommended(caps={"web": 0.01}).shares["web"] == pytest.approx(0.01)


def test_uniform_is_a_mixture_to_compare_with() -> None:
    assert recommended(current=uniform(dict.fromkeys(NAMES, 5))) == recommended()
