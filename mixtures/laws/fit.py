"""Fit of a law to losses, with intervals, variance components, misfit and leave-one-out ranks."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import distributions, families, least_squares
from crystalmix.mixtures.laws.least_squares import Problems
from crystalmix.mixtures.laws.noise import Ints, Noise, estimate, groups_of
from crystalmix.mixtures.laws.scale import AtScale, Scaled, Scales
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Content

Floats = NDArray[np.float64]
DEFAULT = "concave"
JOINT = ("joint", "additive")  # where runs differ in size or tokens: with and without drift
KINDS = (DEFAULT, "effective", "loglinear", "linear", "quadratic")
ROUGH = 1e-7  # of the cost, where a fit is refined later or only its ranks count
ROUNDS = 3  # of fitting and of estimating sigma anew
FEW = 64  # runs up to which leaving one out means fitting anew
ROUNDING = 1e-9  # of one run's variance: a variance below 0 by no more is 0
NORMAL = 0.85926  # weighted mean square of a standard normal under soft-L1's weights
LEAST_EFFECT = 0.1  # of sigma: a seed effect's SD is taken to be at least this


@dataclass(frozen=True)
class FitSettings:
    """How a law is fitted.

    level: of all intervals. domains, targets: names, in the order of the columns (d0, d1, ... and
    t0, t1, ... by default). once: by domain, the share at which a run has read it once (its tokens
    / tokens of the run); with it, repeated tokens count less and less, by one R* per target
    (2305.16264).
    """

    level: float = 0.9
    domains: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    once: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level: must lie in (0, 1), got {self.level}")
        if self.once is not None and min(self.once) <= 0:
            raise ValueError(f"once: must be above 0, got {self.once}")


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    theta: (targets, parameters). covariance: (targets, parameters, parameters), by Laplace's
    approximation, draws' effects integrated out. effects: (targets, draws), of each draw's seed.
    sigma: (targets,) nats, of a run about the law within its draw; freedom: (targets,) runs less
    parameters that the runs decided. noise: of replicated mixtures. seed, seed_error: (targets,)
    variance of a draw's effect, and that estimate's variance; 0 where none is modelled. misfit:
    (targets,) probability of so great a lack of fit by chance, nan without pure error;
    misfit_of_all: of all targets together. rho:
    (targets,) Spearman, left-out against measured. left_out: (runs, targets) each run as the others
    predict it. problems: what was solved. scales: size and tokens of each run, where these vary;
    place: among them, at which the law is taken (`at`): the mean of the runs by default.
    """

    kind: str
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    theta: Floats
    covariance: Floats
    effects: Floats
    sigma: Floats
    freedom: Floats
    noise: Noise
    seed: Floats
    seed_error: Floats
    misfit: Floats
    misfit_of_all: float
    rho: Floats
    left_out: Floats
    problems: Problems = field(repr=False)
    level: float = 0.9
    scales: Scales | None = None
    place: tuple[float, float] = (0.0, 0.0)

    @property
    def law(self) -> families.Curves:
        """The family of curves; of a joint law, that at `place`."""
        law = self.problems.law
        return law if self.scales is None else AtScale(law, self.place)

    def at(self, parameters: float, tokens: float) -> "Fit":
        """Return the fit of a joint law at another size and number of tokens."""
        if self.scales is None:
            raise ValueError("scales: the runs of this fit have one size only")
        n, d = self.scales.log(parameters, tokens).tolist()
        return replace(self, place=(n, d))

    @property
    def shares(self) -> Floats:
        """The mixtures that were fitted: (runs, domains)."""
        return self.problems.shares[:, : len(self.domains)]

    @property
    def losses(self) -> Floats:
        """Their losses: (runs, targets)."""
        return self.problems.losses.T

    @property
    def pure(self) -> Floats:
        """SD of pure error: (targets,) nats, within draws where these are known; else nan."""
        return np.sqrt(self.noise.own)

    @property
    def run_variance(self) -> tuple[Floats, Floats]:
        """Variance of a new run of a new draw about the law, and its degrees of freedom."""
        own = self.sigma**2
        error = self.seed_error + 2 * own**2 / self.freedom
        whole = own + self.seed
        return whole, np.maximum(2 * whole**2 / np.maximum(error, 1e-300), 1.0)

    @property
    def residuals(self) -> Floats:
        """Losses less the law and the effect of their draw: (runs, targets)."""
        solution = np.concatenate([self.theta, self.effects], axis=1)
        return self.losses - self.problems.value(solution).T

    def mean(self, shares: Floats) -> Floats:
        """Return the loss of each mixture: (mixtures, domains) -> (mixtures, targets)."""
        return self.law.value(self.theta, np.atleast_2d(shares)).T

    def predict(self, shares: Floats, *, run: bool = True) -> tuple[Floats, Floats, Floats]:
        """Return mean, low and high, each (mixtures, targets), of a new run under a new seed.

        run: False gives the interval of the law itself, without the noise of a run. Low and high
        are nan where the runs are too few or too much alike to estimate a variance.
        """
        shares = np.atleast_2d(shares)
        jacobian = self.law.jacobian(self.theta, shares)  # (targets, mixtures, parameters)
        spread = np.einsum("tmp,tpq,tmq->mt", jacobian, self.covariance, jacobian)
        known = np.where(spread >= -ROUNDING * self.sigma**2, np.maximum(spread, 0), np.nan)
        variance, freedom = self.run_variance
        wide = np.array([distributions.student(free, self.level) for free in freedom])
        half = wide * np.sqrt(known + (variance if run else 0.0))
        mean = self.mean(shares)
        return mean, mean - half, mean + half

    def transfer(self, shares: Floats | None = None) -> Floats:
        """Return what a token of each domain is worth in tokens of the best: (targets, domains).

        The ratio of the law's slopes at a mixture, (domains,), by default the uniform one.
        """
        count = len(self.domains)
        at = np.full(count, 1 / count) if shares is None else shares
        worth = -self.law.slope(self.theta, at[None])[:, 0]
        return worth / worth.max(axis=1, keepdims=True)

    def errors(self) -> Floats:
        """Return the parameters' standard errors: (targets, parameters), nan where none follows.

        The runs may decide so little that the curvature can't be inverted in float64.
        """
        variance = np.einsum("tpp->tp", self.covariance)
        return np.sqrt(np.where(variance >= 0, variance, np.nan))

    def content(self) -> Content:
        """Return parameters with standard errors and diagnostics as JSON has them."""
        names, errors = self.law.names(self.domains), self.errors()
        return {
            "kind": self.kind,
            "level": self.level,
            "domains": list(self.domains),
            "runs": len(self.shares),
            "targets": {
                target: {
                    "parameters": {
                        name: {"value": float(v), "error": number(e)}
                        for name, v, e in zip(names, self.theta[t], errors[t], strict=True)
                    },
                    "sigma": float(self.sigma[t]),
                    "sigma_seed": number(np.sqrt(self.seed[t])),
                    "sigma_pure": number(self.pure[t]),
                    "misfit_p": number(self.misfit[t]),
                    "leave_one_out_rho": number(self.rho[t]),
                }
                for t, target in enumerate(self.targets)
            },
        }


