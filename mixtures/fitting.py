"""Fitting: a law of loss against shares, with intervals, noise, misfit and leave-one-out ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
KINDS = ("effective", "loglinear", "linear", "quadratic")


@dataclass(frozen=True)
class FitSettings:
    """How a law is fitted.

    level: of all intervals. domains, targets: names, in the order of the columns (d0, d1, ... and
    t0, t1, ... where none are given). once: the share at which a run has read a domain once
    (its tokens / tokens of the run), by domain; given, repeated tokens count less and less, by
    R* (2305.16264), one per target. residual: let LightGBM learn what the law leaves, where
    cross-validation says that it helps.
    """

    level: float = 0.9
    domains: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    once: tuple[float, ...] | None = None
    residual: bool = False


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    sigma: (targets,) nats, of one run about the law. pure: (targets,) nats, of runs of one mixture
    about their mean, nan without replicates. misfit: (targets,) probability of so great a lack of
    fit by chance, nan without replicates. rho: (targets,) Spearman, left-out against measured.
    left_out: (runs, targets) each run as the others predict it.
    """

    kind: str
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    sigma: Floats
    pure: Floats
    misfit: Floats
    rho: Floats
    left_out: Floats

    def predict(self, shares: Floats) -> tuple[Floats, Floats, Floats]:
        """Return mean, low and high, each (mixtures, targets), of a new run of each mixture."""
        raise NotImplementedError

    def content(self) -> dict[str, Any]:
        """Return parameters, intervals and diagnostics as JSON has them."""
        raise NotImplementedError


def fit(
    shares: Floats, losses: Floats, kind: str = "effective", settings: FitSettings | None = None
) -> Fit:
    """Fit one law per target.

    shares: (runs, domains), each summing to 1. losses: (runs, targets), nats (or bits a byte).
    """
    raise NotImplementedError
