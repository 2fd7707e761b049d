"""Measure fitting of laws: CPU-seconds at the largest table, and errors over many known truths.

`python tests/bench_law.py [SWARMS]`: one process, one thread; laws beside each other in one run.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from crystalmix.mixtures.ablations.design import design
from crystalmix.mixtures.laws import convex_search as convex
from crystalmix.mixtures.laws.distributions import regret, spearman
from crystalmix.mixtures.laws.fit import KINDS, fit
from crystalmix.mixtures.laws.recommend import RecommendSettings, recommend
from helpers.truths import Truth

NOISE = 0.02  # nats


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    made = work()
    return time.process_time() - began, made


def largest() -> None:
    """17 domains, 13 targets, 512 runs; 256 other mixtures to predict."""
    truth = Truth(0, domains=17, targets=13)
    shares, others = truth.swarm(508, 4, 0.0), truth.others(256)
    losses = truth.measured(shares, NOISE)
    say("17 domains, 13 targets, 512 runs: CPU-s, rho, rho of mean, regret, rmse, coverage")
    for kind in KINDS:
        seconds, found = timed(lambda kind=kind: fit(shares, losses, kind))
        say(f"  {kind:11} {seconds:6.2f}", *judged(truth, found, others, seed=1))
    fitted = fit(shares, losses)
    value, now = dict.fromkeys(fitted.targets, 1.0), dict.fromkeys(fitted.domains, 1 / 17)
    seconds, _ = timed(lambda: recommend(fitted, value, {}, now))
    say(f"  recommendation, 200 draws: {seconds:.2f} CPU-s")
    tokens = dict.fromkeys(fitted.domains, 10**9)
    asked = {"target": 1e9, "epochs": 4.0, "count": 512, "replicates": 4, "seed": 0}
    say(f"  design of 512: {timed(lambda: design(tokens, **asked))[0]:.2f} CPU-s")


def judged(truth: Truth, found: Any, others: Any, seed: int) -> list[str]:
    mean, low, high = found.predict(others)
    measured = truth.measured(others, NOISE, seed)
    ranks = np.mean([spearman(*pair) for pair in zip(mean.T, measured.T, strict=True)])
    of_mean = spearman(mean.mean(axis=1), measured.mean(axis=1))
    lost = regret(mean.mean(axis=1), truth.losses(others).mean(axis=1))
    rmse = np.sqrt(np.mean((mean - measured) ** 2))
    held = np.mean((low <= measured) & (measured <= high))
    return [f"{figure:.4f}" for figure in (ranks, of_mean, lost, rmse, held)]


def many(swarms: int) -> None:
    """Swarms of 16 + 4 runs over 4 domains: what is held of mixtures not fitted, by law."""
    say(f"{swarms} swarms of 20 runs, 4 domains, sigma {NOISE}; rho, of mean, regret, rmse, cover")
    for kind in KINDS:
        rows: list[list[float]] = []
        for seed in range(swarms):
            truth = Truth(seed)
            shares = truth.swarm()
            found = fit(shares, truth.measured(shares, NOISE), kind)
            rows.append([float(x) for x in judged(truth, found, truth.others(16), seed=1)])
        say(f"  {kind:11}", *(f"{figure:.4f}" for figure in np.mean(rows, axis=0)))


def recommendations(swarms: int) -> None:
    """How often the intervals of gain and shares hold the truth, and what the optimum loses."""
    gains, within, lost, refused = [], [], [], 0
    region = (np.full(4, 0.02), np.ones(4))
    even = np.full(4, 0.25)
    for seed in range(swarms):
        truth = Truth(seed)
        shares = truth.swarm()
        found = fit(shares, truth.measured(shares, NOISE))
        value, now = dict.fromkeys(found.targets, 1.0), dict.fromkeys(found.domains, 0.25)
        told = recommend(found, value, {}, now, RecommendSettings(minimum=0.02))
        best, chosen = convex.optimum(truth.aim, region), np.array(list(told.shares.values()))
        gain = truth.aim(even)[0] - truth.aim(chosen)[0]
        gains.append(told.gain[1] <= gain <= told.gain[2])
        pairs = zip(best, told.interval.values(), strict=True)
        within += [low - 1e-3 <= share <= high + 1e-3 for share, (low, high) in pairs]
        lost.append(truth.aim(chosen)[0] - truth.aim(best)[0])
        refused += not told.distinguishable
    say(f"{swarms} recommendations: interval of gain held {np.mean(gains):.3f}, of shares")
    say(f"  {np.mean(within):.3f}; regret {np.mean(lost):.5f}, at most {max(lost):.5f} nats;")
    say(f"  {refused} refused")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    largest()
    many(count)
    recommendations(count)