def fit(
    shares: Floats,
    losses: Floats,
    kind: str = DEFAULT,
    settings: FitSettings | None = None,
    draws: Ints | None = None,
    scales: Scales | None = None,
) -> Fit:
    """Fit one law per target.

    shares: (runs, domains), each summing to 1. losses: (runs, targets), nats (or bits a byte).
    draws: (runs,), a number for each seed; runs of one share a random effect. None: no seed effect
    is modelled. scales: of each run, for a kind of JOINT; a seed's effect is then of one scale. The
    fit is the same for any order of the targets and draws nothing at random.
    RefusalError where there are fewer than four runs, or values that are not finite.
    """
    settings = settings or FitSettings()
    _check(shares, losses, settings)
    shares, losses = np.ascontiguousarray(shares), np.ascontiguousarray(losses)
    law, count = _law(kind, settings, scales), shares.shape[1]
    points = shares
    if scales is not None:
        points = np.column_stack([shares, scales.logs])
        if draws is not None:
            draws = draws + groups_of(scales.logs) * (1 + int(draws.max()))
    noise = estimate(groups_of(points), draws, losses)
    effects = _effects(draws, noise, len(shares))
    try:
        problems, solution, seed = _solve(law, points, losses, effects, noise)
        data, curved, _ = least_squares.normal(problems, solution)
        covariance: Floats = np.linalg.inv(curved).astype(np.float64)
        left_out = _leave_one_out(problems, solution, covariance)
    except np.linalg.LinAlgError:
        raise RefusalError(
            f"runs: {len(shares)} of them are too few or too alike to fit the {kind} law to "
            f"{count} domains; train more mixtures"
        ) from None
    own, freedom = solution.shape[1] - effects.shape[1], _freedom(problems, data, curved)
    misfit = _misfit(noise, problems, solution, freedom)
    pairs = zip(left_out.T, losses.T, strict=True)
    return Fit(
        kind=kind,
        domains=settings.domains or tuple(f"d{k}" for k in range(count)),
        targets=settings.targets or tuple(f"t{k}" for k in range(losses.shape[1])),
        theta=solution[:, :own],
        covariance=covariance[:, :own, :own],
        effects=solution[:, own:],
        sigma=problems.sigma,
        freedom=freedom,
        noise=noise,
        seed=seed,
        seed_error=_seed_error(noise, seed, problems.sigma),
        misfit=misfit[:-1],
        misfit_of_all=float(misfit[-1]),
        rho=np.array([distributions.spearman(*pair) for pair in pairs]),
        left_out=left_out,
        problems=problems,
        level=settings.level,
        scales=scales,
    )


