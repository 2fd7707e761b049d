"""Mixing laws: parametric families of loss as a function of shares, with their derivatives.

Every law takes parameters (..., parameters) and shares (..., runs, domains), leading axes (targets,
starts, runs left out) being independent problems, and has a weak prior so that few runs suffice.

concave      c + (sum_j w_j (p_j + e)^g)^-a      g < 1, c > 0, a > 0.05: the default; convex
effective    c + (sum_j w_j p_j)^-a         a cousin of Apple's 2507.09404; convex for w, a > 0
loglinear    c + exp(sum_j t_j p_j)         Ye et al. 2403.16952, Olmix's default; convex
linear       sum_j t_j p_j                  a baseline: its optimum is always a corner
quadratic    sum_j t_j p_j + sum_i<j t_ij p_i p_j      Scheffe's polynomial; a baseline
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import repeated_tokens
from crystalmix.prep.runtime.errors import RefusalError

Floats = NDArray[np.float64]
STARTS = ((0.5, 0.3), (0.25, 1.0), (1.0, 0.1), (0.5, 2.0))  # a; (least loss - c) / spread
EXPONENT = (np.log(0.5), 1.0)  # prior of log a: mean, standard deviation
WEIGHT_SPREAD = 3.0  # prior of log w about their mean, of t about their mean
RSTAR = (np.log(15.4), 1.0)  # prior of log R*: as published; six tiny runs gave 7.0
RSTAR_DRIFT = 0.3  # SD of the exponent with which R* changes with the size
TRACE = 1e-3  # added to a share, so that an absent domain has a finite slope
LEAST_EXPONENT = 0.05  # of a: below it the law is a logarithm with a made-up irreducible loss
RETURNS = 2  # place of logit g among the concave law's parameters
TABLE, TARGET = 4.0, 0.4  # SD of logit g: of a table's mean about 0, of targets about that mean
FLOOR = (np.log(0.5), 1.0)  # prior of log(c / least loss)


class Curves(Protocol):
    """A family of curves from shares to loss."""

    @property
    def convex(self) -> bool:
        """Whether a sum of such curves has one least mixture."""
        ...

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        ...

    def value(self, theta: Floats, shares: Floats) -> Floats:
        """Return losses (..., runs)."""
        ...

    def jacobian(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivative by parameters: (..., runs, parameters)."""
        ...

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivative by shares: (..., runs, domains)."""
        ...


class Law(Curves, Protocol):
    """A family of curves that can be fitted."""

    @property
    def falling(self) -> bool:
        """Whether the loss falls with every share, so that concave shares keep it convex."""
        ...

    @property
    def learns(self) -> bool:
        """Whether a parameter g stands at RETURNS, whose prior is learnt over all targets."""
        ...

    def starts(self, shares: Floats, losses: Floats) -> Floats:
        """Guess parameters: (starts, targets, parameters) from losses (runs, targets)."""
        ...

    def prior(self, shares: Floats, losses: Floats) -> tuple[Floats, Floats]:
        """Return its mean (targets, parameters) and precision (targets, parameters, parameters)."""
        ...


def make(kind: str, once: Floats | None = None) -> Law:
    """Return the law of a kind; with `once` repeated tokens count less (`repeated_tokens`)."""
    law: dict[str, type[Law]] = {
        "concave": Concave,
        "effective": Effective,
        "loglinear": Loglinear,
        "linear": Linear,
        "quadratic": Quadratic,
    }
    if kind not in law:
        raise ValueError(f"law: must be one of {', '.join(law)}, got {kind}")
    return law[kind]() if once is None else Repeated(law[kind](), once)


def learn_prior(
    law: Law, theta: Floats, covariance: Floats, mean: Floats, precision: Floats
) -> tuple[Floats, Floats]:
    """Return the prior with the exponent g learnt over all targets (empirical Bayes).

    What the runs say of each logit g follows from its posterior less the prior; targets scatter
    about a mean of the table by TARGET. Other laws keep their prior.
    """
    if not law.learns:
        return mean, precision
    at = RETURNS
    before = precision[:, at, at]
    whole = 1 / covariance[:, at, at]
    data = np.maximum(whole - before, 1e-9)  # information of the runs alone
    estimate = (whole * theta[:, at] - before * mean[:, at]) / data
    weight = 1 / (1 / data + TARGET**2)
    total = weight.sum() + TABLE**-2
    mean, precision = mean.copy(), precision.copy()
    mean[:, at] = (weight @ estimate) / total
    precision[:, at, at] = 1 / (TARGET**2 + 1 / total)
    return mean, precision


def _spread(losses: Floats) -> Floats:
    return np.maximum(losses.max(axis=0) - losses.min(axis=0), 1e-6)


def _about_mean(count: int) -> Floats:
    """Return the precision that pulls parameters to their common mean, wherever that is."""
    return (np.eye(count) - 1 / count) / WEIGHT_SPREAD**2


@dataclass(frozen=True)
class Effective:
    """The effective-data law; parameters c, log a, log w_j."""

    convex: bool = True
    falling: bool = True
    learns: bool = False

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        return ["c", "log a", *(f"log w:{name}" for name in domains)]

    def starts(self, shares: Floats, losses: Floats) -> Floats:
        """Guess c and a, then w from what is linear in it."""
        found: list[Floats] = []
        for a, below in STARTS:
            c = losses.min(axis=0) - below * _spread(losses)
            data = (losses - c) ** (-1 / a)  # = sum_j w_j p_j
            w = np.linalg.lstsq(shares, data, rcond=None)[0].T  # (targets, domains)
            w = np.maximum(w, 0.02 * data.mean(axis=0)[:, None])
            found.append(np.column_stack([c, np.full(len(c), np.log(a)), np.log(w)]))
        return np.stack(found)

    def prior(self, shares: Floats, losses: Floats) -> tuple[Floats, Floats]:
        """Return a prior of log a and of the spread of log w; c and the scale of w are free."""
        count, targets = shares.shape[1], losses.shape[1]
        precision = np.zeros((count + 2, count + 2))
        precision[1, 1] = EXPONENT[1] ** -2
        precision[2:, 2:] = _about_mean(count)
        mean = np.zeros((targets, count + 2))
        mean[:, 1] = EXPONENT[0]
        return mean, np.repeat(precision[None], targets, axis=0)

    def value(self, theta: Floats, shares: Floats) -> Floats:
        """Return c + (w . p)^-a."""
        return theta[..., :1] + self._power(theta, shares)[1]

    def jacobian(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivatives by c, log a, log w."""
        data, power = self._power(theta, shares)
        a, w = np.exp(theta[..., 1:2]), np.exp(theta[..., 2:])
        by_w = (-a * power / data)[..., None] * (w[..., None, :] * shares)
        by_a = -a * power * np.log(data)
        return np.concatenate([np.ones_like(power)[..., None], by_a[..., None], by_w], axis=-1)

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivative by shares, everywhere below 0."""
        data, power = self._power(theta, shares)
        a, w = np.exp(theta[..., 1:2]), np.exp(theta[..., 2:])
        return (-a * power / data)[..., None] * w[..., None, :]

    def _power(self, theta: Floats, shares: Floats) -> tuple[Floats, Floats]:
        data = (shares @ np.exp(theta[..., 2:, None]))[..., 0]
        return data, np.exp(-np.exp(theta[..., 1:2]) * np.log(data))


@dataclass(frozen=True)
class Concave:
    """The concave law; parameters log c, log(a - 0.05), logit g, log w_j.

    For g < 1 the inner sum is concave in the shares, and the outer power convex and falling, so the
    loss is convex. Returns to a domain's share fall off faster than in the effective-data law.
    """

    convex: bool = True
    falling: bool = True
    learns: bool = True

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        return ["log c", "log(a - 0.05)", "logit g", *(f"log w:{name}" for name in domains)]

    def starts(self, shares: Floats, losses: Floats) -> Floats:
        """Guess c, a and g, then w from what is linear in it."""
        least = losses.min(axis=0)
        if not (least > 0).all():
            raise RefusalError(
                "losses: must be above 0 for the concave law, as nats and bits a byte are, got "
                f"{least.min():g}; choose another law"
            )
        raised = np.sqrt(shares + TRACE)
        guesses: list[Floats] = []
        for a, below in STARTS:
            c = np.maximum(least - below * _spread(losses), 0.1 * least)
            data = np.maximum(losses - c, 1e-9) ** (-1 / a)
            w = np.linalg.lstsq(raised, data, rcond=None)[0].T  # (targets, domains)
            w = np.maximum(w, 0.02 * data.mean(axis=0)[:, None])
            shape = np.tile([np.log(a - LEAST_EXPONENT), 0.0], (len(c), 1))
            guesses.append(np.column_stack([np.log(c), shape, np.log(w)]))
        return np.stack(guesses)

    def prior(self, shares: Floats, losses: Floats) -> tuple[Floats, Floats]:
        """Return a prior of c, a, g and of the spread of log w; the scale of w is free."""
        count, targets = shares.shape[1], losses.shape[1]
        precision = np.zeros((count + 3, count + 3))
        precision[:3, :3] = np.diag(np.array([FLOOR[1], EXPONENT[1], TABLE]) ** -2)
        precision[3:, 3:] = _about_mean(count)
        mean = np.zeros((targets, count + 3))
        mean[:, 0] = FLOOR[0] + np.log(losses.min(axis=0))
        mean[:, 1:3] = EXPONENT[0], 0.0
        return mean, np.repeat(precision[None], targets, axis=0)

    def value(self, theta: Floats, shares: Floats) -> Floats:
        """Return c + (w . (p + e)^g)^-a."""
        return np.exp(theta[..., :1]) + self._parts(theta, shares)[2]

    def jacobian(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivatives by log c, log(a - 0.05), logit g, log w."""
        terms, data, power = self._parts(theta, shares)
        rest, g = np.exp(theta[..., 1:2]), 1 / (1 + np.exp(-theta[..., 2:3]))
        outer = -(LEAST_EXPONENT + rest) * power / data
        by_g = outer * (terms * np.log(shares + TRACE)).sum(axis=-1) * g * (1 - g)
        by_c = np.broadcast_to(np.exp(theta[..., :1]), power.shape)
        shape = np.stack([by_c, -rest * power * np.log(data), by_g], axis=-1)
        return np.concatenate([shape, outer[..., None] * terms], axis=-1)

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivative by shares, everywhere below 0."""
        terms, data, power = self._parts(theta, shares)
        a, g = LEAST_EXPONENT + np.exp(theta[..., 1:2]), 1 / (1 + np.exp(-theta[..., 2:3]))
        return (-a * g * power / data)[..., None] * terms / (shares + TRACE)

    def _parts(self, theta: Floats, shares: Floats) -> tuple[Floats, Floats, Floats]:
        """Return w_j (p_j + e)^g (..., runs, domains), their sum, and its power -a."""
        g = 1 / (1 + np.exp(-theta[..., 2:3, None]))
        terms = np.exp(theta[..., None, 3:] + g * np.log(shares + TRACE))
        data = terms.sum(axis=-1)
        a = LEAST_EXPONENT + np.exp(theta[..., 1:2])
        return terms, data, np.exp(-a * np.log(data))


@dataclass(frozen=True)
class Loglinear:
    """The mixing law; parameters c, t_j (shares sum to 1, so that t holds the factor too)."""

    convex: bool = True
    falling: bool = False
    learns: bool = False

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        return ["c", *(f"t:{name}" for name in domains)]

    def starts(self, shares: Floats, losses: Floats) -> Floats:
        """Guess c, then t from the logarithm of the rest."""
        found: list[Floats] = []
        for below in (0.1, 0.3, 1.0, 3.0):
            c = losses.min(axis=0) - below * _spread(losses)
            t = np.linalg.lstsq(shares, np.log(losses - c), rcond=None)[0].T
            found.append(np.column_stack([c, t]))
        return np.stack(found)

    def prior(self, shares: Floats, losses: Floats) -> tuple[Floats, Floats]:
        """Return a prior of t about their mean, and a weaker one of that mean."""
        count, targets = shares.shape[1], losses.shape[1]
        precision = np.zeros((count + 1, count + 1))
        precision[1:, 1:] = _about_mean(count) + 1 / count**2 / WEIGHT_SPREAD**2
        mean = np.zeros((targets, count + 1))
        mean[:, 1:] = np.log(_spread(losses))[:, None]
        return mean, np.repeat(precision[None], targets, axis=0)

    def value(self, theta: Floats, shares: Floats) -> Floats:
        """Return c + exp(t . p)."""
        return theta[..., :1] + self._power(theta, shares)

    def jacobian(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivatives by c and t."""
        power = self._power(theta, shares)[..., None]
        return np.concatenate([np.ones_like(power), power * shares], axis=-1)

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivative by shares."""
        return self._power(theta, shares)[..., None] * theta[..., None, 1:]

    def _power(self, theta: Floats, shares: Floats) -> Floats:
        return np.exp((shares @ theta[..., 1:, None])[..., 0])


@dataclass(frozen=True)
class Linear:
    """A plane over the simplex; parameters t_j, the loss of domain j alone."""

    convex: bool = True
    falling: bool = False
    learns: bool = False

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        return [f"t:{name}" for name in domains]

    def starts(self, shares: Floats, losses: Floats) -> Floats:
        """Solve by least squares."""
        found: Floats = np.linalg.lstsq(self.terms(shares), losses, rcond=None)[0].astype(
            np.float64
        )
        return found.T[None]

    def prior(self, shares: Floats, losses: Floats) -> tuple[Floats, Floats]:
        """Return a prior so wide that it only keeps what no run tells from growing."""
        count = self.terms(shares).shape[1]
        mean = np.zeros((losses.shape[1], count))
        mean[:, : shares.shape[1]] = losses.mean(axis=0)[:, None]
        wide = (10 * _spread(losses)) ** -2.0
        return mean, wide[:, None, None] * np.eye(count)

    def value(self, theta: Floats, shares: Floats) -> Floats:
        """Return t . p (and the products, where there are any)."""
        return (self.terms(shares) @ theta[..., None])[..., 0]

    def jacobian(self, theta: Floats, shares: Floats) -> Floats:
        """Return the terms themselves."""
        terms = self.terms(shares)
        return np.broadcast_to(terms, (*theta.shape[:-1], *terms.shape[-2:]))

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return t."""
        return np.broadcast_to(
            theta[..., None, :], (*theta.shape[:-1], shares.shape[-2], theta.shape[-1])
        )

    def terms(self, shares: Floats) -> Floats:
        """Return what the parameters multiply."""
        return shares


