"""Statistics of fits: Student's and Fisher's distributions (scipy), rank correlation, regret."""

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.runtime.errors import CrystalmixError

Floats = NDArray[np.float64]


def scipy_part(name: str) -> ModuleType:
    """Return scipy's module of this name; without scipy, one line says what to install."""
    from importlib import import_module

    try:
        return import_module(f"scipy.{name}")
    except ModuleNotFoundError as error:
        raise CrystalmixError(
            "scipy is not installed; install crystalmix with its extra `ablate`"
        ) from error


def student(freedom: float, level: float) -> float:
    """Return how many standard errors hold `level` of Student's distribution about its middle."""
    return float(scipy_part("special").stdtrit(freedom, (1 + level) / 2))


def fisher_tail(ratio: Floats, above: float, below: float) -> Floats:
    """Return the probability that Fisher's distribution exceeds each ratio."""
    return np.asarray(scipy_part("special").fdtrc(above, below, ratio))


def ranks(values: Floats) -> Floats:
    """Return ranks from 0; equal values share their mean rank.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[place]


def spearman(first: Floats, second: Floats) -> float:
    """Return Spearman's rank correlation, nan where one side is constant or has one value."""
    one, two = ranks(first), ranks(second)
    one, two = one - one.mean(), two - two.mean()
    power = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / power if power > 0 else float("nan")


def regret(predicted: Floats, measured: Floats) -> float:
    """Return by how much the run predicted best is worse than the best, as measured."""
    return float(measured[int(np.argmin(predicted))] - measured.min())