def number(value: float) -> float | None:
    """Return a finite number for JSON, None for any other."""
    return float(value) if np.isfinite(value) else None


def _law(kind: str, settings: FitSettings, scales: Scales | None) -> families.Law:
    """Return the law of a kind, with repeated tokens counted less where the settings say so."""
    if (kind in JOINT) != (scales is not None):
        rule = "needs the size and tokens of each run" if scales is None else "takes no scales"
        raise ValueError(f"law {kind}: {rule}")
    once = None if settings.once is None else np.array(settings.once)
    if scales is None:
        return families.make(kind, once)
    law = Scaled(drift=kind == "joint")
    return law if once is None else families.Repeated(law, once, sized=True)


def _check(shares: Floats, losses: Floats, settings: FitSettings) -> None:
    if shares.ndim != 2 or losses.ndim != 2 or len(shares) != len(losses):
        raise RefusalError(f"runs: shares {shares.shape} and losses {losses.shape} do not pair")
    if len(shares) < 4:
        raise RefusalError(f"runs: a law needs at least 4, got {len(shares)}; train more")
    if not (np.isfinite(shares).all() and np.isfinite(losses).all()):
        raise RefusalError("runs: some shares or losses are no numbers; leave those runs out")
    count, targets = shares.shape[1], losses.shape[1]
    for name, columns in (("domains", count), ("targets", targets), ("once", count)):
        entries = getattr(settings, name)
        if entries and len(entries) != columns:
            rule = f"must have one entry for each of {columns}, got {len(entries)}"
            raise ValueError(f"{name}: {rule}")


def _effects(draws: Ints | None, noise: Noise, runs: int) -> Floats:
    """Return an indicator column for each draw, (runs, draws); none where nothing tells them."""
    if draws is None or not noise.within_freedom or len(np.unique(draws)) < 2:
        return np.zeros((runs, 0))
    return (draws[:, None] == np.unique(draws)).astype(np.float64)


def _solve(
    law: families.Law, shares: Floats, losses: Floats, effects: Floats, noise: Noise
) -> tuple[Problems, Floats, Floats]:
    """Fit all targets from all starts, keep the best; settle sigma, seed effects and the prior."""
    starts = law.starts(shares, losses)  # (starts, targets, parameters)
    count, targets, own = starts.shape
    starts = np.concatenate([starts, np.zeros((count, targets, effects.shape[1]))], axis=-1)
    mean, precision = law.prior(shares, losses)
    sigma = np.maximum(0.1 * losses.std(axis=0), 1e-9)
    seed = _seed(noise, sigma, effects)
    problems = Problems(
        law=law,
        shares=shares,
        losses=np.ascontiguousarray(losses.T),
        keep=np.ones((targets, len(shares))),
        sigma=sigma,
        mean=np.pad(mean, ((0, 0), (0, effects.shape[1]))),
        precision=_with_effects(precision, seed, sigma, effects.shape[1]),
        effects=effects,
    )
    every = problems.of(np.tile(np.arange(targets), count))
    tried, costs = least_squares.minimise(every, starts.reshape(count * targets, -1), ROUGH)
    best = costs.reshape(count, targets).argmin(axis=0)
    solution = tried.reshape(starts.shape)[best, np.arange(targets)]
    floor = 1e-6 * np.maximum(np.abs(losses).max(axis=0), 1e-6)
    for _ in range(ROUNDS):
        data, curved, _ = least_squares.normal(problems, solution)
        off = problems.value(solution) - problems.losses
        weight = least_squares.weights(off / problems.sigma[:, None])
        squares = (weight * off**2).sum(axis=1) / (NORMAL * weight.mean(axis=1))
        sigma = np.maximum(np.sqrt(squares / _freedom(problems, data, curved)), floor)
        covariance: Floats = np.linalg.inv(curved)[:, :own, :own].astype(np.float64)
        mean, precision = families.learn_prior(law, solution, covariance, mean, precision)
        seed = _seed(noise, sigma, effects)
        problems = replace(
            problems,
            sigma=sigma,
            mean=np.pad(mean, ((0, 0), (0, effects.shape[1]))),
            precision=_with_effects(precision, seed, sigma, effects.shape[1]),
        )
        solution, _ = least_squares.minimise(problems, solution)
    return problems, solution, seed


