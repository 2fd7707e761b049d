"""Fit of R*, the readings after which more of them are worth little, to losses over epochs.

The curve alone rarely decides: few losses that rise with the epochs fit a large R* under a steep
loss as well as a small one under a flat loss. How steep the loss is in fresh tokens is what the law
of the same ablation knows (`steepness`), and taken as known within its error.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import distributions
from crystalmix.mixtures.laws.families import Repeated
from crystalmix.mixtures.laws.fit import Fit
from crystalmix.mixtures.laws.repeated_tokens import effective

Floats = NDArray[np.float64]
GRID = np.geomspace(0.25, 1000, 600)  # values of R* that are tried
STEP = 0.05  # of a log share, over which a slope is taken


@dataclass(frozen=True)
class Steepness:
    """How much the loss on a domain rises for each factor e of fewer fresh tokens of it, in nats.

    error: its standard error. sigma: nats, of one run. freedom: of both.
    """

    slope: float
    error: float
    sigma: float
    freedom: float


@dataclass(frozen=True)
class RepetitionCurve:
    """A repetition curve fitted to one domain.

    rstar: R*. low, high: its interval from the profile likelihood (0 or None where it is open).
    base: loss of one epoch; slope: nats for each factor e of fewer effective tokens. sigma: nats.
    """

    rstar: float
    low: float
    high: float | None
    base: float
    slope: float
    sigma: float
    exponent: float

    def predict(self, epochs: Floats) -> Floats:
        """Return the loss at each number of epochs, the tokens of the run being the same."""
        return self.base + self.slope * _rise(epochs, np.array([self.rstar]), self.exponent)[0]


def steepness(fit: Fit, shares: Floats, domain: str) -> Steepness:
    """Return what a law says of the loss on a domain about a mixture in which it is not repeated.

    shares: (domains,); other domains are repeated as the law has them.
    """
    at, target = fit.domains.index(domain), fit.targets.index(domain)
    law = fit.law
    if isinstance(law, Repeated):
        once = law.once.copy()
        once[at] = max(1.0, float(shares[at]) * 2)
        law = Repeated(law.law, once)
    fewer, more = shares.copy(), shares.copy()
    fewer[at], more[at] = shares[at] * np.exp(-STEP), shares[at] * np.exp(STEP)
    pair = np.stack([fewer, more])
    low, high = law.value(fit.theta, pair)[target]
    below, above = law.jacobian(fit.theta, pair)[target]
    by_parameter = (below - above) / (2 * STEP)
    variance = float(by_parameter @ fit.covariance[target] @ by_parameter)
    return Steepness(
        slope=float(low - high) / (2 * STEP),
        error=max(variance, 0.0) ** 0.5,
        sigma=float(fit.sigma[target]),
        freedom=float(fit.freedom[target]),
    )


def fit_repetition(
    epochs: Floats,
    losses: Floats,
    exponent: float = 0.0,
    level: float = 0.9,
    known: Steepness | None = None,
) -> RepetitionCurve:
    """Fit R* to the losses of runs that differ only in how often a domain is repeated.

    epochs: (runs,), at least 1, of a fixed number of tokens; losses: (runs,), nats. The loss is
    `base + slope * ((fresh / run)^-exponent - 1) / exponent` in the fresh tokens that the run is
    worth, for exponent 0 their logarithm; base and slope follow for each R* from least squares.
    known: of the slope and of a run's noise, beside the losses.
    """
    if len(epochs) < 4 or np.min(epochs) < 1:
        raise ValueError(f"epochs: needs at least 4 runs of 1 or more, got {epochs.tolist()}")
    rises = _rise(epochs, GRID, exponent)  # (grid, runs)
    centred = rises - rises.mean(axis=1, keepdims=True)
    about = losses - losses.mean()
    power = np.maximum((centred**2).sum(axis=1), 1e-300)
    free = float(len(epochs) - 3)
    weight = 0.0  # of what is known of the slope, as of so much power
    if known is not None:
        weight, free = (known.sigma / max(known.error, 1e-12)) ** 2, free + known.freedom
    expected = known.slope if known is not None else 0.0
    slopes = np.maximum((centred @ about + weight * expected) / (power + weight), 0.0)
    squares = ((about - slopes[:, None] * centred) ** 2).sum(axis=1)
    squares += weight * (slopes - expected) ** 2
    best = int(np.argmin(squares))
    noise = max(float(squares[best]), 1e-18)
    if known is not None:
        noise += known.freedom * known.sigma**2
    within = np.flatnonzero(
        squares <= squares[best] + noise * distributions.student(free, level) ** 2 / free
    )
    low, high = int(within[0]), int(within[-1])
    return RepetitionCurve(
        rstar=float(GRID[best]),
        low=0.0 if low == 0 else float(GRID[low]),
        high=None if high == len(GRID) - 1 else float(GRID[high]),
        base=float(losses.mean() - slopes[best] * rises[best].mean()),
        slope=float(slopes[best]),
        sigma=float(np.sqrt(noise / free)),
        exponent=exponent,
    )


def _rise(epochs: Floats, rstar: Floats, exponent: float) -> Floats:
    """Return how far each R* (grid,) lifts each run (runs,) above one epoch: (grid, runs)."""
    once = 1 / epochs  # of the run's tokens
    worth = effective(np.ones_like(once), once, rstar[:, None])[0]
    return -np.log(worth) if exponent == 0 else (worth**-exponent - 1) / exponent
