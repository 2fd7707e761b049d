"""Verdicts: what an ablation's runs say of its laws, its recommendation and its factors."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.trials import Ground, Trial
from crystalmix.mixtures.laws import distributions as statistical
from crystalmix.mixtures.laws.fit import Fit
from crystalmix.mixtures.laws.fit_repetition import fit_repetition, steepness
from crystalmix.prep.runtime.types import Json
from crystalmix.train.ablations.proxies import ProxyResult
from crystalmix.train.ablations.tables import loss_matrix

Floats = NDArray[np.float64]
LEVEL = 0.9
LEAST_RUNS_OF_A_CURVE = 4


def noise(designed: Sequence[Trial], losses: Floats, value: Mapping[str, float]) -> Json:
    """Return how far runs of the centre stray from their mean, in valued nats per token.

    sigma: standard deviation of one run; freedom: runs less one. Without replicates both are 0.
    """
    same = np.array([trial.role in {"centre", "replicate"} for trial in designed])
    valued = losses[same] @ np.array(list(value.values()))
    if len(valued) < 2:
        return {"sigma": 0.0, "freedom": 0}
    return {"sigma": float(valued.std(ddof=1)), "freedom": len(valued) - 1}


def laws(fits: Mapping[str, Fit]) -> list[Json]:
    """Return for each law: rank correlation left out, noise and misfit, domain by domain."""
    return [
        {
            "law": kind,
            "rho": float(np.mean(fit.rho)),
            "sigma": dict(zip(fit.targets, fit.sigma.tolist(), strict=True)),
            "pure": dict(zip(fit.targets, _finite(fit.pure), strict=True)),
            "misfit": dict(zip(fit.targets, _finite(fit.misfit), strict=True)),
        }
        for kind, fit in fits.items()
    ]


def checks(
    ground: Ground, fit: Fit, trials: Sequence[Trial], results: Sequence[ProxyResult], noise: Json
) -> Json:
    """Return predicted against measured losses of check runs, and who was better than whom.

    Only runs of the proxies' own size are predicted. `against` compares the recommended mixture
    with each other one of the same size: difference in valued nats with its interval.
    """
    names = tuple(ground.spec.domains)
    if not trials:
        return {"runs": [], "covered": None, "against": []}
    losses = loss_matrix(results, names)
    shares = np.array([[trial.shares[name] for name in names] for trial in trials])
    mean, low, high = fit.predict(shares)
    own = np.array([trial.size == ground.spec.proxy.size for trial in trials])
    inside = ((low <= losses) & (losses <= high))[own]
    runs = [
        {
            "run": trial.name,
            "mixture": trial.level,
            "size": trial.size,
            "shares": trial.shares,
            "measured": dict(zip(names, losses[i].tolist(), strict=True)),
            "predicted": _predicted(names, mean[i], low[i], high[i]) if own[i] else None,
        }
        for i, trial in enumerate(trials)
    ]
    against = [_against(ground, trials, losses, size, noise) for size in _sizes(trials)]
    return {
        "runs": runs,
        "covered": float(inside.mean()) if inside.size else None,
        "against": [line for lines in against for line in lines],
    }


def factors(
    ground: Ground, fit: Fit, trials: Sequence[Trial], results: Sequence[ProxyResult]
) -> list[Json]:
    """Return the mean losses of each level of each factor, and R* of a repetition curve.

    fit: the law that tells how steep the loss is in fresh tokens.
    """
    spec, names = ground.spec, tuple(ground.spec.domains)
    told: list[Json] = []
    for factor in dict.fromkeys(trial.factor for trial in trials):
        here = [i for i, trial in enumerate(trials) if trial.factor == factor]
        losses = loss_matrix([results[i] for i in here], names)
        levels = [trials[i].level for i in here]
        entry: Json = {"factor": factor, "levels": []}
        for level in dict.fromkeys(levels):
            rows = losses[[i for i, one in enumerate(levels) if one == level]]
            valued = rows @ np.array(list(spec.value.values()))
            entry["levels"].append(
                {
                    "level": level,
                    "runs": len(rows),
                    "losses": dict(zip(names, rows.mean(axis=0).tolist(), strict=True)),
                    "valued": float(valued.mean()),
                    "sem": float(valued.std(ddof=1) / len(valued) ** 0.5)
                    if len(rows) > 1
                    else None,
                }
            )
        if factor == "epochs" and len(here) >= LEAST_RUNS_OF_A_CURVE:
            epochs = np.array([float(level) for level in levels])
            repeated = spec.factors.repeated or names[0]
            centre = np.array([ground.uniform[name] for name in names])
            entry["curve"] = fit_repetition(
                epochs,
                losses[:, names.index(repeated)],
                known=steepness(fit, centre, repeated),
            ).content()
        told.append(entry)
    return told


def _against(
    ground: Ground, trials: Sequence[Trial], losses: Floats, size: str, noise: Json
) -> list[Json]:
    """Compare the recommended mixture with the others at one size, seed by seed."""
    valued = losses @ np.array(list(ground.spec.value.values()))
    by_mixture: dict[str, dict[int, float]] = {}
    for trial, loss in zip(trials, valued.tolist(), strict=True):
        if trial.size == size:
            by_mixture.setdefault(trial.level, {})[trial.seed] = loss
    ours = by_mixture.get("recommended", {})
    told: list[Json] = []
    for mixture, theirs in by_mixture.items():
        if mixture in {"recommended", "pareto"}:
            continue
        gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        mean = float(np.mean(gaps))
        wide = half_width(noise, len(gaps))
        told.append(
            {
                "mixture": mixture,
                "size": size,
                "difference": mean,
                "low": mean - wide,
                "high": mean + wide,
                "verdict": verdict(mean, wide),
            }
        )
    return told


def half_width(noise: Json, pairs: int) -> float:
    """Return the half width of the interval of a mean difference of two mixtures' losses.

    The noise is that of single runs under other seeds; runs of one seed differ by less.
    """
    if not noise["freedom"]:
        return 0.0
    quantile = statistical.student(noise["freedom"], LEVEL)
    return float(quantile * noise["sigma"] * (2 / pairs) ** 0.5)


def verdict(difference: float, wide: float) -> str:
    """Say whether a difference in loss of a half width is better, worse or neither."""
    if abs(difference) <= wide:
        return "not distinguishable"
    return "better" if difference < 0 else "worse"


def _sizes(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.size for trial in trials))


def _predicted(names: Sequence[str], mean: Floats, low: Floats, high: Floats) -> Json:
    return {name: [float(mean[i]), float(low[i]), float(high[i])] for i, name in enumerate(names)}


def _finite(values: Floats) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