def _seed(noise: Noise, sigma: Floats, effects: Floats) -> Floats:
    """Return the variance of a draw's effect: as replicates say, less own noise where unknown."""
    if effects.shape[1] == 0:
        return np.zeros(len(sigma))
    if noise.own_freedom:
        return noise.seed
    return np.maximum(noise.within - sigma**2, 0.0)


def _seed_error(noise: Noise, seed: Floats, sigma: Floats) -> Floats:
    if noise.own_freedom or not seed.any():
        return np.where(seed > 0, noise.seed_error, 0.0)
    return 2 * (seed + sigma**2) ** 2 / noise.within_freedom


def _with_effects(precision: Floats, seed: Floats, sigma: Floats, draws: int) -> Floats:
    """Return the prior's precision with that of each draw's effect, whose mean is 0."""
    count = precision.shape[1]
    whole = np.pad(precision, ((0, 0), (0, draws), (0, draws)))
    at = np.arange(count, count + draws)
    whole[:, at, at] = 1 / np.maximum(seed, (LEAST_EFFECT * sigma) ** 2)[:, None]
    return whole


def _freedom(problems: Problems, data: Floats, curved: Floats) -> Floats:
    """Return runs less the parameters that the runs decided, not the prior: (targets,)."""
    decided = np.einsum("bpp->b", np.linalg.solve(curved, data))
    return np.maximum(problems.losses.shape[1] - decided, 1.0)


def _leave_one_out(problems: Problems, solution: Floats, covariance: Floats) -> Floats:
    """Return each run as the others predict it: (runs, targets).

    Up to 64 runs by fitting anew without it; above, from its leverage, which is then small.
    """
    targets, runs = problems.losses.shape
    if runs > FEW:
        jacobian = problems.jacobian(solution)
        held = np.einsum("trp,tpq,trq->tr", jacobian, covariance, jacobian, optimize=True)
        leverage = np.minimum(held / problems.sigma[:, None] ** 2, 0.99)
        off = problems.losses - problems.value(solution)
        return (problems.losses - off / (1 - leverage)).T
    many = problems.of(np.repeat(np.arange(targets), runs))
    many.keep[np.arange(targets * runs), np.tile(np.arange(runs), targets)] = 0.0
    without, _ = least_squares.minimise(many, np.repeat(solution, runs, axis=0), ROUGH)
    every = many.value(without).reshape(targets, runs, runs)
    return np.einsum("trr->rt", every).copy()


def _misfit(noise: Noise, problems: Problems, solution: Floats, freedom: Floats) -> Floats:
    """Return the probability of so much lack of fit by chance: of each target, then of all.

    Fisher's test. All targets together have the freedom of as many independent ones as the
    correlation of their residuals leaves: T^2 / sum r^2.
    """
    free, targets = noise.own_freedom, len(freedom)
    if free == 0:
        return np.full(targets + 1, np.nan)
    rest = np.maximum(freedom - free, 1.0)
    whole = np.maximum(problems.sigma**2 * freedom, 1e-30)
    lack = np.maximum(whole - noise.own * free, 0)
    scale = whole / freedom  # puts targets on one scale, whether there is misfit or not
    off = problems.value(solution) - problems.losses
    off /= np.maximum(np.sqrt((off**2).sum(axis=1, keepdims=True)), 1e-300)
    independent = targets**2 / float(((off @ off.T) ** 2).sum())
    lack = np.append(lack / rest, (lack / scale).sum() / rest.sum())
    own = np.append(noise.own, (noise.own / scale).mean())
    above = np.append(rest, rest.mean() * independent)
    below = np.append(np.full(targets, free), free * independent)
    ratios = lack / np.maximum(own, 1e-30)
    return np.array(list(map(distributions.fisher_tail, ratios, above, below)))
