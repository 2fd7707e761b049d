"""Fitting: a law of loss against shares, with intervals, noise, misfit and leave-one-out ranks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import distributions as statistical
from crystalmix.mixtures.laws import families as laws
from crystalmix.mixtures.laws import least_squares as leastsquares
from crystalmix.mixtures.laws.least_squares import Problems
from crystalmix.prep.runtime.errors import RefusalError

Floats = NDArray[np.float64]
KINDS = ("effective", "loglinear", "linear", "quadratic")
ROUNDS = 3  # of fitting and of estimating sigma anew
FEW = 64  # runs up to which leaving one out means fitting anew
ROUNDING = 1e-9  # of one run's variance: a variance below 0 by no more is 0
NORMAL = 0.85926  # weighted mean square of a standard normal under soft-L1's weights


@dataclass(frozen=True)
class FitSettings:
    """How a law is fitted.

    level: of all intervals. domains, targets: names, in the order of the columns (d0, d1, ... and
    t0, t1, ... where none are given). once: the share at which a run has read a domain once
    (its tokens / tokens of the run), by domain; given, repeated tokens count less and less, by
    R* (2305.16264), one per target.
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

    theta: (targets, parameters); covariance: (targets, parameters, parameters), of Laplace's
    approximation. sigma: (targets,) nats, of one run about the law; freedom: (targets,) runs less
    parameters that the runs decided. pure: (targets,) nats, of runs of one mixture about their
    mean, nan without replicates. misfit: (targets,) probability of so great a lack of fit by
    chance, nan without replicates. rho: (targets,) Spearman, left-out against measured. left_out:
    (runs, targets) each run as the others predict it. problems: what was solved.
    """

    kind: str
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    sigma: Floats
    freedom: Floats
    pure: Floats
    misfit: Floats
    rho: Floats
    left_out: Floats
    theta: Floats
    covariance: Floats
    problems: Problems = field(repr=False)
    level: float = 0.9

    @property
    def law(self) -> laws.Law:
        """The family of curves."""
        return self.problems.law

    @property
    def shares(self) -> Floats:
        """The mixtures that were fitted: (runs, domains)."""
        return self.problems.shares

    @property
    def losses(self) -> Floats:
        """Their losses: (runs, targets)."""
        return self.problems.losses.T

    def mean(self, shares: Floats) -> Floats:
        """Return the loss of each mixture: (mixtures, domains) -> (mixtures, targets)."""
        return self.law.value(self.theta, np.atleast_2d(shares)).T

    def predict(self, shares: Floats, *, run: bool = True) -> tuple[Floats, Floats, Floats]:
        """Return mean, low and high, each (mixtures, targets), of a new run of each mixture.

        run: False gives the interval of the law itself, without the noise of a run. Low and high
        are nan where the runs are too few or too much alike to tell a variance.
        """
        shares = np.atleast_2d(shares)
        jacobian = self.law.jacobian(self.theta, shares)  # (targets, mixtures, parameters)
        spread = np.einsum("tmp,tpq,tmq->mt", jacobian, self.covariance, jacobian)
        wide = np.array([statistical.student(free, self.level) for free in self.freedom])
        known = np.where(spread >= -ROUNDING * self.sigma**2, np.maximum(spread, 0), np.nan)
        half = wide * np.sqrt(known + (self.sigma**2 if run else 0.0))
        mean = self.mean(shares)
        return mean, mean - half, mean + half

    def transfer(self) -> Floats:
        """Return what a token of each domain is worth in tokens of the best: (targets, domains).

        Only the effective-data law says so: its weights, the greatest of each target being 1.
        """
        if self.kind != "effective":
            raise ValueError(f"kind: must be effective, got {self.kind}")
        weights = np.exp(self.theta[:, 2 : 2 + len(self.domains)])
        return weights / weights.max(axis=1, keepdims=True)

    def errors(self) -> Floats:
        """Return the parameters' standard errors: (targets, parameters), nan where none follows.

        The runs may decide so little that the curvature can't be inverted in float64.
        """
        variance = np.einsum("tpp->tp", self.covariance)
        return np.sqrt(np.where(variance >= 0, variance, np.nan))

    def content(self) -> dict[str, Any]:
        """Return parameters with standard errors and diagnostics as JSON has them."""
        names, errors = self.law.names(self.domains), self.errors()
        whole = {"kind": self.kind, "level": self.level, "domains": list(self.domains)}
        return {
            **whole,
            "runs": len(self.shares),
            "targets": {
                target: {
                    "parameters": {
                        name: {"value": float(v), "error": _number(e)}
                        for name, v, e in zip(names, self.theta[t], errors[t], strict=True)
                    },
                    "sigma": float(self.sigma[t]),
                    "sigma_pure": _number(self.pure[t]),
                    "misfit_p": _number(self.misfit[t]),
                    "leave_one_out_rho": _number(self.rho[t]),
                }
                for t, target in enumerate(self.targets)
            },
        }


def fit(
    shares: Floats, losses: Floats, kind: str = "effective", settings: FitSettings | None = None
) -> Fit:
    """Fit one law per target.

    shares: (runs, domains), each summing to 1. losses: (runs, targets), nats (or bits a byte).
    The fit is the same for any order of the targets and draws nothing at random. RefusalError
    where there are fewer than four runs, or numbers that are none.
    """
    settings = settings or FitSettings()
    _check(shares, losses, settings)
    shares, losses = np.ascontiguousarray(shares), np.ascontiguousarray(losses)
    once = None if settings.once is None else np.array(settings.once)
    law = laws.make(kind, once)
    try:
        problems, theta = _solve(law, shares, losses)
        data, curved, _ = leastsquares.normal(problems, theta)
        covariance: Floats = np.linalg.inv(curved).astype(np.float64)
        left_out = _leave_one_out(problems, theta, covariance)
    except np.linalg.LinAlgError:
        raise RefusalError(
            f"runs: {len(shares)} of them are too few or too alike to fit the {kind} law to "
            f"{shares.shape[1]} domains; train more mixtures"
        ) from None
    pure, misfit = _lack_of_fit(shares, losses, problems.sigma, _freedom(problems, data, curved))
    return Fit(
        kind=kind,
        domains=settings.domains or tuple(f"d{k}" for k in range(shares.shape[1])),
        targets=settings.targets or tuple(f"t{k}" for k in range(losses.shape[1])),
        sigma=problems.sigma,
        freedom=_freedom(problems, data, curved),
        pure=pure,
        misfit=misfit,
        rho=np.array(
            [statistical.spearman(*pair) for pair in zip(left_out.T, losses.T, strict=True)]
        ),
        left_out=left_out,
        theta=theta,
        covariance=covariance,
        problems=problems,
        level=settings.level,
    )


def _check(shares: Floats, losses: Floats, settings: FitSettings) -> None:
    if shares.ndim != 2 or losses.ndim != 2 or len(shares) != len(losses):
        raise RefusalError(f"runs: shares {shares.shape} and losses {losses.shape} do not pair")
    if len(shares) < 4:
        raise RefusalError(f"runs: a law needs at least 4, got {len(shares)}; train more")
    if not (np.isfinite(shares).all() and np.isfinite(losses).all()):
        raise RefusalError("runs: some shares or losses are no numbers; leave those runs out")
    count, targets = shares.shape[1], losses.shape[1]
    for name, asked in (("domains", count), ("targets", targets), ("once", count)):
        given = getattr(settings, name)
        if given and len(given) != asked:
            raise ValueError(f"{name}: must have one entry for each of {asked}, got {len(given)}")


def _solve(law: laws.Law, shares: Floats, losses: Floats) -> tuple[Problems, Floats]:
    """Fit all targets from all starts, keep the best, and settle sigma."""
    starts = law.starts(shares, losses)  # (starts, targets, parameters)
    count, targets = starts.shape[:2]
    mean, precision = law.prior(shares, losses)
    problems = Problems(
        law=law,
        shares=shares,
        losses=np.ascontiguousarray(losses.T),
        keep=np.ones((targets, len(shares))),
        sigma=np.maximum(0.1 * losses.std(axis=0), 1e-9),
        mean=mean,
        precision=precision,
    )
    every = problems.of(np.tile(np.arange(targets), count))
    tried, costs = leastsquares.minimise(every, starts.reshape(count * targets, -1))
    best = costs.reshape(count, targets).argmin(axis=0)
    theta = tried.reshape(starts.shape)[best, np.arange(targets)]
    floor = 1e-6 * np.maximum(losses.std(axis=0), 1e-6)
    for _ in range(ROUNDS):
        data, curved, _ = leastsquares.normal(problems, theta)
        off = law.value(theta, shares) - problems.losses
        weight = leastsquares.weights(off / problems.sigma[:, None])
        squares = (weight * off**2).sum(axis=1) / (NORMAL * weight.mean(axis=1))
        sigma = np.sqrt(squares / _freedom(problems, data, curved))
        problems = Problems(**{**vars(problems), "sigma": np.maximum(sigma, floor)})
        theta, _ = leastsquares.minimise(problems, theta)
    return problems, theta


def _freedom(problems: Problems, data: Floats, curved: Floats) -> Floats:
    """Return runs less the parameters that the runs decided, not the prior: (targets,)."""
    decided = np.einsum("bpp->b", np.linalg.solve(curved, data))
    return np.maximum(problems.losses.shape[1] - decided, 1.0)


def _leave_one_out(problems: Problems, theta: Floats, covariance: Floats) -> Floats:
    """Return each run as the others predict it: (runs, targets).

    Up to 64 runs by fitting anew without it; above, from its leverage, which is then small.
    """
    law, shares = problems.law, problems.shares
    targets, runs = problems.losses.shape
    if runs > FEW:
        told = law.value(theta, shares)
        jacobian = law.jacobian(theta, shares)
        held = np.einsum("trp,tpq,trq->tr", jacobian, covariance, jacobian)
        leverage = np.minimum(held / problems.sigma[:, None] ** 2, 0.99)
        return (problems.losses - (problems.losses - told) / (1 - leverage)).T
    many = problems.of(np.repeat(np.arange(targets), runs))
    many.keep[np.arange(targets * runs), np.tile(np.arange(runs), targets)] = 0.0
    found, _ = leastsquares.minimise(many, np.repeat(theta, runs, axis=0))
    every = law.value(found, shares).reshape(targets, runs, runs)
    return np.einsum("trr->rt", every).copy()


def _lack_of_fit(
    shares: Floats, losses: Floats, sigma: Floats, freedom: Floats
) -> tuple[Floats, Floats]:
    """Return pure error and the probability of so much lack of fit by chance: (targets,) each."""
    _, group = np.unique(np.round(shares, 9), axis=0, return_inverse=True)
    members = np.eye(group.max() + 1)[group.ravel()]  # (runs, groups)
    means = members @ ((members.T @ losses) / members.sum(axis=0)[:, None])
    free = len(shares) - members.shape[1]
    if free == 0:
        nothing = np.full(losses.shape[1], np.nan)
        return nothing, nothing
    within = ((losses - means) ** 2).sum(axis=0)
    pure = within / free
    rest = np.maximum(freedom - free, 1.0)
    lack = np.maximum(sigma**2 * freedom - within, 0) / rest
    told = [
        statistical.fisher_tail(one / max(two, 1e-30), above, free)
        for one, two, above in zip(lack, pure, rest, strict=True)
    ]
    return np.sqrt(pure), np.array(told, dtype=np.float64)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
