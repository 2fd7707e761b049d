"""Variance components of losses: a seed effect that runs of one draw share, and own noise of a run.

loss of a run = law(shares) + effect of its draw + own noise. A draw is one seed of initial weights
with one choice of rows. Runs of one draw differ by own noise only, runs of two draws by both.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Noise:
    """Estimated variances by target (nats squared), from mixtures that were run again.

    own: of a run within its draw, with own_freedom degrees; nan with 0 degrees, where no two
    mixtures share two draws. within: of runs of one mixture about their mean, with within_freedom
    degrees. seed: of a draw's effect, not below 0, nan where it is unknown. seed_error: sampling
    variance of `seed`.
    """

    own: Floats
    own_freedom: int
    within: Floats
    within_freedom: int
    seed: Floats
    seed_error: Floats

    @property
    def run(self) -> Floats:
        """The variance of one run under a new seed: (targets,)."""
        return self.own + self.seed if self.own_freedom else self.within


def groups_of(rows: Floats) -> Ints:
    """Number equal rows alike: (runs, columns) -> (runs,)."""
    return np.unique(np.round(rows, 9), axis=0, return_inverse=True)[1].ravel()


def estimate(mixtures: Ints, draws: Ints | None, losses: Floats) -> Noise:
    """Estimate variance components from replicated mixtures (Henderson's method 3).

    mixtures, draws: (runs,), numbers of groups; draws None: no two runs share a seed effect, so
    that all scatter is own noise. losses: (runs, targets).
    """
    _, place, counts = np.unique(mixtures, return_inverse=True, return_counts=True)
    again = counts[place] > 1
    losses = losses[again]
    targets = losses.shape[1]
    nothing = np.full(targets, np.nan)
    if not again.any():
        return Noise(nothing, 0, nothing, 0, nothing, nothing)
    mixture = _indicators(place[again])
    rest = _residuals(mixture, losses)
    free = len(losses) - mixture.shape[1]
    squares = (rest**2).sum(axis=0)
    if draws is None:
        none = np.zeros(targets)
        return Noise(squares / free, free, squares / free, free, none, none)
    draw = _residuals(mixture, _indicators(draws[again]))  # what mixtures leave of draws
    steps = int(np.linalg.matrix_rank(draw))
    power = float((draw**2).sum())  # expected squares of a seed effect of variance 1
    own_squares = (_residuals(draw, rest) ** 2).sum(axis=0)
    own_freedom = free - steps
    if own_freedom == 0:
        return Noise(nothing, 0, squares / free, free, nothing, nothing)
    own = own_squares / own_freedom
    share = steps / power if power else 0.0
    between = (squares - own_squares) / max(steps, 1)
    seed = np.maximum((between - own) * share, 0.0)
    error = 2 * share**2 * (between**2 / max(steps, 1) + own**2 / own_freedom)
    return Noise(own, own_freedom, squares / free, free, seed, error)


def _indicators(groups: Ints) -> Floats:
    return np.eye(int(groups.max()) + 1)[groups][:, np.unique(groups)]


def _residuals(columns: Floats, values: Floats) -> Floats:
    """Return what is left of values (runs, n) beside the span of columns (runs, m)."""
    rest: Floats = values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]
    return rest
