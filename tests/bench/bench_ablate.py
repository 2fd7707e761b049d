"""Measure an ablation on mixtures that it was not fitted to: `python tests/bench_ablate.py DIR`.

DIR holds a finished ablation, such as `crystalmix ablate four-groups --data RAW --out DIR` leaves.
Further mixtures, of another swarm, are trained beside it with the same weights and draws (below
`DIR/held-out`), and every law is held against them: rank correlation by domain and of the valued
mean, regret of the mixture that the law prefers among them, coverage of its intervals.
"""

import argparse
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import monotonic
from typing import Any

import numpy as np

from crystalmix.mixtures.ablations import design as swarm
from crystalmix.mixtures.ablations import pool_of_build as reusing
from crystalmix.mixtures.ablations import spec as ablation
from crystalmix.mixtures.ablations.design import Mixture
from crystalmix.mixtures.ablations.small_manifest import remix
from crystalmix.mixtures.laws.distributions import spearman
from crystalmix.mixtures.laws.fit import KINDS
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.train.ablations.ablate import fitted
from crystalmix.train.ablations.measure import Held
from crystalmix.train.ablations.proxies import VIEW, ProxyResult, ProxyRun, train
from crystalmix.train.ablations.results import Insight
from crystalmix.train.ablations.tables import loss_matrix

OTHER_SEED = 4711  # of the swarm that nothing was fitted to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mixtures", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    seen = Insight(asked.folder.resolve())
    mixtures = fresh(seen, asked.mixtures)
    began = monotonic()
    results = trained(seen, mixtures, asked.workers)
    wall = monotonic() - began
    names = seen.domains
    shares = np.array([[mixture.shares[name] for name in names] for mixture in mixtures])
    measured = loss_matrix(results, names)
    value = np.array([seen.spec.value[name] for name in names])
    rows = [judged(seen, kind, shares, measured, value) for kind in KINDS]
    head = ["law", *(f"rho {name}" for name in names), "mean", "valued", "regret", "coverage"]
    noise = seen.report["noise"]["sigma"]
    used = sum(getrusage(who).ru_utime for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    told = f"{len(mixtures)} mixtures, seed SD of the valued mean {noise:.4f}, {used:.0f} CPU-s"
    told += f"; training {wall:.0f} s with {asked.workers} workers"
    sys.stdout.write("\n".join([*table(rows, head), told, ""]))


def fresh(seen: Insight, count: int) -> list[Mixture]:
    """Return mixtures within the same caps that no law was fitted to."""
    plan, ground = seen.spec.swarm, seen.ground
    chosen = swarm.design(
        ground.tokens,
        target=ground.target,
        epochs=ground.epochs,
        count=count + 1,
        replicates=0,
        seed=OTHER_SEED,
        alpha=plan.alpha,
        minimum=plan.minimum,
    )
    return [Mixture(f"fresh-{i}", one.shares, "check") for i, one in enumerate(chosen[1:])]


def trained(seen: Insight, mixtures: list[Mixture], workers: int) -> list[ProxyResult]:
    """Train them as the design was trained; what is done is not done again."""
    spec = seen.spec
    proxies: list[ProxyRun] = []
    for mixture in mixtures:
        trial = seen.ground.single(mixture, 0)
        proxy = ProxyRun(
            name=trial.name,
            pool=str(seen.folder / "build"),
            out=str(seen.folder / "held-out" / trial.name),
            phases=(trial.name,),
            size=trial.size,
            seed=trial.seed,
            learning_rate=spec.proxy.learning_rate,
            warmup=spec.proxy.warmup,
            held_out=ablation.HELD_OUT,
            held=tuple(
                Held(name, name + ablation.HELD, spec.proxy.held_out_rows) for name in spec.domains
            ),
            spike=spec.proxy.spike,
        )
        sealed = [remix(seen.ground.pool, trial.portions[0])]
        reusing.view(seen.folder / "build", sealed, Path(proxy.out) / VIEW)
        proxies.append(proxy)
    with Fanout(workers) as pool:
        return list(pool.map(train, proxies, "fresh"))


def judged(seen: Insight, kind: str, shares: Any, measured: Any, value: Any) -> list[object]:
    """Hold one law against the fresh mixtures."""
    fit = fitted(seen.ground, seen.fit.shares, seen.fit.losses, kind)
    mean, low, high = fit.predict(shares)
    each = [spearman(mean[:, i], measured[:, i]) for i in range(measured.shape[1])]
    valued = measured @ value
    regret = valued[int(np.argmin(mean @ value))] - valued.min()
    covered = float(((low <= measured) & (measured <= high)).mean())
    numbers = [*each, float(np.mean(each)), spearman(mean @ value, valued)]
    return [kind, *(f"{x:.3f}" for x in numbers), f"{regret:.4f}", f"{covered:.3f}"]


if __name__ == "__main__":
    main()
