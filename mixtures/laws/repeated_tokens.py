"""Repetition: what a token that is read again is still worth.

After U tokens of a domain were read once, R further readings of them are worth
`U * R* * (1 - exp(-R / R*))` fresh tokens (Muennighoff et al., 2305.16264; their R* is 15.4).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
