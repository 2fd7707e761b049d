"""The joint law over shares, size and tokens: derivatives, convexity, a larger size predicted."""

import numpy as np
import pytest

from crystalmix.mixtures.laws.distributions import spearman
from crystalmix.mixtures.laws.families import Repeated
from crystalmix.mixtures.laws.fit import Fit, FitSettings, fit
from crystalmix.mixtures.laws.scale import AtScale, Scaled, Scales
from helpers.truths import SizedTruth

SMALL, MIDDLE, LARGE, TOKENS = 1e5, 3e5, 9e5, 3e5
ONCE = np.array([0.2, 0.5, 1.0, 1.0])
LAWS = [
    Scaled(),
    Scaled(drift=False),
    Repeated(Scaled(), ONCE),
    Repeated(Scaled(), ONCE, sized=True),
]


def points(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.dirichlet(np.ones(4), count), rng.normal(size=(count, 2))])


def parameters(law: Scaled | Repeated, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mean, _ = law.prior(points(6), np.full((6, 3), 2.0))
    return mean + 0.3 * rng.normal(size=mean.shape)


@pytest.mark.parametrize("law", LAWS)
def test_derivatives_are_those_of_differences(law: Scaled | Repeated) -> None:
    theta, at = parameters(law), points(5)
    exact = law.jacobian(theta, at)
    for k in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[k] = 1e-6
        slope = (law.value(theta + step, at) - law.value(theta - step, at)) / 2e-6
        assert slope == pytest.approx(exact[..., k], rel=1e-5, abs=1e-8)
    slopes = law.slope(theta, at)
    assert slopes.shape == (3, 5, 4)
    for k in range(4):
        step = np.zeros(6)
        step[k] = 1e-6
        slope = (law.value(theta, at + step) - law.value(theta, at - step)) / 2e-6
        assert slope == pytest.approx(slopes[..., k], rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("law", LAWS)
def test_every_parameter_has_a_name(law: Scaled | Repeated) -> None:
    assert len(law.names(list("abcd"))) == parameters(law).shape[1]


@pytest.mark.parametrize("law", LAWS)
def test_at_one_scale_the_loss_is_convex_in_the_shares(law: Scaled | Repeated) -> None:
    one, theta = AtScale(law, (0.7, -0.4)), parameters(law)
    a, b = points(200, 3)[:, :4], points(200, 4)[:, :4]
    middle = one.value(theta, (a + b) / 2)
    assert (middle <= (one.value(theta, a) + one.value(theta, b)) / 2 + 1e-12).all()


def table(seed: int) -> tuple[SizedTruth, np.ndarray, np.ndarray, np.ndarray, Scales]:
    """The default design at two sizes, and its losses."""
    truth = SizedTruth(seed)
    shares, draws = truth.designed(minimum=0.01)
    both, again = np.vstack([shares, shares]), np.concatenate([draws, draws])
    sizes = Scales(np.repeat([SMALL, MIDDLE], len(shares)), np.full(len(both), TOKENS))
    of_size = again + 5 * np.repeat([0, 1], len(shares))
    losses = truth.at_seeded(both, sizes.parameters, sizes.tokens, of_size)
    return truth, both, losses, again, sizes


def joint(seed: int, kind: str = "joint") -> tuple[SizedTruth, Fit]:
    truth, shares, losses, draws, sizes = table(seed)
    return truth, fit(shares, losses, kind, draws=draws, scales=sizes)


def test_two_sizes_predict_a_third_within_the_stated_interval_and_rank_it() -> None:
    held, rho, drifting, alone = [], [], [], []
    for seed in range(12):
        truth, fitted = joint(seed)
        others = truth.others(16)
        large, tokens = np.full(16, LARGE), np.full(16, TOKENS)
        measured = truth.at_seeded(others, large, tokens, np.arange(16))
        exact = truth.at(others, large, tokens)
        mean, low, high = fitted.at(LARGE, TOKENS).predict(others)
        held.append(((low <= measured) & (measured <= high)).mean())
        rho.append(spearman(mean.mean(axis=1), exact.mean(axis=1)))
        drifting.append(np.abs(mean - exact).mean())
        plain = joint(seed, "additive")[1].at(LARGE, TOKENS).mean(others)
        alone.append(np.abs(plain - exact).mean())
    assert np.mean(held) >= 0.85
    assert np.mean(rho) >= 0.8
    assert np.mean(drifting) < np.mean(alone)


def test_the_interval_widens_with_the_distance() -> None:
    truth, fitted = joint(0)
    widths = []
    for parameters in (2e5, 9e5, 9e6, 9e8):
        _, low, high = fitted.at(parameters, TOKENS).predict(truth.others(4))
        widths.append((high - low).mean())
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]


def test_shares_of_a_fit_are_those_of_its_runs() -> None:
    _, shares, _, _, _ = table(0)
    fitted = joint(0)[1]
    assert fitted.shares == pytest.approx(shares)
    assert fitted.domains == ("d0", "d1", "d2", "d3")


def test_a_joint_law_needs_scales_and_others_take_none() -> None:
    _, shares, losses, _, sizes = table(0)
    with pytest.raises(ValueError, match="needs the size"):
        fit(shares, losses, "joint")
    with pytest.raises(ValueError, match="takes no scales"):
        fit(shares, losses, "concave", scales=sizes)
    with pytest.raises(ValueError, match="one size only"):
        fit(shares, losses, "concave").at(1e9, 1e9)
    with pytest.raises(ValueError, match="parameters: must be above 0"):
        Scales(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="domains: must have one entry"):
        fit(shares, losses, "joint", FitSettings(domains=("a",)), scales=sizes)


def worn(sizes: np.ndarray, shares: np.ndarray, once: np.ndarray) -> np.ndarray:
    """Losses of two targets where a model nine times larger wears texts out three times sooner."""
    rstar = 8 * (sizes / LARGE) ** -0.5
    turns = np.maximum(shares / once - 1, 0)
    fresh = np.minimum(shares, once)
    worth = fresh + once * rstar[:, None] * (1 - np.exp(-turns / rstar[:, None]))
    weights = np.array([[3.0, 0.5, 0.3], [0.3, 2.0, 0.5]])
    data = np.einsum("rj,tj->rt", worth**0.6, weights)
    return 1.5 + 0.4 * (sizes / SMALL)[:, None] ** -0.35 + data**-0.5


def test_texts_that_wear_out_sooner_in_larger_models_are_told() -> None:
    rng = np.random.default_rng(5)
    once = np.array([0.05, 0.3, 1.0])
    mixtures = rng.dirichlet([1.5, 1.0, 1.0], 40)
    shares, sizes = np.vstack([mixtures, mixtures]), np.repeat([SMALL, LARGE], 40)
    losses = worn(sizes, shares, once) + 0.003 * rng.normal(size=(80, 2))
    settings = FitSettings(domains=("a", "b", "c"), targets=("a", "b"), once=tuple(once))
    fitted = fit(shares, losses, "joint", settings, scales=Scales(sizes, np.full(80, TOKENS)))
    names = fitted.law.names(fitted.domains)
    assert names[-2:] == ["log R*", "s:R*"]
    exponent, error = fitted.theta[0, -1], fitted.errors()[0, -1]
    assert exponent + 1.645 * error < 0
    assert exponent == pytest.approx(-0.5, abs=2.5 * error)
    fresh = rng.dirichlet([2.0, 1.0, 1.0], 30)
    truth = worn(np.full(30, LARGE), fresh, once)
    assert np.abs(fitted.at(LARGE, TOKENS).mean(fresh) - truth).max() < 0.02
