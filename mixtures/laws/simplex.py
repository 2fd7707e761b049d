"""Bounded simplex: mixtures within bounds of each share that sum to 1."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fill(weights: Floats, low: Floats, high: Floats) -> Floats:
    """Return mixtures in proportion to weights, clipped to [low, high], each summing to 1.

    weights: (mixtures, domains), at least 0; low, high: (domains,). A share is `clip(scale *
    weight)`; bisection finds the scale. What a domain cannot take goes to the others in
    proportion; a domain of weight 0 takes what no other can.
    """
    weights = np.maximum(weights, 1e-12)
    bottom = np.zeros(len(weights))
    top = np.max(np.maximum(high, 1e-12) / weights, axis=1)
    for _ in range(64):
        scale = (bottom + top) / 2
        short = np.clip(scale[:, None] * weights, low, high).sum(axis=1) < 1
        bottom, top = np.where(short, scale, bottom), np.where(short, top, scale)
    shares = np.clip(top[:, None] * weights, low, high)
    free = np.where((shares > low) & (shares < high), shares, 0.0)
    spare = np.where(free.sum(axis=1) > 0, free.sum(axis=1), 1.0)
    shares += free * ((1 - shares.sum(axis=1)) / spare)[:, None]
    return np.clip(shares, low, high)
