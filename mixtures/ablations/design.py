"""The swarm: which mixtures small proxies are trained on, and how much of a domain a run may take.

A mixture is a point of the simplex of domains. The design holds the centre of the allowed region
first, then points as far as can be from those before them (maximin of the Hellinger distance), so
that a shorter design is the beginning of a longer one; then the centre again, under other seeds,
which tells pure error from misfit. Published mixtures to compare with: mixtures/presets.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws.simplex import fill
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.errors import RefusalError

Role = Literal["centre", "design", "replicate", "check"]
POOL = 4000  # draws that the design chooses from
ROOM = 1e-9  # what caps may lack of 1 before they are refused: rounding


@dataclass(frozen=True)
class Mixture:
    """One mixture of the swarm: its name, the share of each domain (summing to 1), its role."""

    name: str
    shares: dict[str, float]
    role: Role = "design"

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares.values()) < 0:
            raise ValueError(f"shares: must be at least 0, got {self.shares}")
        if abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares: must sum to 1, got {sum(self.shares.values())}")


def caps(
    tokens: Mapping[str, int], target_tokens: float, max_epochs: Mapping[str, float] | float
) -> dict[str, float]:
    """Return the largest share that each domain may have of a run.

    tokens: those that each domain holds. target_tokens: those of the real run, not of a proxy.
    max_epochs: how often a domain may be repeated, for all or by domain (UniMax, 2304.09151).
    RefusalError where all domains at their caps do not fill the run.
    """
    if not tokens or min(tokens.values()) <= 0 or target_tokens <= 0:
        raise ValueError(f"tokens: must be above 0, got {dict(tokens)} for {target_tokens}")
    if not isinstance(max_epochs, Mapping):
        max_epochs = dict.fromkeys(tokens, max_epochs)
    if set(max_epochs) != set(tokens) or min(max_epochs.values()) <= 0:
        rule = f"must be above 0 for each of {', '.join(tokens)}"
        raise ValueError(f"max_epochs: {rule}, got {dict(max_epochs)}")
    found = {name: min(1.0, max_epochs[name] * tokens[name] / target_tokens) for name in tokens}
    if sum(found.values()) < 1 - ROOM:
        held = sum(max_epochs[name] * tokens[name] for name in tokens)
        raise RefusalError(
            f"max_epochs: all domains together give {held:,.0f} tokens, the run asks "
            f"{target_tokens:,.0f}; allow more epochs or ask fewer tokens"
        )
    return found


def design(
    tokens: Mapping[str, int],
    *,
    target: float,
    epochs: Mapping[str, float] | float,
    count: int,
    replicates: int,
    seed: int,
    alpha: float = 0.7,
    minimum: float = 0.005,
) -> list[Mixture]:
    """Choose `count` mixtures under the caps of the real run, then repeat the centre.

    The first is the centre: uniform as far as caps let it. alpha: of the symmetric Dirichlet
    distribution that 4,000 candidates come from. minimum: the least share of a domain (its cap,
    where that is less). replicates: how many further runs of the centre follow.
    """
    if count < 1 or replicates < 0 or alpha <= 0:
        raise ValueError(f"count, replicates, alpha: got {count}, {replicates}, {alpha}")
    high = np.array(list(caps(tokens, target, epochs).values()))
    low = np.minimum(minimum, high)
    if minimum < 0 or low.sum() > 1:
        raise ValueError(f"minimum: must lie in [0, 1 / domains], got {minimum}")
    draws = randomness.stream(seed, "swarm", len(high)).dirichlet(np.full(len(high), alpha), POOL)
    pool = fill(np.vstack([np.full(len(high), 1 / len(high)), draws]), low, high)
    chosen = pool[maximin(np.sqrt(pool), count)]
    width = len(str(count - 1))

    def named(name: str, shares: NDArray[np.float64], role: Role) -> Mixture:
        return Mixture(name, dict(zip(tokens, shares.tolist(), strict=True)), role)

    first = named("centre", chosen[0], "centre")
    rest = [named(f"design-{k:0{width}}", chosen[k], "design") for k in range(1, count)]
    again = [named(f"replicate-{k + 1}", chosen[0], "replicate") for k in range(replicates)]
    return [first, *rest, *again]


def maximin(points: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Choose points far from each other: the first, then always the one farthest from all chosen.

    points: (points, dimensions). Returns (count,) indices. The least distance among them is at
    least half of the best possible (Gonzalez 1985).
    """
    chosen = np.zeros(count, dtype=np.int64)
    nearest = np.full(len(points), np.inf)
    for k in range(1, count):
        gone = points - points[chosen[k - 1]]
        nearest = np.minimum(nearest, np.einsum("nd,nd->n", gone, gone))
        chosen[k] = int(np.argmax(nearest))
    return chosen
