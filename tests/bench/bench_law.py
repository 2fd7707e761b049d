"""Measure laws, intervals and verdicts on simulated tables whose truth is known.

`python tests/bench/bench_law.py [SCALE]`: one process, one thread; about 5 CPU-minutes.

- tables of RegMix's kind (17 domains, 13 targets, heavy-tailed weights, seed noise): the concave
  law beside today's effective-data law, from 32 and 512 runs, where the truth is of either kind;
- the default design under proxies' noise (one run under a new seed .0255 nats, a paired difference
  .0152): coverage, misfit, verdicts, and what is called better at the true optimum.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from crystalmix.mixtures.laws import convex_search
from crystalmix.mixtures.laws.distributions import spearman
from crystalmix.mixtures.laws.fit import KINDS, FitSettings, fit
from crystalmix.mixtures.laws.noise import groups_of
from crystalmix.mixtures.laws.recommend import RecommendSettings, recommend
from crystalmix.train.ablations.conclusions import difference, noise
from helpers.truths import NAMES, OWN, SEED, Truth


@dataclass(frozen=True)
class Heavy(Truth):
    """A truth of RegMix's size: weights from Student's t with 3 degrees, exponents .4 to .8."""

    domains: int = 17
    targets: int = 13

    @cached_property
    def parameters(self) -> Any:
        rng = np.random.default_rng([11, self.seed])
        c, a = rng.uniform(1.5, 3, self.targets), rng.uniform(0.2, 0.9, self.targets)
        w = np.exp(-1 + np.clip(rng.standard_t(3, (self.targets, self.domains)), -4, 4))
        own = np.arange(self.targets)
        w[own, own % self.domains] *= 8
        return c, a, w

    def losses(self, shares: Any) -> Any:
        c, a, w = self.parameters
        rng = np.random.default_rng([12, self.seed])
        g = rng.uniform(0.4, 0.8, self.targets) if self.returns < 1 else np.ones(self.targets)
        return c + ((shares[..., None, :] ** g[:, None]) * w).sum(axis=-1) ** -a


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    made = work()
    return time.process_time() - began, made


def ranks(runs: int, tables: int, returns: float) -> None:
    """Mean Spearman by domain of two laws on 256 mixtures not fitted, and their difference."""
    kinds = ("concave", "effective")
    rho = {kind: [] for kind in kinds}
    seconds = dict.fromkeys(kinds, 0.0)
    for seed in range(tables):
        truth = Heavy(seed, returns=returns)
        rng = np.random.default_rng([13, seed])
        shares = rng.dirichlet(np.full(17, 0.6), runs)
        others = rng.dirichlet(np.full(17, 0.6), 256)
        losses = truth.seeded(shares, np.zeros(runs, np.int64))
        measured = truth.seeded(others, np.zeros(256, np.int64), seed=1)
        for kind in kinds:
            spent, found = timed(lambda kind=kind: fit(shares, losses, kind))  # noqa: B023
            seconds[kind] += spent
            pairs = zip(found.mean(others).T, measured.T, strict=True)
            rho[kind].append([spearman(*pair) for pair in pairs])
    gaps = np.subtract(rho["concave"], rho["effective"])
    again = np.random.default_rng(0).integers(0, gaps.size, (4000, gaps.size))
    low, high = np.quantile(gaps.ravel()[again].mean(axis=1), (0.05, 0.95))
    truth = "concave" if returns < 1 else "effective"
    say(
        f"  truth {truth:9} {runs:3} runs, {tables:2} tables:",
        *(f"{kind} {np.mean(rho[kind]):.4f}" for kind in kinds),
        f"difference {gaps.mean():+.4f} [{low:+.4f}, {high:+.4f}],",
        f"CPU {seconds['concave'] / seconds['effective']:.2f} times",
        f"({seconds['concave'] / tables:.1f} s a table)",
    )


def intervals(swarms: int) -> None:
    """Coverage of 90 % intervals of runs under new seeds, and rejections of the misfit test."""
    inside, law, none, bent = [], [], [], []
    for seed in range(swarms):
        truth = Truth(seed, returns=0.6)
        shares, draws = truth.designed(minimum=0.01)
        losses = truth.seeded(shares, draws)
        found = fit(shares, losses, draws=draws)
        others = truth.others(16)
        measured = truth.seeded(others, np.arange(16), seed=1)
        _, low, high = found.predict(others)
        inside.append(((low <= measured) & (measured <= high)).mean())
        _, low, high = found.predict(others, run=False)
        exact = truth.losses(others)
        law.append(((low <= exact) & (exact <= high)).mean())
        none.append(found.misfit_of_all < 0.1)
        rng = np.random.default_rng([14, seed])
        misfit = 1.5 * OWN * rng.standard_normal((len(shares), 4))[groups_of(shares)]
        bent.append(fit(shares, losses + misfit, draws=draws).misfit_of_all < 0.1)
    say(f"  {swarms} swarms of 24 runs: new runs under new seeds inside {np.mean(inside):.3f}, the")
    say(f"  law itself {np.mean(law):.3f}; misfit rejected at 10 %: {np.mean(none):.3f} without")
    say(f"  misfit, {np.mean(bent):.3f} at 1.5 noise SD")


def verdicts(tables: int) -> None:
    """How often paired checks call a difference where none is, and where .04 nats are."""
    rng = np.random.default_rng(0)
    mixtures, draws = np.repeat([0, 1], 5), np.tile(np.arange(5), 2)
    told: dict[str, list[bool]] = {}
    for _ in range(tables):
        valued = SEED * rng.standard_normal(5)[draws] + OWN * rng.standard_normal(10)
        known = noise(mixtures, draws, valued)
        for pairs in (1, 2, 4):
            ours, *theirs = OWN * rng.standard_normal((3, pairs))
            both = [difference((ours - one).tolist(), known, 0.0, 2).verdict for one in theirs]
            alone = difference((ours - theirs[0]).tolist(), known, 0.0)
            told.setdefault(f"{pairs} pairs, null", []).append(alone.verdict != "cannot tell")
            any_ = any(verdict != "cannot tell" for verdict in both)
            told.setdefault(f"{pairs} pairs, null, any of two questions", []).append(any_)
            gap = difference((ours - theirs[0] - 0.04).tolist(), known, 0.0)
            better = gap.verdict.startswith("better")
            told.setdefault(f"{pairs} pairs, .04 nats better", []).append(better)
    say(f"  verdicts of {tables} tables:")
    for name, calls in told.items():
        say(f"    {name}: {np.mean(calls):.3f}")


def recommendations(swarms: int) -> None:
    """How often the true optimum in use is called beaten, and intervals that hold the truth."""
    region, names = (np.full(4, 0.01), np.ones(4)), FitSettings(domains=NAMES, targets=NAMES)
    for current in ("the optimum", "uniform"):
        better, gains, shares_held, lost = [], [], [], []
        for seed in range(swarms):
            truth = Truth(seed, returns=0.6)
            shares, draws = truth.designed(minimum=0.01)
            found = fit(shares, truth.seeded(shares, draws), "concave", names, draws)
            best = convex_search.optimum(truth.aim, region)
            now = best if current == "the optimum" else np.full(4, 0.25)
            told = recommend(
                *(found, dict.fromkeys(NAMES, 1.0), {}, dict(zip(NAMES, now, strict=True))),
                RecommendSettings(minimum=0.01, draws=100),
            )
            chosen = np.array(list(told.shares.values()))
            gain = truth.aim(now)[0] - truth.aim(chosen)[0]
            better.append(told.gain[1] > 0)
            gains.append(told.gain[1] <= gain <= told.gain[2])
            pairs = zip(best, told.interval.values(), strict=True)
            shares_held += [low - 1e-3 <= share <= high + 1e-3 for share, (low, high) in pairs]
            lost.append(truth.aim(chosen)[0] - truth.aim(best)[0])
        say(
            f"  current is {current}: called better {np.mean(better):.3f}, gain inside "
            f"{np.mean(gains):.3f}, shares inside {np.mean(shares_held):.3f}, "
            f"regret {np.mean(lost):.5f} nats"
        )


def small(swarms: int) -> None:
    """All laws from 20 runs over 4 domains: rank, error and coverage on 16 mixtures not fitted."""
    for returns in (0.6, 1.0):
        say(f"  {swarms} swarms of 20 runs, 4 domains, exponent {returns}: rho, rmse, coverage")
        for kind in KINDS:
            rows = []
            for seed in range(swarms):
                truth = Truth(seed, returns=returns)
                shares, others = truth.swarm(), truth.others(16)
                mean, low, high = fit(shares, truth.measured(shares, 0.02), kind).predict(others)
                measured = truth.measured(others, 0.02, seed=1)
                rho = [spearman(*pair) for pair in zip(mean.T, measured.T, strict=True)]
                error = np.sqrt(np.mean((mean - measured) ** 2))
                held = np.mean((low <= measured) & (measured <= high))
                rows.append([np.mean(rho), error, held])
            say(f"    {kind:10}", *(f"{figure:.4f}" for figure in np.mean(rows, axis=0)))


if __name__ == "__main__":
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0

    def times(count: int) -> int:
        return max(2, round(scale * count))

    began = time.process_time()
    say("tables of RegMix's kind, mean Spearman by domain; 90 % bootstrap intervals:")
    for returns in (0.6, 1.0):
        ranks(32, times(16), returns)
        ranks(512, times(6), returns)
    say("the default design under proxies' noise:")
    intervals(times(900))
    verdicts(times(2000))
    recommendations(times(80))
    say("all laws:")
    small(times(40))
    say(f"{time.process_time() - began:.0f} CPU-s")
