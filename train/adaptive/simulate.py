"""Simulation of a policy on finished runs: which shares it would have chosen, before it is run.

The ledgers of runs of many mixtures, cut into windows, say how the training loss of each part in a
window depends on what was read of every part by its middle. A law (`mixtures.laws`) is fitted to
each window's losses; then the policy is played, the laws in place of the ledger. They know how much
was read, not in which order, and only runs as long as those that they were fitted to: the learning
rate's schedule is in them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.spec import domain_of
from crystalmix.mixtures.laws.families import Curves
from crystalmix.mixtures.laws.fit import Fit, FitSettings, fit
from crystalmix.mixtures.laws.resample import draw
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Content
from crystalmix.train.adaptive.policy import UNITS, Policy, Shares, Window, next_shares
from crystalmix.train.record import ledger

Floats = NDArray[np.float64]
LEVEL = 0.9
FEWEST = 6  # runs of a window
LEAST_WINDOWS = 2


@dataclass(frozen=True)
class Stretch:
    """A window of a run: share of each part in what was read by its middle, and loss in it, nats.

    losses: nan of parts that had none. draw: a number for the run's seed.
    """

    window: int
    shares: Floats
    losses: Floats
    draw: int


@dataclass(frozen=True)
class Simulation:
    """What a policy would have chosen.

    shares: (windows, parts), by the law; low, high: 90 % of plays with resampled laws and the noise
    of a window. total: of all that is read; totals: (plays, parts), those of each play. error:
    nats, of a window's loss about the law.
    """

    policy: str
    steps: int
    parts: tuple[str, ...]
    shares: Floats
    low: Floats
    high: Floats
    total: Floats
    totals: Floats
    error: float

    def lines(self) -> Iterator[str]:
        """Yield the shares of each window with their range."""
        rows = [
            [
                f"{number * self.steps}-",
                *(
                    f"{share:.3f} [{low:.3f}, {high:.3f}]"
                    for share, low, high in zip(*whole, strict=True)
                ),
            ]
            for number, whole in enumerate(zip(self.shares, self.low, self.high, strict=True))
        ]
        rows.append(["in all", *(f"{share:.3f}" for share in self.total)])
        yield f"policy {self.policy}, windows of {self.steps} steps: shares, and 90 % of plays"
        yield from table(rows, ["steps", *self.parts])
        yield f"a window's loss strays by {self.error:.4f} nats (SD) about the law that was played"

    def content(self) -> Content:
        """Return it as JSON."""
        named = [dict(zip(self.parts, row, strict=True)) for row in self.shares.tolist()]
        edges = [
            dict(zip(self.parts, zip(*ends, strict=True), strict=True))
            for ends in zip(self.low.tolist(), self.high.tolist(), strict=True)
        ]
        total = dict(zip(self.parts, self.total.tolist(), strict=True))
        return {
            "policy": self.policy,
            "window_steps": self.steps,
            "shares": named,
            "interval": edges,
            "total": total,
            "error": self.error,
        }


def stretches(folder: Path, parts: Sequence[str], steps: int, draw: int) -> Iterator[Stretch]:
    """Cut a run's ledger into windows of so many steps; sources of a domain count together."""
    entries = ledger.read(folder, "steps").column("parts").to_pylist()
    tokens, sums = np.zeros((2, len(entries), len(parts)))
    at = {part: place for place, part in enumerate(parts)}
    for step, lines in enumerate(entries):
        for entry in lines or []:
            if entry["loss"] is not None:
                place = at[domain_of(entry["part"])]
                tokens[step, place] += entry["tokens"]
                sums[step, place] += entry["tokens"] * entry["loss"]
    for window, first in enumerate(range(0, len(entries), steps)):
        here = tokens[first : first + steps].sum(axis=0)
        read = tokens[:first].sum(axis=0) + here / 2
        whole = sums[first : first + steps].sum(axis=0)
        losses = np.where(here > 0, whole / np.maximum(here, 1), np.nan)
        yield Stretch(window, read / read.sum(), losses, draw)


