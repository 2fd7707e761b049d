"""Repetition: what a token read again is still worth, and R* fitted from a curve over epochs.

After U tokens of a domain were read once, R further readings of them are worth
`U * R* * (1 - exp(-R / R*))` fresh tokens (Muennighoff et al., 2305.16264; their R* is 15.4).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixtures import statistical

Floats = NDArray[np.float64]
GRID = np.geomspace(0.25, 1000, 600)  # values of R* that are tried


def effective(shares: Floats, once: Floats, rstar: Floats) -> tuple[Floats, Floats, Floats]:
    """Return shares as fresh tokens would fill them, with their slopes.

    shares: (..., domains); once: (domains,), the share at which each domain was read once; rstar:
    broadcastable to shares. Returns effective shares, their derivative by share, and by log R*.
    Concave in the share, with slope 1 until the first repetition.
    """
    fresh = np.minimum(shares, once)
    turns = np.maximum(shares / once - 1, 0)  # R: readings beyond the first
    fading = np.exp(-turns / rstar)
    worth = fresh + once * rstar * (1 - fading)
    by_rstar = once * rstar * (1 - fading) - once * turns * fading
    return worth, np.where(turns > 0, fading, 1.0), by_rstar


@dataclass(frozen=True)
class RepetitionCurve:
    """A repetition curve fitted to one domain.

    rstar: R*. low, high: its interval from the profile likelihood (0 or inf where it is open).
    base: loss of one epoch; slope: nats for each factor e of fewer effective tokens. sigma: nats.
    """

    rstar: float
    low: float
    high: float
    base: float
    slope: float
    sigma: float
    exponent: float

    def predict(self, epochs: Floats) -> Floats:
        """Return the loss at each number of epochs, the tokens of the run being the same."""
        return self.base + self.slope * _rise(epochs, np.array([self.rstar]), self.exponent)[0]

    def content(self) -> dict[str, Any]:
        """Return the fit as JSON has it; an open end of the interval is null."""
        told = asdict(self)
        return {**told, "high": None if np.isinf(self.high) else self.high}


def fit_repetition(
    epochs: Floats, losses: Floats, exponent: float = 0.0, level: float = 0.9
) -> RepetitionCurve:
    """Fit R* to the losses of runs that differ only in how often a domain is repeated.

    epochs: (runs,), at least 1, of a fixed number of tokens; losses: (runs,), nats. The loss is
    `base + slope * ((fresh / run)^-exponent - 1) / exponent` in the fresh tokens that the run is
    worth, for exponent 0 their logarithm; base and slope follow for each R* from least squares.
    """
    if len(epochs) < 4 or np.min(epochs) < 1:
        raise ValueError(f"epochs: needs at least 4 runs of 1 or more, got {epochs.tolist()}")
    rises = _rise(epochs, GRID, exponent)  # (grid, runs)
    centred = rises - rises.mean(axis=1, keepdims=True)
    about = losses - losses.mean()
    power = np.maximum((centred**2).sum(axis=1), 1e-300)
    slopes = np.maximum(centred @ about / power, 0.0)
    squares = ((about - slopes[:, None] * centred) ** 2).sum(axis=1)
    best = int(np.argmin(squares))
    free = len(epochs) - 3
    floor = max(float(squares[best]), 1e-18)
    within = np.flatnonzero(squares <= floor * (1 + statistical.student(free, level) ** 2 / free))
    low, high = int(within[0]), int(within[-1])
    return RepetitionCurve(
        rstar=float(GRID[best]),
        low=0.0 if low == 0 else float(GRID[low]),
        high=float("inf") if high == len(GRID) - 1 else float(GRID[high]),
        base=float(losses.mean() - slopes[best] * rises[best].mean()),
        slope=float(slopes[best]),
        sigma=float(np.sqrt(squares[best] / free)),
        exponent=exponent,
    )


def _rise(epochs: Floats, rstar: Floats, exponent: float) -> Floats:
    """Return how far each R* (grid,) lifts each run (runs,) above one epoch: (grid, runs)."""
    once = 1 / epochs  # of the run's tokens
    worth = effective(np.ones_like(once), once, rstar[:, None])[0]
    return -np.log(worth) if exponent == 0 else (worth**-exponent - 1) / exponent
