"""Parametric bootstrap of fitted parameters."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import least_squares
from crystalmix.mixtures.laws.fit import Fit
from crystalmix.prep.runtime import randomness

Floats = NDArray[np.float64]
ROUGH = 1e-5  # of the cost: far less than the noise of a draw
ROOM = 8_000_000  # numbers of a Jacobian held at once


def draw(fit: Fit, count: int, seed: int) -> Floats:
    """Resample parameters by fitting losses with fresh noise: (count, targets, parameters).

    The noise is that of a run about the law, scaled by Student's distribution, with the correlation
    of the residuals between targets (a run that is bad for one is mostly bad for all). The prior's
    mean moves with it, and so do the draws' effects, so that the samples are about those of the
    posterior (randomise, then optimise: Bardsley et al. 2014). Laplace's approximation itself
    leaves the bent valley in which c, a and the weights trade, and its intervals are far too wide.
    """
    problems, rng = fit.problems, randomness.stream(seed, "bootstrap")
    targets, runs = problems.losses.shape
    solution = np.concatenate([fit.theta, fit.effects], axis=1)
    parameters, own = solution.shape[1], fit.theta.shape[1]
    noise = _root(_correlation(fit.residuals.T)) @ rng.standard_normal((count, targets, runs))
    freedom = float(fit.freedom.min())
    wider = np.sqrt(freedom / rng.chisquare(freedom, count))[:, None]  # (count, 1)
    pulls = rng.standard_normal((count, targets, parameters))
    means = np.einsum("tpq,ntq->ntp", _root(problems.precision, invert=True), pulls)
    samples = np.empty((count, targets, own))
    step = max(1, ROOM // (runs * parameters * targets))
    for first in range(0, count, step):
        some = slice(first, min(first + step, count))
        many = problems.of(np.tile(np.arange(targets), some.stop - first))
        scale = (wider[some] * fit.sigma).reshape(-1)  # (samples * targets,)
        moved = replace(
            many,
            losses=many.losses + noise[some].reshape(-1, runs) * scale[:, None],
            mean=many.mean + means[some].reshape(-1, parameters),
        )
        start = np.tile(solution, (some.stop - first, 1))
        fitted = least_squares.minimise(moved, start, ROUGH)[0]
        samples[some] = fitted.reshape(-1, targets, parameters)[..., :own]
    return samples


def _correlation(off: Floats) -> Floats:
    scaled = off / np.maximum(np.sqrt((off**2).sum(axis=1, keepdims=True)), 1e-300)
    correlation = scaled @ scaled.T
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _root(symmetric: Floats, *, invert: bool = False) -> Floats:
    """Return square roots (or those of the inverses, 0 where there is none) of matrices."""
    values, vectors = np.linalg.eigh(symmetric)
    least = 1e-12 * np.maximum(values.max(axis=-1, keepdims=True), 1e-300)
    kept = values > least
    power = np.sqrt(np.where(kept, values, 1.0)) ** (-1.0 if invert else 1.0)
    return (vectors * np.where(kept, power, 0.0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
