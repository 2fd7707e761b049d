"""Space-filling design of mixtures for small proxies, and caps on the share of a domain.

A mixture is a point of the simplex of domains. The design holds the centre of the allowed region
first, then points as far as possible from those before them (maximin of the Hellinger distance), so
that a shorter design is the beginning of a longer one. Then some mixtures again under other seeds:
the centre, which estimates the effect of a seed, and beside it anchors, whose differences from the
centre under the same seed estimate the own noise of a run, and so separate it from misfit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws.simplex import fill
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.errors import RefusalError

Role = Literal["centre", "design", "replicate", "anchor", "check"]
POOL = 4000  # draws that the design chooses from
ROOM = 1e-9  # what caps may lack of 1 before they are refused: rounding


@dataclass(frozen=True)
class Mixture:
    """One mixture: its name, the share of each domain (summing to 1), its role.

    seed: number of the seed that it is run under, 0 for the design.
    """

    name: str
    shares: dict[str, float]
    role: Role = "design"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares.values()) < 0:
            raise ValueError(f"shares: must be at least 0, got {self.shares}")
        if abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares: must sum to 1, got {sum(self.shares.values())}")


def caps(
    tokens: Mapping[str, float], target_tokens: float, max_epochs: Mapping[str, float] | float
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
    largest = {name: min(1.0, max_epochs[name] * tokens[name] / target_tokens) for name in tokens}
    if sum(largest.values()) < 1 - ROOM:
        held = sum(max_epochs[name] * tokens[name] for name in tokens)
        raise RefusalError(
            f"max_epochs: all domains together give {held:,.0f} tokens, the run asks "
            f"{target_tokens:,.0f}; allow more epochs or ask fewer tokens"
        )
    return largest


def design(  # noqa: PLR0913  settings of the spec, by name
    tokens: Mapping[str, int],
    *,
    target: float,
    epochs: Mapping[str, float] | float,
    count: int,
    replicates: int,
    seed: int,
    alpha: float = 0.7,
    minimum: float = 0.005,
    anchors: int = 0,
) -> list[Mixture]:
    """Choose `count` mixtures under the caps of the real run, then repeat the centre and anchors.

    The first is the centre: uniform as far as caps let it. alpha: of the symmetric Dirichlet
    distribution that 4,000 candidates come from. minimum: the least share of a domain (its cap,
    where that is less). replicates: under how many other seeds the centre is run again, and with it
    `anchors` mixtures of the design, spread evenly by their distance from the centre.
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

    def named(name: str, shares: NDArray[np.float64], role: Role, seed: int = 0) -> Mixture:
        return Mixture(name, dict(zip(tokens, shares.tolist(), strict=True)), role, seed)

    first = named("centre", chosen[0], "centre")
    rest = [named(f"design-{k:0{width}}", chosen[k], "design") for k in range(1, count)]
    again = [named(f"replicate-{k}", chosen[0], "replicate", k) for k in range(1, replicates + 1)]
    distance = np.square(np.sqrt(chosen[1:]) - np.sqrt(chosen[0])).sum(axis=1)
    order = 1 + np.argsort(distance, kind="stable")
    places = [round((k + 1) / (anchors + 1) * (count - 2)) for k in range(min(anchors, count - 1))]
    again += [
        named(f"anchor-{n + 1}-{k}", chosen[order[place]], "anchor", k)
        for n, place in enumerate(places)
        for k in range(1, replicates + 1)
    ]
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
