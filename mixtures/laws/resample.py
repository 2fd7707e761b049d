"""Drawing: parameters as other runs of the same design might have given them."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import least_squares as leastsquares
from crystalmix.mixtures.laws.fit import Fit
from crystalmix.prep.runtime import randomness

Floats = NDArray[np.float64]
ROUGH = 1e-5  # of the cost: far less than the noise of a draw
ROOM = 8_000_000  # numbers of a Jacobian held at once


def draw(fit: Fit, count: int, seed: int) -> Floats:
    """Draw parameters by fitting anew to losses with fresh noise: (count, targets, parameters).

    The noise is that of a run about the law, as great as Student's distribution allows, with the
    correlation that the residuals show between targets (a run that is bad for one is mostly bad
    for all); the prior's middle moves with it, so that the draws are about those of the posterior
    (randomise, then optimise: Bardsley et al. 2014). Drawing from Laplace's approximation itself
    leaves the bent valley in which c, a and the weights trade, and finds intervals far too wide.
    """
    problems, rng = fit.problems, randomness.stream(seed, "bootstrap")
    targets, runs = problems.losses.shape
    parameters = fit.theta.shape[1]
    off = fit.law.value(fit.theta, fit.shares) - problems.losses
    noise = _root(_correlation(off)) @ rng.standard_normal((count, targets, runs))
    freedom = float(fit.freedom.min())
    wider = np.sqrt(freedom / rng.chisquare(freedom, count))[:, None]  # (count, 1)
    pulls = rng.standard_normal((count, targets, parameters))
    middles = np.einsum("tpq,ntq->ntp", _root(problems.precision, invert=True), pulls)
    found = np.empty((count, targets, parameters))
    step = max(1, ROOM // (runs * parameters * targets))
    for first in range(0, count, step):
        some = slice(first, min(first + step, count))
        many = problems.of(np.tile(np.arange(targets), some.stop - first))
        scale = (wider[some] * fit.sigma).reshape(-1)  # (draws * targets,)
        moved = replace(
            many,
            losses=many.losses + noise[some].reshape(-1, runs) * scale[:, None],
            mean=many.mean + middles[some].reshape(-1, parameters),
        )
        start = np.tile(fit.theta, (some.stop - first, 1))
        found[some] = leastsquares.minimise(moved, start, ROUGH)[0].reshape(-1, targets, parameters)
    return found


def _correlation(off: Floats) -> Floats:
    scaled = off / np.maximum(np.sqrt((off**2).sum(axis=1, keepdims=True)), 1e-300)
    found = scaled @ scaled.T
    np.fill_diagonal(found, 1.0)
    return found


def _root(symmetric: Floats, *, invert: bool = False) -> Floats:
    """Return square roots (or those of the inverses, 0 where there is none) of matrices."""
    values, vectors = np.linalg.eigh(symmetric)
    least = 1e-12 * np.maximum(values.max(axis=-1, keepdims=True), 1e-300)
    kept = values > least
    power = np.sqrt(np.where(kept, values, 1.0)) ** (-1.0 if invert else 1.0)
    return (vectors * np.where(kept, power, 0.0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
