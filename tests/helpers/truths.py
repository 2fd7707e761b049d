"""Synthetic truths: swarms whose law, noise and best mixture are known."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.design import design
from crystalmix.mixtures.laws.loss_table import LossTable
from crystalmix.mixtures.laws.simplex import fill

Floats = NDArray[np.float64]
NAMES = ("language", "python", "javascript", "web")


@dataclass(frozen=True)
class Truth:
    """An effective-data law drawn at random: every target likes one domain eight times as much."""

    seed: int
    domains: int = 4
    targets: int = 4

    @cached_property
    def parameters(self) -> tuple[Floats, Floats, Floats]:
        rng = np.random.default_rng(self.seed)
        c, a = rng.uniform(1.5, 3, self.targets), rng.uniform(0.2, 0.9, self.targets)
        w = np.exp(rng.normal(-1, 1, (self.targets, self.domains)))
        own = np.arange(self.targets)
        w[own, own % self.domains] *= 8
        return c, a, w

    def losses(self, shares: Floats) -> Floats:
        c, a, w = self.parameters
        return c + (shares @ w.T) ** -a

    def aim(self, shares: Floats) -> tuple[float, Floats]:
        """The mean loss and its slope, as mixtures/convex.py takes them."""
        _, a, w = self.parameters
        slope = -(a * (w @ shares) ** (-a - 1))[:, None] * w
        return float(self.losses(shares[None]).mean()), slope.mean(axis=0)

    def measured(self, shares: Floats, noise: float, seed: int = 0) -> Floats:
        rng = np.random.default_rng([self.seed, seed])
        return self.losses(shares) + noise * rng.standard_normal((len(shares), self.targets))

    def swarm(self, count: int = 16, replicates: int = 4, minimum: float = 0.04) -> Floats:
        tokens = {f"d{k}": 10**9 for k in range(self.domains)}
        chosen = design(
            tokens,
            target=1e9,
            epochs=4,
            count=count,
            replicates=replicates,
            seed=self.seed,
            minimum=minimum,
        )
        return np.array([list(mixture.shares.values()) for mixture in chosen])

    def others(self, count: int) -> Floats:
        """Mixtures that no design holds."""
        rng = np.random.default_rng([self.seed, 99])
        draws = rng.dirichlet(np.ones(self.domains), count)
        return fill(draws, np.full(self.domains, 0.04), np.ones(self.domains))

    def table(self, shares: Floats, noise: float, seed: int = 0) -> LossTable:
        names = tuple(NAMES[: self.domains])
        runs = tuple(f"run-{k}" for k in range(len(shares)))
        aims = names[: self.targets]
        return LossTable(runs, names, aims, shares, self.measured(shares, noise, seed))
