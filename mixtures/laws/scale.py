"""Joint law of loss over mixture, model size and tokens, and the law that it leaves at one scale.

loss = c + A N^-b + (D^d sum_j w_j N^s_j (p_j + e)^g)^-a

N: parameters, D: tokens, each over the geometric mean of the table's runs. What a domain is worth
may grow or fall with the size (`s_j`: a larger model takes more from a hard domain), so that the
best mixture drifts with it; with `drift` false all s_j are 0, as in the additive law of Shukor et
al. (2507.09404). Where domains are repeated, R* is a power of N (`families.Repeated`). At one scale
it is the concave law plus a constant: convex in the shares.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws.families import LEAST_EXPONENT, TRACE, Concave, Law

Floats = NDArray[np.float64]
PLAIN = 3  # parameters of the concave law beside its weights
CAPACITY = (np.log(0.1), 1.0)  # prior of log(A / least loss): mean, standard deviation
SIZE = (np.log(0.35), 0.5)  # of log b; published exponents of size are .3 to .5
TOKENS = (np.log(0.7), 0.5)  # of log d; a d is the exponent of tokens, published .25 to .4
DRIFT = 0.15  # SD of s_j


@dataclass(frozen=True)
class Scales:
    """Model size and tokens of each run: parameters (runs,), tokens (runs,)."""

    parameters: Floats
    tokens: Floats

    def __post_init__(self) -> None:
        for name in ("parameters", "tokens"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name}: must be above 0 for every run")

    @property
    def vary(self) -> bool:
        """Whether the runs differ in size or tokens."""
        return bool(np.ptp(self.logs, axis=0).max() > 1e-9)

    @property
    def logs(self) -> Floats:
        """Logarithms over the geometric means: (runs, 2)."""
        logs = np.log(np.column_stack([self.parameters, self.tokens]))
        return logs - logs.mean(axis=0)

    def log(self, parameters: float, tokens: float) -> Floats:
        """Return the place of another scale among these: (2,)."""
        ours = np.log(np.column_stack([self.parameters, self.tokens])).mean(axis=0)
        return np.log([parameters, tokens]) - ours


@dataclass(frozen=True)
class Scaled:
    """The joint law; its points are shares, log N and log D: (..., runs, domains + 2).

    Parameters: those of the concave law, then log A, log b, log d, and with drift s_j.
    """

    drift: bool = True
    convex: bool = True
    falling: bool = True
    learns: bool = True

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        drifts = [f"s:{name}" for name in domains] if self.drift else []
        return [*Concave().names(domains), "log A", "log b", "log d", *drifts]

    def starts(self, shares: Floats, losses: Floats) -> Floats:
        """Guess as the concave law does, scale as published."""
        inner = Concave().starts(shares[:, :-2], losses)
        more = np.zeros((*inner.shape[:-1], self._more(shares.shape[1] - 2)))
        more[..., 0] = CAPACITY[0] + np.log(losses.min(axis=0))
        more[..., 1], more[..., 2] = SIZE[0], TOKENS[0]
        return np.concatenate([inner, more], axis=-1)

    def prior(self, shares: Floats, losses: Floats) -> tuple[Floats, Floats]:
        """Return the concave law's, and one of A, b, d and the drifts."""
        inner, precision = Concave().prior(shares[:, :-2], losses)
        targets, count = inner.shape
        more = self._more(shares.shape[1] - 2)
        mean = np.pad(inner, ((0, 0), (0, more)))
        mean[:, count] = CAPACITY[0] + np.log(losses.min(axis=0))
        mean[:, count + 1], mean[:, count + 2] = SIZE[0], TOKENS[0]
        spread = np.array([CAPACITY[1], SIZE[1], TOKENS[1], *[DRIFT] * (more - 3)])
        wider = np.zeros((targets, count + more, count + more))
        wider[:, :count, :count] = precision
        wider[:, count:, count:] = np.diag(spread**-2)
        return mean, wider

    def value(self, theta: Floats, shares: Floats) -> Floats:
        """Return losses (..., runs)."""
        return (
            np.exp(theta[..., :1]) + self._capacity(theta, shares) + self._parts(theta, shares)[2]
        )

    def jacobian(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivatives by the parameters, in the order of `names`."""
        terms, data, power = self._parts(theta, shares)
        domains = terms.shape[-1]
        rest, g = np.exp(theta[..., 1:2]), 1 / (1 + np.exp(-theta[..., 2:3]))
        outer = -(LEAST_EXPONENT + rest) * power / data
        by_g = outer * (terms * np.log(shares[..., :-2] + TRACE)).sum(axis=-1) * g * (1 - g)
        capacity = self._capacity(theta, shares)
        b, d = (np.exp(theta[..., PLAIN + domains + k, None]) for k in (1, 2))
        columns = [
            np.broadcast_to(np.exp(theta[..., :1]), power.shape),
            -rest * power * np.log(data),
            by_g,
        ]
        after = [
            capacity,
            -capacity * b * shares[..., -2],
            outer * data * d * shares[..., -1],
        ]
        weights = outer[..., None] * terms
        parts = [np.stack(columns, axis=-1), weights, np.stack(after, axis=-1)]
        if self.drift:
            parts.append(weights * shares[..., -2:-1])
        return np.concatenate(parts, axis=-1)

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivative by shares alone, everywhere below 0: (..., runs, domains)."""
        terms, data, power = self._parts(theta, shares)
        a, g = LEAST_EXPONENT + np.exp(theta[..., 1:2]), 1 / (1 + np.exp(-theta[..., 2:3]))
        return (-a * g * power / data)[..., None] * terms / (shares[..., :-2] + TRACE)

    def _more(self, domains: int) -> int:
        return 3 + (domains if self.drift else 0)

    def _capacity(self, theta: Floats, shares: Floats) -> Floats:
        at = PLAIN + shares.shape[-1] - 2
        return np.exp(theta[..., at, None] - np.exp(theta[..., at + 1, None]) * shares[..., -2])

    def _parts(self, theta: Floats, shares: Floats) -> tuple[Floats, Floats, Floats]:
        """Return each domain's term of the data (..., runs, domains), their sum, its power -a."""
        domains = shares.shape[-1] - 2
        g = 1 / (1 + np.exp(-theta[..., 2:3, None]))
        logs = theta[..., None, PLAIN : PLAIN + domains] + g * np.log(shares[..., :-2] + TRACE)
        logs = logs + np.exp(theta[..., PLAIN + domains + 2, None])[..., None] * shares[..., -1:]
        if self.drift:
            logs = logs + theta[..., None, PLAIN + domains + 3 :] * shares[..., -2:-1]
        terms = np.exp(logs)
        data = terms.sum(axis=-1)
        a = LEAST_EXPONENT + np.exp(theta[..., 1:2])
        return terms, data, np.exp(-a * np.log(data))


@dataclass(frozen=True)
class AtScale:
    """A joint law at one size and one number of tokens: curves of shares alone.

    place: logarithms of both, as `Scales.log` gives them.
    """

    law: Law
    place: tuple[float, float]

    @property
    def convex(self) -> bool:
        """Whether a sum of such laws has one least mixture."""
        return self.law.convex

    def names(self, domains: Sequence[str]) -> list[str]:
        """Name the parameters."""
        return self.law.names(domains)

    def value(self, theta: Floats, shares: Floats) -> Floats:
        """Return losses (..., runs)."""
        return self.law.value(theta, self._points(shares))

    def jacobian(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivatives by the joint law's parameters."""
        return self.law.jacobian(theta, self._points(shares))

    def slope(self, theta: Floats, shares: Floats) -> Floats:
        """Return the derivative by shares."""
        return self.law.slope(theta, self._points(shares))

    def _points(self, shares: Floats) -> Floats:
        place = np.broadcast_to(np.array(self.place), (*shares.shape[:-1], 2))
        return np.concatenate([shares, place], axis=-1)
