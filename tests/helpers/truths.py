"""Synthetic truths: swarms whose law, noise and best mixture are known."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.design import design
from crystalmix.mixtures.laws.loss_table import LossTable
from crystalmix.mixtures.laws.simplex import fill

Floats = NDArray[np.float64]
OWN = 0.0152 / 2**0.5  # nats: proxies of one seed differ by 0.0152 beyond their mixtures
SEED = (0.0255**2 - OWN**2) ** 0.5  # nats: one run under another seed strays by 0.0255
NAMES = ("language", "python", "javascript", "web")


@dataclass(frozen=True)
class Truth:
    """An effective-data law drawn at random: every target likes one domain eight times as much."""

    seed: int
    domains: int = 4
    targets: int = 4
    returns: float = 1.0  # exponent of each share: below 1 the truth is concave

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
        return c + (shares**self.returns @ w.T) ** -a

    def aim(self, shares: Floats) -> tuple[float, Floats]:
        """The mean loss and its slope, as `convex_search` takes them."""
        _, a, w = self.parameters
        g = self.returns
        slope = -(a * (w @ shares**g) ** (-a - 1))[:, None] * w * g * shares ** (g - 1)
        return float(self.losses(shares[None]).mean()), slope.mean(axis=0)

    def measured(self, shares: Floats, noise: float, seed: int = 0) -> Floats:
        rng = np.random.default_rng([self.seed, seed])
        return self.losses(shares) + noise * rng.standard_normal((len(shares), self.targets))

    def seeded(self, shares: Floats, draws: NDArray[np.int64], seed: int = 0) -> Floats:
        """Measure runs whose draws have an effect each, correlated over targets as proxies' are."""
        rng = np.random.default_rng([self.seed, seed, 7])
        root = np.linalg.cholesky(0.6 + 0.4 * np.eye(self.targets))
        effects = SEED * rng.standard_normal((int(draws.max()) + 1, self.targets)) @ root.T
        own = OWN * rng.standard_normal((len(shares), self.targets)) @ root.T
        return self.losses(shares) + effects[draws] + own

    def swarm(self, count: int = 16, replicates: int = 4, minimum: float = 0.04) -> Floats:
        return self.designed(count, replicates, minimum, 0)[0]

    def designed(
        self, count: int = 16, replicates: int = 4, minimum: float = 0.04, anchors: int = 1
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Return the mixtures of a design and the draw of each."""
        tokens = {f"d{k}": 10**9 for k in range(self.domains)}
        chosen = design(
            tokens,
            target=1e9,
            epochs=4,
            count=count,
            replicates=replicates,
            seed=self.seed,
            minimum=minimum,
            anchors=anchors,
        )
        shares = np.array([list(mixture.shares.values()) for mixture in chosen])
        return shares, np.array([mixture.seed for mixture in chosen])

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


@dataclass(frozen=True)
class SizedTruth(Truth):
    """A truth over sizes and tokens: c + A N^-b + (sum_j w_j N^s_j p_j^g)^-a D^-e."""

    returns: float = 0.6

    def at(self, shares: Floats, parameters: Floats, tokens: Floats) -> Floats:
        c, a, w = self.parameters
        rng = np.random.default_rng([3, self.seed])
        capacity, size, count = (
            rng.uniform(low, high, self.targets)
            for low, high in ((0.1, 0.6), (0.25, 0.5), (0.2, 0.4))
        )
        drift = rng.normal(0, 0.12, w.shape)
        n, d = np.log(parameters / 2e5)[:, None], np.log(tokens / 3e5)[:, None]
        worth = np.exp(drift * n[..., None]) * w  # (runs, targets, domains)
        inner = np.einsum("rj,rtj->rt", shares**self.returns, worth)
        return c + capacity * np.exp(-size * n) + inner**-a * np.exp(-count * d)

    def at_seeded(
        self, shares: Floats, parameters: Floats, tokens: Floats, draws: NDArray[np.int64]
    ) -> Floats:
        """Measure runs whose draws have an effect each."""
        rng = np.random.default_rng([self.seed, len(shares), 9])
        root = np.linalg.cholesky(0.6 + 0.4 * np.eye(self.targets))
        effects = SEED * rng.standard_normal((int(draws.max()) + 1, self.targets)) @ root.T
        own = OWN * rng.standard_normal((len(shares), self.targets)) @ root.T
        return self.at(shares, parameters, tokens) + effects[draws] + own


def sized_table(path: Path, seed: int = 0) -> None:
    """Write a CSV of the default design at two sizes."""
    truth = SizedTruth(seed)
    shares, draws = truth.designed(minimum=0.01)
    both, again = np.vstack([shares, shares]), np.concatenate([draws, draws])
    sizes = np.repeat([1e5, 3e5], len(shares))
    of_size = again + 5 * np.repeat([0, 1], len(shares))
    losses = truth.at_seeded(both, sizes, np.full(len(both), 3e5), of_size)
    heads = [*(f"share:{n}" for n in NAMES), *(f"loss:{n}" for n in NAMES)]
    lines = [",".join(["parameters", "tokens", "draw", *heads])]
    for size, draw, mixture, values in zip(sizes, again, both, losses, strict=True):
        lines.append(",".join(map(repr, [float(size), 3e5, int(draw), *mixture, *values])))
    path.write_text("\n".join(lines).replace("np.float64(", "").replace(")", "") + "\n")