def fit_windows(stretches: Sequence[Stretch], parts: tuple[str, ...]) -> list[list[Fit]]:
    """Fit the law of training loss over what was read: one for each window and part.

    Raises RefusalError where too few runs read a part in a window.
    """
    laws: list[list[Fit]] = []
    for window in range(1 + max(stretch.window for stretch in stretches)):
        here = [stretch for stretch in stretches if stretch.window == window]
        shares, losses = (np.array([getattr(x, n) for x in here]) for n in ("shares", "losses"))
        draws = np.array([stretch.draw for stretch in here])
        laws.append([])
        for place, part in enumerate(parts):
            kept = np.isfinite(losses[:, place])
            if kept.sum() < FEWEST:
                raise RefusalError(
                    f"steps: {kept.sum()} runs read {part} in window {window}, {FEWEST} are "
                    "needed; make windows longer"
                )
            settings = FitSettings(level=LEVEL, domains=parts, targets=(part,))
            own = losses[kept, place, None]
            laws[-1].append(fit(shares[kept], own, settings=settings, draws=draws[kept]))
    return laws


def simulate(
    laws: Sequence[Sequence[Fit]],
    policy: Policy,
    first: Mapping[str, float],
    tokens: float,
    plays: int = 200,
) -> Simulation:
    """Play a policy from the shares of its first window.

    laws: of each window and part, by `fit_windows`. tokens: of a window. Raises RefusalError for
    fewer than two windows, or bounds that leave no shares.
    """
    if len(laws) < LEAST_WINDOWS:
        raise RefusalError(f"steps: {policy.steps} leave one window; make them shorter")
    parts, start = laws[0][0].domains, {name: round(s * UNITS) for name, s in first.items()}
    sigma = np.sqrt([[law.run_variance[0][0] for law in row] for row in laws])  # (windows, parts)
    play = _Play(laws[0][0].law, parts, policy, start, tokens)
    theta = np.array(
        [[law.theta[0] for law in row] for row in laws]
    )  # (windows, parts, parameters)
    shares, total = play(theta, np.zeros_like(sigma))
    rng = randomness.stream(0, "simulation")
    thetas = np.array(
        [[draw(law, plays, window)[:, 0] for law in row] for window, row in enumerate(laws)]
    )  # (windows, parts, plays, parameters)
    every = [play(thetas[:, :, k], sigma * rng.standard_normal(sigma.shape)) for k in range(plays)]
    edges = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    low, high = np.quantile([chosen for chosen, _ in every], edges, axis=0)
    totals = np.array([read for _, read in every])
    error = float(np.sqrt(np.mean(sigma**2)))
    return Simulation(policy.policy, policy.steps, parts, shares, low, high, total, totals, error)


@dataclass(frozen=True)
class _Play:
    """A policy played against a law whose parameters each window and part has; tokens: of each."""

    law: Curves
    parts: tuple[str, ...]
    policy: Policy
    first: Shares
    tokens: float

    def __call__(self, thetas: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """Return the shares of each window, (windows, parts), and of all that is read."""
        read, seen = np.zeros(len(self.parts)), list[Window]()
        for theta, stray in zip(thetas, noise, strict=True):
            shares = next_shares(self.policy, self.first, seen, len(thetas))
            tokens = np.array([shares[part] for part in self.parts]) / UNITS * self.tokens
            middle = read + tokens / 2
            losses = self.law.value(theta, middle[None] / middle.sum())[:, 0] + stray
            counts = [round(count) for count in tokens.tolist()]
            units = [round(loss * UNITS) for loss in losses.tolist()]
            seen.append(
                Window(
                    shares,
                    dict(zip(self.parts, counts, strict=True)),
                    dict(zip(self.parts, units, strict=True)),
                )
            )
            read += tokens
        chosen = np.array([[window.shares[part] for part in self.parts] for window in seen]) / UNITS
        return chosen, read / read.sum()
