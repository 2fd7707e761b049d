"""Conclusions of an ablation: laws compared, noise of runs, verdicts of paired checks, factors.

A verdict rests on differences of runs of one seed, whose common seed effect cancels. Its interval
holds for all questions of one table together (Bonferroni), and it is given only where replicates
estimate the noise of a run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.spec import INFILL
from crystalmix.mixtures.ablations.trials import Ground, Trial
from crystalmix.mixtures.laws import distributions
from crystalmix.mixtures.laws.compare import relative_error
from crystalmix.mixtures.laws.fit import Fit, number
from crystalmix.mixtures.laws.fit_repetition import RepetitionCurve, fit_repetition, steepness
from crystalmix.mixtures.laws.noise import Ints, estimate, groups_of
from crystalmix.train.ablations.proxies import ProxyResult
from crystalmix.train.ablations.tables import loss_matrix

Floats = NDArray[np.float64]
Interval = tuple[float, float | None, float | None]  # estimate, low, high; None where unknown
LEVEL = 0.9
POWER = 0.8  # with which a detectable difference is seen
LEAST_RUNS_OF_A_CURVE = 4
LEAST_FREEDOM = 2


@dataclass(frozen=True)
class LawSummary:
    """A law on the design: left-out error (of the losses' spread) and rank correlation, noise.

    sigma: nats, of a run about the law within its seed. seed: nats, SD of a seed's effect. pure:
    nats, of a run's own noise by replicates. misfit: probability of so great a lack of fit, by
    domain; misfit_of_all: over all domains. None where unknown.
    """

    law: str
    error: float
    rho: float
    sigma: dict[str, float]
    seed: dict[str, float | None]
    pure: dict[str, float | None]
    misfit: dict[str, float | None]
    misfit_of_all: float | None


@dataclass(frozen=True)
class RunNoise:
    """Noise of the valued loss, nats, from mixtures that were run under several seeds.

    sigma: SD of one run under a new seed. own: SD of a run within its seed, so that two runs of one
    seed differ by own * sqrt(2). freedom, own_freedom: degrees; None and 0 where unknown.
    """

    sigma: float | None
    freedom: int
    own: float | None
    own_freedom: int

    @property
    def paired(self) -> tuple[float, int]:
        """SD of a run in a paired difference, and its degrees of freedom.

        Without pairs of mixtures under several seeds: that of single runs, which is greater.
        """
        if self.own is not None:
            return self.own, self.own_freedom
        return self.sigma or 0.0, self.freedom


@dataclass(frozen=True)
class Difference:
    """A mean paired difference of valued losses, nats: estimate, interval, n and what was in reach.

    half_width: of the interval. detectable: the true difference that would be seen with
    probability 0.8. None where no noise is known. verdict: a sentence.
    """

    difference: float
    low: float | None
    high: float | None
    pairs: int
    half_width: float | None
    detectable: float | None
    verdict: str


@dataclass(frozen=True)
class Against(Difference):
    """The recommended mixture against another one, at one size."""

    mixture: str = ""
    size: str = ""


@dataclass(frozen=True)
class CheckRun:
    """A run of a mixture under a new seed: measured losses and, at the proxies' size, predicted."""

    run: str
    mixture: str
    size: str
    shares: dict[str, float]
    measured: dict[str, float]
    predicted: dict[str, Interval] | None


@dataclass(frozen=True)
class Checks:
    """Check runs; covered: share of losses within their predicted intervals. delta: nats."""

    runs: tuple[CheckRun, ...]
    covered: float | None
    against: tuple[Against, ...]
    delta: float


@dataclass(frozen=True)
class Level:
    """A level of a factor: mean losses over its runs; valued, sem: of the valued loss, nats."""

    level: str
    runs: int
    losses: dict[str, float]
    valued: float
    sem: float | None


@dataclass(frozen=True)
class Factor:
    """A factor with its levels, and R* of a repetition curve; size: of the runs."""

    factor: str
    levels: tuple[Level, ...]
    curve: RepetitionCurve | None = None
    size: str = ""


def laws(fits: Sequence[Fit]) -> tuple[LawSummary, ...]:
    """Summarise fits, the one with the least error on left-out runs first."""
    return tuple(
        LawSummary(
            law=fit.kind,
            error=relative_error(fit),
            rho=float(np.mean(fit.rho)),
            sigma=dict(zip(fit.targets, fit.sigma.tolist(), strict=True)),
            seed=_by_target(fit, np.where(fit.seed > 0, np.sqrt(fit.seed), np.nan)),
            pure=_by_target(fit, fit.pure),
            misfit=_by_target(fit, fit.misfit),
            misfit_of_all=number(fit.misfit_of_all),
        )
        for fit in sorted(fits, key=relative_error)
    )


def noise(mixtures: Ints, draws: Ints, valued: Floats) -> RunNoise:
    """Estimate the noise of the valued loss: mixtures and draws (runs,), valued (runs,) nats.

    Unknown with fewer than LEAST_FREEDOM runs beyond the first of their mixture.
    """
    components = estimate(mixtures, draws, valued[:, None])
    if components.within_freedom < LEAST_FREEDOM:
        return RunNoise(None, 0, None, 0)
    own = number(float(np.sqrt(components.own[0])))
    sigma = number(float(np.sqrt(components.run[0])))
    return RunNoise(sigma, components.within_freedom, own, components.own_freedom)


def noise_of_trials(
    trials: Sequence[Trial], results: Sequence[ProxyResult], value: Mapping[str, float], size: str
) -> RunNoise:
    """Estimate the noise from all runs of one size that no spike spoilt."""
    pairs = zip(trials, results, strict=True)
    kept = [(t, r) for t, r in pairs if t.size == size and r.run.spikes == 0]
    shares = np.array([[share for _, share in sorted(t.shares.items())] for t, _ in kept])
    losses = loss_matrix([result for _, result in kept], tuple(value))
    draws = np.array([trial.draw for trial, _ in kept])
    return noise(groups_of(shares), draws, losses @ np.array(list(value.values())))


def difference(
    gaps: Sequence[float], noise: RunNoise, delta: float, questions: int = 1, level: float = LEVEL
) -> Difference:
    """Judge paired differences of valued losses (ours less theirs) against the noise of runs.

    delta: nats, below which a difference counts as none; stated before the runs. questions: asked
    of one table, whose intervals hold together.
    """
    mean, pairs = float(np.mean(gaps)), len(gaps)
    sigma, freedom = noise.paired
    if not freedom or not sigma:
        why = "cannot tell: no replicates, so the noise of a run is unknown"
        return Difference(mean, None, None, pairs, None, None, why)
    error = sigma * (2 / pairs) ** 0.5
    half = distributions.student(freedom, 1 - (1 - level) / questions) * error
    seen = half + distributions.student(freedom, 2 * POWER - 1) * error
    verdict = judge(mean - half, mean + half, delta)
    return Difference(mean, mean - half, mean + half, pairs, half, seen, verdict)


def judge(low: float, high: float, delta: float) -> str:
    """Say what an interval of a difference in loss allows to say.

    >>> judge(-0.03, -0.02, 0.01), judge(-0.03, -0.005, 0.01), judge(-0.004, 0.002, 0.01)
    ('better by more than 0.01', 'better', 'equal within 0.01')
    >>> judge(-0.02, 0.03, 0.01)
    'cannot tell'
    """
    if -delta <= low and high <= delta:
        return f"equal within {delta:g}"
    if high < 0:
        return f"better by more than {delta:g}" if high < -delta else "better"
    if low > 0:
        return f"worse by more than {delta:g}" if low > delta else "worse"
    return "cannot tell"


def checks(
    ground: Ground,
    fit: Fit,
    trials: Sequence[Trial],
    results: Sequence[ProxyResult],
    noise: RunNoise,
) -> Checks:
    """Compare predicted and measured losses of check runs, and mixtures with each other.

    Only runs of the proxies' own size are predicted. At other sizes the noise is taken to be that
    of the proxies' size.
    """
    spec, delta = ground.spec, ground.spec.checks.delta
    names = spec.targets
    if not trials:
        return Checks((), None, (), delta)
    losses = loss_matrix(results, names)
    shares = np.array([[trial.shares[name] for name in spec.domains] for trial in trials])
    mean, low, high = fit.predict(shares)
    own = np.array([trial.size == ground.spec.proxy.size for trial in trials])
    inside = ((low <= losses) & (losses <= high))[own]
    runs = tuple(
        CheckRun(
            run=trial.name,
            mixture=trial.level,
            size=trial.size,
            shares=trial.shares,
            measured=dict(zip(names, losses[i].tolist(), strict=True)),
            predicted={
                name: (float(mean[i, k]), number(low[i, k]), number(high[i, k]))
                for k, name in enumerate(names)
            }
            if own[i]
            else None,
        )
        for i, trial in enumerate(trials)
    )
    covered = float(inside.mean()) if inside.size else None
    valued = losses @ np.array(list(ground.spec.value.values()))
    return Checks(runs, covered, tuple(_against(trials, valued, noise, delta)), delta)


def _against(
    trials: Sequence[Trial], valued: Floats, noise: RunNoise, delta: float
) -> Iterator[Against]:
    """Compare the recommended mixture with the current and the uniform one, seed by seed."""
    losses = {
        (t.size, t.level, t.seed): loss for t, loss in zip(trials, valued.tolist(), strict=True)
    }
    others = [
        (size, mixture)
        for size, mixture in dict.fromkeys((trial.size, trial.level) for trial in trials)
        if mixture not in {"recommended", "pareto"}
    ]
    for size, mixture in others:
        gaps = [
            loss - losses[size, mixture, seed]
            for (at, level, seed), loss in losses.items()
            if (at, level) == (size, "recommended") and (size, mixture, seed) in losses
        ]
        judged = difference(gaps, noise, delta, len(others))
        yield Against(**vars(judged), mixture=mixture, size=size)


def factors(
    ground: Ground, fit: Fit, trials: Sequence[Trial], results: Sequence[ProxyResult]
) -> tuple[Factor, ...]:
    """Average the losses of each level of each factor; fit R* to a repetition curve.

    fit: the law that says how steep the loss is in fresh tokens at the proxies' size.
    """
    return tuple(
        _factor(
            ground,
            fit,
            (factor, size),
            [i for i, t in enumerate(trials) if (t.factor, t.size) == (factor, size)],
            trials,
            results,
        )
        for factor, size in dict.fromkeys((trial.factor, trial.size) for trial in trials)
    )


def _factor(
    ground: Ground,
    fit: Fit,
    which: tuple[str, str],
    places: Sequence[int],
    trials: Sequence[Trial],
    results: Sequence[ProxyResult],
) -> Factor:
    spec, (factor, size) = ground.spec, which
    names = (*spec.targets, *(name + INFILL for name in spec.infilled))
    losses = loss_matrix([results[i] for i in places], names)
    labels = [trials[i].level for i in places]
    levels: list[Level] = []
    for label in dict.fromkeys(labels):
        rows = losses[[i for i, other in enumerate(labels) if other == label]]
        valued = rows[:, : len(spec.value)] @ np.array(list(spec.value.values()))
        count = len(valued)
        sem = float(valued.std(ddof=1) / count**0.5) if count > 1 else None
        means = dict(zip(names, rows.mean(axis=0).tolist(), strict=True))
        levels.append(Level(label, count, means, float(valued.mean()), sem))
    if factor != "epochs" or len(places) < LEAST_RUNS_OF_A_CURVE:
        return Factor(factor, tuple(levels), size=size)
    repeated = spec.factors.repeated or names[0]
    centre = np.array([ground.uniform[name] for name in spec.domains])
    curve = fit_repetition(
        np.array([float(label) for label in labels]),
        losses[:, names.index(repeated)],
        known=steepness(fit, centre, repeated) if size == spec.proxy.size else None,
    )
    return Factor(factor, tuple(levels), curve, size)


def _by_target(fit: Fit, values: Floats) -> dict[str, float | None]:
    return dict(zip(fit.targets, map(number, values), strict=True))