@dataclass(frozen=True)
class Quadratic(Linear):
    """Scheffe's quadratic polynomial; parameters t_j, then t_ij for i < j."""

    convex: bool = False

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        pairs = combinations(domains, 2)
        return [*super().names(domains), *(f"t:{one}*{two}" for one, two in pairs)]

    def terms(self, shares: Floats) -> Floats:
        """Return shares, then the products of any two."""
        first, second = np.triu_indices(shares.shape[-1], 1)
        return np.concatenate([shares, shares[..., first] * shares[..., second]], axis=-1)

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return t_j + sum_i t_ij p_i."""
        count = shares.shape[-1]
        first, second = np.triu_indices(count, 1)
        pairs = np.zeros((*theta.shape[:-1], count, count))
        pairs[..., first, second] = theta[..., count:]
        return theta[..., None, :count] + shares @ (pairs + np.swapaxes(pairs, -1, -2))


@dataclass(frozen=True)
class Repeated:
    """Any law over effective shares; its last parameter is log R*. Convex laws stay convex.

    sized: points hold log N behind the shares, and R* is a power of it, `R* N^s`, whose exponent
    is the last parameter: a larger model may wear texts out sooner.
    """

    law: Law
    once: Floats
    sized: bool = False

    @property
    def convex(self) -> bool:
        """Whether a sum of such laws has one least mixture."""
        return self.law.falling

    @property
    def falling(self) -> bool:
        """Whether the loss falls with every share."""
        return self.law.falling

    @property
    def learns(self) -> bool:
        """Whether a parameter g stands at RETURNS."""
        return self.law.learns

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        return [*self.law.names(domains), "log R*", *(["s:R*"] if self.sized else [])]

    def starts(self, shares: Floats, losses: Floats) -> Floats:
        """Guess with the published R*."""
        count = len(self.once)
        worth = repeated_tokens.effective(shares[:, :count], self.once, np.exp(RSTAR[:1]))[0]
        inner = self.law.starts(np.concatenate([worth, shares[:, count:]], axis=1), losses)
        own = np.broadcast_to(self._own, (*inner.shape[:-1], self._more))
        return np.concatenate([inner, own], axis=-1)

    def prior(self, shares: Floats, losses: Floats) -> tuple[Floats, Floats]:
        """Return the law's, and one of log R* and of its exponent."""
        mean, precision = self.law.prior(shares, losses)
        count, whole = mean.shape[1], mean.shape[1] + self._more
        wider = np.zeros((len(mean), whole, whole))
        wider[:, :count, :count] = precision
        spread = np.array([RSTAR[1], RSTAR_DRIFT][: self._more])
        wider[:, count:, count:] = np.diag(spread**-2)
        return np.column_stack([mean, np.tile(self._own, (len(mean), 1))]), wider

    def value(self, theta: Floats, shares: Floats) -> Floats:
        """Return the law of effective shares."""
        return self.law.value(theta[..., : -self._more], self._effective(theta, shares)[0])

    def jacobian(self, theta: Floats, shares: Floats) -> Floats:
        """Return the law's derivatives, and those by log R* and its exponent."""
        worth, _, by_rstar = self._effective(theta, shares)
        own = theta[..., : -self._more]
        last = (self.law.slope(own, worth) * by_rstar).sum(axis=-1)[..., None]
        columns = [self.law.jacobian(own, worth), last]
        if self.sized:
            columns.append(last * shares[..., len(self.once), None])
        return np.concatenate(columns, axis=-1)

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivative by shares as they are asked."""
        worth, by_share, _ = self._effective(theta, shares)
        return self.law.slope(theta[..., : -self._more], worth) * by_share

    @property
    def _more(self) -> int:
        return 1 + self.sized

    @property
    def _own(self) -> Floats:
        return np.array([RSTAR[0], 0.0][: self._more])

    def _effective(self, theta: Floats, shares: Floats) -> tuple[Floats, Floats, Floats]:
        """Return effective shares, beside what else a point holds, and their two derivatives."""
        count = len(self.once)
        log = theta[..., -self._more, None, None]
        if self.sized:
            log = log + theta[..., -1:, None] * shares[..., count : count + 1]
        worth, by_share, by_rstar = repeated_tokens.effective(
            shares[..., :count], self.once, np.exp(log)
        )
        rest = np.broadcast_to(shares[..., count:], (*worth.shape[:-1], shares.shape[-1] - count))
        return np.concatenate([worth, rest], axis=-1), by_share, by_rstar
