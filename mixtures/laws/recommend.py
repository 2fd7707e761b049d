"""Recommendation: the mixture of least valued loss under caps, with intervals, or a refusal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from crystalmix.mixtures.laws import convex_search
from crystalmix.mixtures.laws.fit import Fit, number
from crystalmix.mixtures.laws.resample import draw
from crystalmix.prep.runtime.constraints import enforce, within
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Content

Floats = NDArray[np.float64]
LEAST_FREEDOM = 2.0


@dataclass(frozen=True)
class RecommendSettings:
    """How a mixture is sought.

    standardise: divide each target's loss by its spread over the runs before it is valued.
    minimum: the least share of a domain; least: of single ones, where that is more. draws, seed: of
    the parametric bootstrap. level: of intervals. least_rho: leave-one-out rank correlation below
    which nothing is recommended. kl: weight (nats) of the divergence from the mixture `towards`,
    added to the valued loss.
    """

    standardise: bool = False
    minimum: Annotated[float, Field(ge=0)] = 0.0
    least: Mapping[str, float] = field(default_factory=dict)
    draws: Annotated[int, Field(ge=20)] = 200
    seed: int = 0
    level: Annotated[float, within(0, 1, "()")] = 0.9
    least_rho: float = 0.9
    kl: Annotated[float, Field(ge=0)] = 0.0

    __post_init__ = enforce


@dataclass(frozen=True)
class Recommendation:
    """The best mixture and how sure it is.

    shares: the optimum. interval: of each share, from the bootstrap. flat: the least and greatest
    share of each domain among all allowed mixtures within one sigma of the optimum. predicted: loss
    of each target in a run at the optimum as (mean, low, high). loss, current_loss: valued, nats.
    gain: of the optimum over the current mixture as (estimate, low, high), nats, its interval
    corrected for the choice of the mixture that looks best. sigma: nats, of the valued loss of one
    run about the law. rho: valued mean of the targets' leave-one-out rank correlations. refusal:
    why nothing is recommended, empty where `distinguishable`.
    """

    shares: dict[str, float]
    interval: dict[str, tuple[float, float]]
    flat: dict[str, tuple[float, float]]
    predicted: dict[str, tuple[float, float | None, float | None]]
    current: dict[str, float]
    loss: float
    current_loss: float
    gain: tuple[float, float, float]
    sigma: float
    rho: float
    refusal: str

    @property
    def distinguishable(self) -> bool:
        """Whether the optimum is better than the current mixture beyond its interval."""
        return not self.refusal

    def content(self) -> Content:
        """Return everything as JSON has it."""
        return {**asdict(self), "distinguishable": self.distinguishable}


def recommend(
    fit: Fit,
    value: Mapping[str, float],
    caps: Mapping[str, float],
    current: Mapping[str, float],
    settings: RecommendSettings | None = None,
    towards: Mapping[str, float] | None = None,
) -> Recommendation:
    """Find the mixture of least valued loss under caps.

    value: weight of each target (those left out: 0), scaled to sum to 1. caps: largest share by
    domain, as from `ablations.design.caps` (those left out: 1). current: the mixture to be better
    than; it may lie outside the caps. towards: what the divergence is from (default: the current
    mixture). The problem is convex: it has one optimum.
    RefusalError where the law is not convex or the caps leave no mixture.
    """
    settings = settings or RecommendSettings()
    weights = _valued(fit, value, settings.standardise)
    region = _region(fit.domains, caps, settings)
    now = _vector(current, fit.domains, "current", 0.0)
    if abs(now.sum() - 1) > 1e-6:
        raise ValueError(f"current: must sum to 1, got {now.sum()}")
    if not fit.law.convex:
        raise RefusalError(
            f"law {fit.kind}: has no single optimum; fit concave, effective or loglinear"
        )
    near = now if towards is None else _vector(towards, fit.domains, "towards", 0.0)
    aim = partial(_valued_loss, fit, weights, near, settings.kl)
    best = convex_search.optimum(aim(fit.theta), region)
    draws = draw(fit, settings.draws, settings.seed)  # (draws, targets, parameters)
    places = np.array([convex_search.optimum(aim(theta), region, best) for theta in draws])
    edges = ((1 - settings.level) / 2, (1 + settings.level) / 2)
    losses = fit.law.value(fit.theta, np.stack([best, now])).T @ weights
    estimate = float(losses[1] - losses[0])
    low_error, high_error = _quantiles(_gain_errors(fit, weights, now, draws, places), edges)
    gain = (estimate, estimate - high_error, estimate - low_error)
    rho = float(fit.rho[weights > 0] @ weights[weights > 0])
    sigma = _sigma(fit, weights)
    flat = convex_search.extent(aim(fit.theta), region, best, sigma)
    predicted = [map(number, np.ravel(side)) for side in fit.predict(best[None])]
    return Recommendation(
        shares=_named(fit.domains, best.tolist()),
        interval=_named(fit.domains, [_quantiles(column, edges) for column in places.T]),
        flat=_named(fit.domains, [(float(low), float(high)) for low, high in flat]),
        predicted=_named(fit.targets, list(zip(*predicted, strict=True))),
        current=_named(fit.domains, now.tolist()),
        loss=float(losses[0]),
        current_loss=float(losses[1]),
        gain=gain,
        sigma=sigma,
        rho=rho,
        refusal=refusal(rho, gain, settings.least_rho, float(fit.freedom @ weights)),
    )


def best_mixture(
    fit: Fit,
    value: Mapping[str, float],
    caps: Mapping[str, float],
    settings: RecommendSettings | None = None,
) -> dict[str, float]:
    """Return the mixture of least valued loss under caps, without intervals and without `kl`."""
    settings = settings or RecommendSettings()
    weights = _valued(fit, value, settings.standardise)
    region = _region(fit.domains, caps, settings)
    aim = _valued_loss(fit, weights, np.zeros(len(fit.domains)), 0.0, fit.theta)
    return _named(fit.domains, convex_search.optimum(aim, region).tolist())


def refusal(
    rho: float,
    gain: tuple[float, float, float],
    least_rho: float = 0.9,
    freedom: float = LEAST_FREEDOM,
) -> str:
    """Return why a mixture can't be recommended, or nothing where it can.

    freedom: runs less the parameters that they decided; the rest estimates the noise.
    """
    if freedom < LEAST_FREEDOM:
        return (
            f"not recommended: the law takes all but {freedom:.1f} of the runs' freedom, and at "
            f"least {LEAST_FREEDOM:g} is needed to estimate noise; train more mixtures"
        )
    if not rho >= least_rho:
        return (
            f"not recommended: left-out runs are ranked at rho {rho:.3f}, at least {least_rho:g} "
            "is needed; train more mixtures, or at a lower learning rate"
        )
    if not gain[1] > 0:
        return (
            f"not distinguishable: the gain over the current mixture, {gain[0]:.4f} nats "
            f"[{gain[1]:.4f}, {gain[2]:.4f}], may be none; keep it, or train more mixtures"
        )
    return ""


def _gain_errors(fit: Fit, weights: Floats, now: Floats, draws: Floats, places: Floats) -> Floats:
    """Return by how much each resampled fit is wrong about the gain of its own optimum: (draws,).

    places: (draws, domains), those optima. The gain of a mixture that was chosen because it looks
    best is overestimated; the resampled fits choose as the fit did, and the fit is their truth.
    """
    pairs = np.stack([np.broadcast_to(now, places.shape), places], axis=1)[:, None]
    valued = [
        np.einsum("nts,t->ns", fit.law.value(theta, pairs), weights)
        for theta in (draws, np.broadcast_to(fit.theta, draws.shape))
    ]
    return (valued[0][:, 0] - valued[0][:, 1]) - (valued[1][:, 0] - valued[1][:, 1])


def _valued_loss(
    fit: Fit, weights: Floats, near: Floats, kl: float, theta: Floats
) -> convex_search.Aim:
    """Return the valued loss and its slope as a function of shares (domains,)."""
    towards = np.maximum(near, 1e-4)

    def valued(shares: Floats) -> tuple[float, Floats]:
        point = shares[None]
        loss = float(weights @ fit.law.value(theta, point)[:, 0])
        slope = weights @ fit.law.slope(theta, point)[:, 0]
        if kl > 0:
            ratio = np.log(np.maximum(shares, 1e-9) / towards)
            loss, slope = loss + kl * float(shares @ ratio), slope + kl * (ratio + 1)
        return loss, slope

    return valued


def _valued(fit: Fit, value: Mapping[str, float], standardise: bool) -> Floats:
    weights = _vector(value, fit.targets, "value", 0.0)
    if weights.sum() <= 0:
        raise ValueError(f"value: must be above 0 for some target, got {dict(value)}")
    if standardise:
        weights = weights / np.maximum(fit.losses.std(axis=0), 1e-12)
    return weights / weights.sum()


def _region(
    domains: Sequence[str], caps: Mapping[str, float], settings: RecommendSettings
) -> tuple[Floats, Floats]:
    high = np.minimum(_vector(caps, domains, "caps", 1.0), 1.0)
    least = _vector(settings.least, domains, "least", 0.0)
    for name, low, most in zip(domains, least, high, strict=True):
        if low > most:
            raise RefusalError(f"least: {name}: its share is at most {most:.4f}, got {low:g}")
    low = np.minimum(np.maximum(settings.minimum, least), high)
    if high.sum() < 1 - 1e-9 or low.sum() > 1 + 1e-9:
        raise RefusalError(
            f"caps: sum to {high.sum():.4f}, the least shares to {low.sum():.4f}: no mixture lies "
            "between; allow more epochs or a smaller minimum"
        )
    return low, high


def _vector(values: Mapping[str, float], names: Sequence[str], what: str, missing: float) -> Floats:
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ValueError(f"{what}: names must be of {', '.join(names)}, got {', '.join(unknown)}")
    vector = np.array([values.get(name, missing) for name in names], dtype=np.float64)
    if not (vector >= 0).all():
        raise ValueError(f"{what}: must be at least 0, got {dict(values)}")
    return vector


def _sigma(fit: Fit, weights: Floats) -> float:
    """Return the scatter of one run's valued loss about the law, within its draw."""
    rest = fit.residuals @ weights
    return float(np.sqrt(rest @ rest / (fit.freedom @ weights)))


def _quantiles(values: Floats, edges: tuple[float, float]) -> tuple[float, float]:
    low, high = np.quantile(values, edges)
    return float(low), float(high)


def _named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))
