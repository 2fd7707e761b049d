"""Drawing: parameters as other runs of the same design might have given them."""

import numpy as np
from numpy.typing import NDArray

from mixtures import leastsquares
from mixtures.fitting import Fit
from prep import seeds

Floats = NDArray[np.float64]


def draw(fit: Fit, count: int, seed: int) -> Floats:
    """Draw parameters from Laplace's approximation: (count, targets, parameters).

    The noise is drawn run by run, with the correlation that the residuals show between targets (a
    run that is bad for one is mostly bad for all), and widened as Student's distribution is.
    """
    rng = seeds.stream(seed, "bootstrap")
    targets, runs = len(fit.targets), len(fit.shares)
    off = fit.law.value(fit.theta, fit.shares) - fit.losses.T  # (targets, runs)
    weight = np.sqrt(leastsquares.weights(off / fit.sigma[:, None]))
    jacobian = fit.law.jacobian(fit.theta, fit.shares) * (weight / fit.sigma[:, None])[..., None]
    noise = _root(_correlation(off)) @ rng.standard_normal((count, targets, runs))
    told = np.einsum("trp,ntr->ntp", jacobian, noise)
    prior = _root(fit.law.prior(fit.shares, fit.losses)[1])
    told += np.einsum("tpq,ntq->ntp", prior, rng.standard_normal(told.shape))
    steps = np.einsum("tpq,ntq->ntp", fit.covariance, told)
    freedom = float(fit.freedom.min())
    return fit.theta + steps * np.sqrt(freedom / rng.chisquare(freedom, count))[:, None, None]


def _correlation(off: Floats) -> Floats:
    scaled = off / np.maximum(np.sqrt((off**2).sum(axis=1, keepdims=True)), 1e-300)
    found = scaled @ scaled.T
    np.fill_diagonal(found, 1.0)
    return found


def _root(symmetric: Floats) -> Floats:
    """Return square roots of matrices without negative eigenvalues, but for rounding."""
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(np.maximum(values, 0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
