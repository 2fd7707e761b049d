"""Constrained minimisation of a convex loss over the simplex, and the extent of its flat region.

Both use scipy's SLSQP with exact slopes; results are clipped to the bounds to the last bit, so that
no cap is ever exceeded.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import distributions
from crystalmix.mixtures.laws.simplex import fill

Floats = NDArray[np.float64]
Aim = Callable[[Floats], tuple[float, Floats]]  # shares (domains,) -> loss, slope (domains,)
Region = tuple[Floats, Floats]  # the least and greatest share of each domain


def optimum(aim: Aim, region: Region, start: Floats | None = None) -> Floats:
    """Return the mixture (domains,) of least loss; the start matters for speed alone."""
    low, high = region
    if start is None:
        start = fill(np.ones((1, len(low))), low, high)[0]
    minimize = distributions.scipy_part("optimize").minimize
    result = minimize(
        aim,
        start,
        jac=True,
        method="SLSQP",
        bounds=list(zip(low, high, strict=True)),
        constraints=[_whole(len(low))],
        options={"maxiter": 300, "ftol": 1e-10},
    )
    return fill(np.clip(result.x, 0, None)[None], low, high)[0]


def extent(aim: Aim, region: Region, best: Floats, room: float) -> Floats:
    """Return the least and greatest share of each domain among mixtures nearly as good as the best.

    Nearly: their loss is at most `room` above that of `best`. Returns (domains, 2).
    """
    low, high = region
    minimize = distributions.scipy_part("optimize").minimize
    scale = max(room, 1e-12)
    ceiling = aim(best)[0] + room
    near = {
        "type": "ineq",
        "fun": lambda shares: (ceiling - aim(shares)[0]) / scale,
        "jac": lambda shares: -aim(shares)[1] / scale,
    }
    edges = np.column_stack([best, best])
    for k in range(len(best)):
        for side, sign in enumerate((1.0, -1.0)):
            towards = np.zeros(len(best))
            towards[k] = sign
            result = minimize(
                lambda shares, towards=towards: (towards @ shares, towards),
                best,
                jac=True,
                method="SLSQP",
                bounds=list(zip(low, high, strict=True)),
                constraints=[_whole(len(low)), near],
                options={"maxiter": 100, "ftol": 1e-8},
            )
            edge = float(np.clip(result.x[k], low[k], high[k]))
            edges[k, side] = min(edge, best[k]) if side == 0 else max(edge, best[k])
    return edges


def _whole(count: int) -> dict[str, object]:
    ones = np.ones(count)
    return {"type": "eq", "fun": lambda shares: shares.sum() - 1, "jac": lambda _: ones}
