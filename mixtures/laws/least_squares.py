"""Batched robust nonlinear least squares by Levenberg and Marquardt's method.

Residuals count by soft-L1, so that a run that failed does not bend the law; a prior keeps what the
runs do not decide. All problems of a batch step together and leave it one by one as they converge.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws.families import Law

Floats = NDArray[np.float64]
KNEE = 2.0  # sigmas at which a residual begins to count linearly
STEPS = 200
ENOUGH = 1e-9


@dataclass(frozen=True)
class Problems:
    """A batch of fits.

    shares: (runs, domains), the same for all. losses: (problems, runs). keep: (problems, runs),
    0 where a run is left out. sigma: (problems,) nats. mean, precision: of the prior, of the law's
    parameters and, after them, of one additive effect for each column of effects (runs, draws).
    """

    law: Law
    shares: Floats
    losses: Floats
    keep: Floats
    sigma: Floats
    mean: Floats
    precision: Floats
    effects: Floats

    def value(self, theta: Floats) -> Floats:
        """Return the loss of each run with the effect of its draw: (problems, runs)."""
        own = theta.shape[-1] - self.effects.shape[1]
        return self.law.value(theta[:, :own], self.shares) + theta[:, own:] @ self.effects.T

    def jacobian(self, theta: Floats) -> Floats:
        """Return the derivative of `value`: (problems, runs, parameters)."""
        own = theta.shape[-1] - self.effects.shape[1]
        inner = self.law.jacobian(theta[:, :own], self.shares)
        if own == theta.shape[-1]:
            return inner
        effects = np.broadcast_to(self.effects, (len(theta), *self.effects.shape))
        return np.concatenate([inner, effects], axis=-1)

    def of(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "Problems":
        """Return some of the problems."""
        return replace(
            self,
            losses=self.losses[which],
            keep=self.keep[which],
            sigma=self.sigma[which],
            mean=self.mean[which],
            precision=self.precision[which],
        )


def cost(problems: Problems, theta: Floats) -> Floats:
    """Return half the sum of soft-L1 residuals in sigmas and of the prior: (problems,)."""
    with np.errstate(all="ignore"):
        far = (problems.value(theta) - problems.losses) / (KNEE * problems.sigma[:, None])
        costs = KNEE**2 * (problems.keep * (np.sqrt(1 + far**2) - 1)).sum(axis=1)
        off = theta - problems.mean
        costs = costs + 0.5 * np.einsum("bp,bpq,bq->b", off, problems.precision, off)
    return np.where(np.isfinite(costs), costs, np.inf)


def weights(far: Floats) -> Floats:
    """Return how much residuals of so many sigmas count: 1 for none, less and less beyond."""
    return 1 / np.sqrt(1 + (far / KNEE) ** 2)


def normal(problems: Problems, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the data's curvature, the whole curvature, and the gradient of the cost.

    (problems, parameters, parameters) twice and (problems, parameters).
    """
    jacobian = problems.jacobian(theta) / problems.sigma[:, None, None]
    far = (problems.value(theta) - problems.losses) / problems.sigma[:, None]
    weight = problems.keep * weights(far)
    weighted = np.swapaxes(jacobian * weight[..., None], 1, 2)  # (problems, parameters, runs)
    data = weighted @ jacobian
    pull = np.einsum("bpq,bq->bp", problems.precision, theta - problems.mean)
    return data, data + problems.precision, (weighted @ far[..., None])[..., 0] + pull


def minimise(problems: Problems, theta: Floats, enough: float = ENOUGH) -> tuple[Floats, Floats]:
    """Return parameters of least cost near the given ones, and the costs.

    enough: what a last step may still have gained, as a share of the cost.
    """
    theta = theta.copy()
    costs = cost(problems, theta)
    damping = np.full(len(theta), 1e-2)
    active = np.flatnonzero(np.isfinite(costs))
    for _ in range(STEPS):
        if len(active) == 0:
            break
        some = problems.of(active)
        _, curved, gradient = normal(some, theta[active])
        heavy = np.maximum(np.einsum("bpp->bp", curved), 1e-12)
        damped = curved + (damping[active, None] * heavy)[:, :, None] * np.eye(heavy.shape[1])
        step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
        tried = theta[active] + step
        then = cost(some, tried)
        gain = costs[active] - then
        better = gain >= 0
        theta[active[better]], costs[active[better]] = tried[better], then[better]
        damping[active] *= np.where(better, 0.2, 2.0)
        settled = better & (gain <= enough * (1 + costs[active])) & (damping[active] < 1e3)
        active = active[~(settled | (damping[active] > 1e10))]
    return theta, costs
