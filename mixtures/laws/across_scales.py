"""What several sizes of proxies say: rank correlations, drift of the optimum, further runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import least_squares
from crystalmix.mixtures.laws.distributions import spearman
from crystalmix.mixtures.laws.families import Repeated
from crystalmix.mixtures.laws.fit import Fit, FitSettings, fit
from crystalmix.mixtures.laws.recommend import RecommendSettings, best_mixture
from crystalmix.mixtures.laws.scale import Scales

Floats = NDArray[np.float64]
FEWEST = 4  # mixtures of which a rank correlation is given
INTERVAL = 1.645  # of Fisher's transform of a correlation, 90 %


@dataclass(frozen=True)
class ScaleRanks:
    """Spearman of the valued loss at two scales over the mixtures that both measured.

    low, high: 90 % interval by Fisher's transform; parameters and tokens of each scale.
    """

    scale: tuple[float, float]
    other: tuple[float, float]
    mixtures: int
    rho: float
    low: float
    high: float


@dataclass(frozen=True)
class Optimum:
    """The best mixture of one scale by a joint law; measured: whether runs were made there."""

    parameters: float
    tokens: float
    measured: bool
    shares: dict[str, float]


@dataclass(frozen=True)
class Allocation:
    """Further runs of one scale, and the SD of the valued loss at the target once they are made."""

    parameters: float
    tokens: float
    runs: int
    cost: float


@dataclass(frozen=True)
class LargestPredicted:
    """The largest measured scale as the joint law of all others predicts it.

    covered: share of its runs' losses within 90 % intervals of new runs. rho: Spearman by target,
    mean; rho_of_mean: of the mean loss. rmse: in units of the loss.
    """

    parameters: float
    tokens: float
    runs: int
    covered: float
    rho: float
    rho_of_mean: float
    rmse: float


@dataclass(frozen=True)
class AcrossScales:
    """Rank correlations between scales, optima by scale, and how to spend a further budget.

    sd: of the law's valued loss at the target over the runs' mixtures, before and after the runs of
    `allocation`; units of the loss. largest: None with fewer than three scales.
    """

    ranks: tuple[ScaleRanks, ...]
    optima: tuple[Optimum, ...]
    allocation: tuple[Allocation, ...]
    sd: tuple[float, float]
    largest: LargestPredicted | None = None


def across_scales(
    fitted: Fit,
    value: Mapping[str, float],
    caps: Mapping[str, float],
    target: tuple[float, float],
    settings: RecommendSettings,
) -> AcrossScales:
    """Rank, find optima, and allocate as many floating-point operations again as the runs took.

    target: parameters and tokens of the real run.
    """
    scales = fitted.scales
    if scales is None:
        raise ValueError("scales: the runs of this fit have one size only")
    weights = np.array([value.get(name, 0.0) for name in fitted.targets])
    if settings.standardise:
        weights = weights / np.maximum(fitted.losses.std(axis=0), 1e-12)
    weights = weights / weights.sum()
    pairs = list(zip(scales.parameters.tolist(), scales.tokens.tolist(), strict=True))
    costs = {pair: 6.0 * pair[0] * pair[1] for pair in sorted(set(pairs))}
    runs, sd = allocate(fitted, weights, target, costs, sum(costs[pair] for pair in pairs))
    ranks = scale_ranks(fitted.shares, fitted.losses @ weights, scales)
    best = optima(fitted, value, caps, target, settings)
    return AcrossScales(tuple(ranks), tuple(best), tuple(runs), sd, largest_predicted(fitted))


def without_largest(fitted: Fit) -> tuple[Fit, NDArray[np.bool_]] | None:
    """Fit all runs but those of the largest scale, taken there; say which runs these are.

    None below three scales.
    """
    scales = fitted.scales
    if scales is None:
        return None
    sizes = np.column_stack([scales.parameters, scales.tokens])
    every = np.unique(sizes, axis=0)
    largest = every[int(np.prod(every, axis=1).argmax())]
    held = (sizes == largest).all(axis=1)
    if len(every) < 3 or (~held).sum() < FEWEST:
        return None
    effects = fitted.problems.effects[~held]
    law = fitted.problems.law
    settings = FitSettings(
        domains=fitted.domains,
        targets=fitted.targets,
        once=tuple(law.once.tolist()) if isinstance(law, Repeated) else None,
    )
    others = fit(
        fitted.shares[~held],
        fitted.losses[~held],
        fitted.kind,
        settings,
        effects.argmax(axis=1) if effects.shape[1] else None,
        Scales(scales.parameters[~held], scales.tokens[~held]),
    )
    return others.at(*largest.tolist()), held


def largest_predicted(fitted: Fit) -> LargestPredicted | None:
    """Return how well all other scales predict the largest; None below three scales."""
    found, scales = without_largest(fitted), fitted.scales
    if found is None or scales is None:
        return None
    others, held = found
    losses = fitted.losses[held]
    mean, low, high = others.predict(fitted.shares[held])
    return LargestPredicted(
        parameters=float(scales.parameters[held][0]),
        tokens=float(scales.tokens[held][0]),
        runs=int(held.sum()),
        covered=float(((low <= losses) & (losses <= high)).mean()),
        rho=float(np.mean([spearman(*pair) for pair in zip(mean.T, losses.T, strict=True)])),
        rho_of_mean=spearman(mean.mean(axis=1), losses.mean(axis=1)),
        rmse=float(np.sqrt(np.mean((mean - losses) ** 2))),
    )


def scale_ranks(shares: Floats, valued: Floats, scales: Scales) -> list[ScaleRanks]:
    """Compare each two scales on the mixtures that both measured, replicates averaged.

    shares: (runs, domains); valued: (runs,) losses in one number.
    """
    means: dict[tuple[float, float], dict[tuple[float, ...], list[float]]] = {}
    for mixture, size, tokens, loss in zip(
        np.round(shares, 9), scales.parameters, scales.tokens, valued, strict=True
    ):
        of_scale = means.setdefault((float(size), float(tokens)), {})
        of_scale.setdefault(tuple(mixture.tolist()), []).append(float(loss))
    ranks: list[ScaleRanks] = []
    for one, other in combinations(sorted(means), 2):
        both = [mixture for mixture in means[one] if mixture in means[other]]
        if len(both) < FEWEST:
            continue
        first, second = (
            np.array([fmean(means[scale][mixture]) for mixture in both]) for scale in (one, other)
        )
        rho = spearman(first, second)
        low, high = _correlation_interval(rho, len(both))
        ranks.append(ScaleRanks(one, other, len(both), rho, low, high))
    return ranks


def optima(
    fitted: Fit,
    value: Mapping[str, float],
    caps: Mapping[str, float],
    target: tuple[float, float],
    settings: RecommendSettings | None = None,
) -> list[Optimum]:
    """Return the best mixture at each measured scale and at the target (parameters, tokens)."""
    scales = fitted.scales
    if scales is None:
        raise ValueError("scales: the runs of this fit have one size only")
    measured = sorted(set(zip(scales.parameters.tolist(), scales.tokens.tolist(), strict=True)))
    return [
        Optimum(*scale, scale in measured, best_mixture(fitted.at(*scale), value, caps, settings))
        for scale in [*measured, *([target] if target not in measured else [])]
    ]


def allocate(
    fitted: Fit,
    weights: Floats,
    target: tuple[float, float],
    costs: Mapping[tuple[float, float], float],
    budget: float,
) -> tuple[list[Allocation], tuple[float, float]]:
    """Choose further runs that say most of the target per cost, until the budget is spent.

    weights: (targets,) of the valued loss. costs: of one run at each scale that may be chosen, in
    any unit. Greedy: always the mixture (of those measured) and scale that lower the mean variance
    of the law's valued loss at the target most per cost (I-optimality, linearised at the fit).
    Returns the runs by scale, and that loss's SD before and after.
    """
    if fitted.scales is None:
        raise ValueError("scales: the runs of this fit have one size only")
    mixtures = np.unique(np.round(fitted.shares, 9), axis=0)
    aims = fitted.at(*target).law.jacobian(
        fitted.theta, mixtures
    )  # (targets, mixtures, parameters)
    tries = {
        scale: fitted.at(*scale).law.jacobian(fitted.theta, mixtures) / fitted.sigma[:, None, None]
        for scale in costs
    }
    solution = np.concatenate([fitted.theta, fitted.effects], axis=1)
    curved = least_squares.normal(fitted.problems, solution)[1]
    own = fitted.theta.shape[1]
    spread = np.linalg.inv(curved)[:, :own, :own].astype(np.float64)
    squares = weights**2

    def variance(spread: Floats) -> float:
        held = np.einsum("tmp,tpq,tmq->tm", aims, spread, aims, optimize=True)
        return float((squares @ held).mean())

    before, chosen = variance(spread), dict.fromkeys(costs, 0)
    left = budget
    while affordable := [scale for scale in costs if costs[scale] <= left]:
        gains: list[tuple[float, tuple[float, float], int]] = []
        for scale in affordable:
            towards = np.einsum("tpq,tmq->tmp", spread, tries[scale], optimize=True)
            information = 1 + np.einsum("tmp,tmp->tm", towards, tries[scale])
            seen = np.einsum("tkp,tmp->tkm", aims, towards, optimize=True) ** 2
            lower = np.einsum("t,tkm->m", squares, seen / information[:, None])
            best = int(lower.argmax())
            gains.append((float(lower[best]) / costs[scale], scale, best))
        _, scale, best = max(gains)
        row = tries[scale][:, best]
        towards = np.einsum("tpq,tq->tp", spread, row)
        shrink = 1 + np.einsum("tp,tp->t", towards, row)
        spread = spread - np.einsum("tp,tq->tpq", towards, towards) / shrink[:, None, None]
        chosen[scale] += 1
        left -= costs[scale]
    runs = [
        Allocation(*scale, count, count * costs[scale]) for scale, count in chosen.items() if count
    ]
    return runs, (before**0.5, variance(spread) ** 0.5)


def _correlation_interval(rho: float, count: int) -> tuple[float, float]:
    if count <= 3 or not np.isfinite(rho):
        return -1.0, 1.0
    most = 1 - 6 / (count * (count**2 - 1))  # half of what a swap of neighbours takes from 1
    middle = np.arctanh(np.clip(rho, -most, most))
    half = INTERVAL * np.sqrt(1.06 / (count - 3))  # Fieller et al. 1957, for ranks
    low, high = float(np.tanh(middle - half)), float(np.tanh(middle + half))
    return min(low, rho), max(high, rho)


def scale_lines(across: AcrossScales) -> Sequence[str]:
    """Return it as sentences."""
    lines = [
        f"rank correlation of the valued loss between {_scale(*one.scale)} and "
        f"{_scale(*one.other)}: {one.rho:.3f} [{one.low:.3f}, {one.high:.3f}] "
        f"({one.mixtures} mixtures)"
        for one in across.ranks
    ]
    if largest := across.largest:
        lines.append(
            f"{_scale(largest.parameters, largest.tokens)}, as the smaller ones predict it: "
            f"{largest.covered:.0%} of losses within 90 % intervals, rank correlation "
            f"{largest.rho:.3f}, of the mean loss {largest.rho_of_mean:.3f} ({largest.runs} runs)"
        )
    for best in across.optima:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in best.shares.items())
        where = "" if best.measured else " (not measured)"
        lines.append(f"best at {_scale(best.parameters, best.tokens)}{where}: {shares}")
    if across.allocation:
        runs = ", ".join(
            f"{one.runs} of {_scale(one.parameters, one.tokens)}" for one in across.allocation
        )
        before, after = across.sd
        lines.append(
            f"as much compute again is best spent on: {runs}; SD of the law at the target "
            f"{before:.4f} -> {after:.4f}"
        )
    return lines


def _scale(parameters: float, tokens: float) -> str:
    return f"{_short(parameters)} parameters x {_short(tokens)} tokens"


def _short(number: float) -> str:
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"
