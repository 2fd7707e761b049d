"""An ablation measured on mixtures that it was not fitted to: `bench_ablate.py DIR [DIR ...]`.

DIR holds a finished ablation, such as `crystalmix ablate four-groups --data RAW --out DIR` leaves.
Further mixtures are trained beside it (below `DIR/held-out`), once with the weights and draws of
the design, and under seeds that no run of it had. They are drawn at random from the region that
the design fills: mixtures chosen to be far from each other would be its corners, as those of the
design are. Every law is held against them, seed by seed: rank correlation by domain and of the
valued mean, regret of the mixture that the law prefers among them, coverage of its intervals, and
the root mean square error, also over that of the effective-data law (the former default).

With two seeds or more own noise is known by domain, from differences of one mixture between seeds.
Its root mean square is the floor: the error of the true law on one seed, were that seed's effect
known. `shape` is the error of each law about the mean over seeds, without each domain's mean (which
says nothing of where the optimum lies) and less what noise that mean has; 90 % intervals of ratios
are by resampled mixtures.

With two new seeds or more the laws are held against what they are of, too: the expected loss of a
mixture, here its mean over the new seeds. Nothing is taken off that error but in the column `less
noise`, where what the runs of one mixture stray by says how far such a mean is from the expected
loss. `knowing`: the error of a law that was fitted to these runs as well, how near its form comes.
Further ablations of the same rows (the spec under other seeds) are held against the same runs.
"""

import argparse
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import monotonic
from typing import Any

import numpy as np

from crystalmix.mixtures.ablations import pool_of_build as reusing
from crystalmix.mixtures.ablations import spec as ablation
from crystalmix.mixtures.ablations.design import Mixture
from crystalmix.mixtures.ablations.small_manifest import remix
from crystalmix.mixtures.laws.distributions import spearman
from crystalmix.mixtures.laws.fit import KINDS
from crystalmix.mixtures.laws.simplex import fill
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.train.ablations.ablate import fitted
from crystalmix.train.ablations.measure import held_of
from crystalmix.train.ablations.proxies import VIEW, ProxyResult, ProxyRun, train
from crystalmix.train.ablations.results import Insight
from crystalmix.train.ablations.tables import SPEC, loss_matrix

OTHER_SEED = 4711  # of mixtures that nothing was fitted to
RESAMPLED = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--mixtures", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2, help="the design's, then new ones")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    seen, *others = (Insight(folder.resolve()) for folder in asked.folders)
    mixtures = fresh(seen, asked.mixtures)
    began = monotonic()
    draws = [0, *(seen.spec.swarm.replicates + seen.spec.checks.seeds + k for k in range(1, 99))]
    draws = draws[: asked.seeds]
    results = trained(seen, [(one, draw) for draw in draws for one in mixtures], asked.workers)
    wall = monotonic() - began
    names = seen.domains
    shares = np.array([[mixture.shares[name] for name in names] for mixture in mixtures])
    measured = loss_matrix(results, names).reshape(len(draws), len(mixtures), len(names))
    for draw, losses in zip(draws, measured, strict=True):
        title = f"draw {draw}: {'the design' if draw == 0 else 'a new seed'}"
        say([title, *one_run(seen, shares, losses)])
    if len(draws) > 1:
        means = {kind: seen.fits[kind].mean(shares) for kind in KINDS}
        say(without_noise(means, measured))
    if len(draws) > 2:
        for one in (seen, *others):
            if one.ground.pool.digest != seen.ground.pool.digest or one.domains != names:
                raise SystemExit(f"{one.folder}: has other rows than {seen.folder}")
            say([f"{one.folder.name}: mean of {len(draws) - 1} new seeds"])
            say(expected(one, shares, measured[1:]))
    noise = seen.report.noise
    used = sum(getrusage(who).ru_utime for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    told = f"{len(mixtures)} mixtures, SD of the valued mean: under another seed {noise.sigma:.4f}"
    told += f" ({noise.freedom} degrees), within a seed {noise.own:.4f}; {used:.0f} CPU-s"
    sys.stdout.write(f"{told}; training {wall:.0f} s with {asked.workers} workers\n")


def say(lines: list[str]) -> None:
    sys.stdout.write("\n".join([*lines, "", ""]))


def fresh(seen: Insight, count: int) -> list[Mixture]:
    """Return random mixtures within the same caps that no law was fitted to."""
    plan, names = seen.spec.swarm, seen.domains
    high = np.array([seen.ground.caps[name] for name in names])
    drawn = randomness.stream(OTHER_SEED, "fresh", len(names)).dirichlet(
        np.full(len(names), plan.alpha), count
    )
    return [
        Mixture(f"random-{i}", dict(zip(names, shares, strict=True)), "check")
        for i, shares in enumerate(fill(drawn, np.minimum(plan.minimum, high), high).tolist())
    ]


def trained(seen: Insight, runs: list[tuple[Mixture, int]], workers: int) -> list[ProxyResult]:
    """Train mixtures, each under a draw, as the design was; what is done is not done again."""
    spec = seen.spec
    proxies: list[ProxyRun] = []
    for mixture, draw in runs:
        trial = seen.ground.single(mixture, draw)
        proxy = ProxyRun(
            name=trial.name,
            pool=str(seen.folder / "build"),
            out=str(seen.folder / "held-out" / f"{trial.name}-{draw}"),
            phases=(trial.name,),
            size=trial.size,
            seed=trial.seed,
            learning_rate=spec.proxy.learning_rate,
            warmup=spec.proxy.warmup,
            held_out=ablation.HELD_OUT,
            held=tuple(held_of(seen.ground, name) for name in spec.domains),
            spike=spec.proxy.spike,
            dtype=read_json(seen.folder / SPEC).get("dtype", "bfloat16"),
        )
        sealed = [remix(seen.ground.pool, trial.portions[0])]
        reusing.view(seen.folder / "build", sealed, Path(proxy.out) / VIEW)
        proxies.append(proxy)
    with Fanout(workers) as pool:
        return list(pool.map(train, proxies, "fresh"))


def one_run(seen: Insight, shares: Any, measured: Any) -> list[str]:
    """Hold every law against one run of each mixture."""
    errors = {kind: rmse(seen.fits[kind].mean(shares), measured) for kind in KINDS}
    rows: list[list[object]] = []
    for kind in KINDS:
        _, low, high = seen.fits[kind].predict(shares)
        covered = f"{((low <= measured) & (measured <= high)).mean():.3f}"
        error, ratio = f"{errors[kind]:.4f}", f"{errors[kind] / errors['effective']:.3f}"
        rows.append([*ranks(seen, kind, shares, measured), covered, error, ratio])
    return table(rows, [*head(seen), "coverage", "rmse", "of effective"])


def rmse(predicted: Any, measured: Any) -> float:
    """Return the error over all domains, nats."""
    return float(np.sqrt(np.mean((predicted - measured) ** 2)))


def expected(seen: Insight, shares: Any, measured: Any) -> list[str]:
    """Hold every law against the mean of each mixture's runs; measured: (seeds, mixtures, domains).

    The error of such a mean: what all mixtures share in a seed, and each run's own noise.
    """
    count, mixtures, _ = measured.shape
    mean = measured.mean(axis=0)
    noise = float((measured.var(axis=0, ddof=1) / count).mean())
    again = np.random.default_rng(0).integers(0, mixtures, (RESAMPLED, mixtures))
    again = np.vstack([np.arange(mixtures), again])
    off = {kind: (seen.fits[kind].mean(shares) - mean) ** 2 for kind in KINDS}
    near = {kind: (knowing(seen, kind, shares, measured) - mean) ** 2 for kind in KINDS}
    rows: list[list[object]] = []
    each: list[list[object]] = []
    for kind in KINDS:
        _, low, high = seen.fits[kind].predict(shares)
        covered = f"{((low <= measured) & (measured <= high)).mean():.3f}"
        columns = [
            *compared(off[kind], off["effective"], again),
            *compared(off[kind], off["effective"], again, noise),
            *compared(near[kind], near["effective"], again),
        ]
        rows.append([*ranks(seen, kind, shares, mean), covered, *columns])
        each.append([kind, *(f"{x:.4f}" for x in np.sqrt(off[kind].mean(axis=0)))])
    told = f"noise of a mean {np.sqrt(noise):.4f} nats ({(count - 1) * mixtures} degrees)"
    errors = [name for error in ("rmse", "less noise", "knowing") for name in (error, "of eff.")]
    by_domain = table(each, ["law", *(f"rmse {name}" for name in seen.domains)])
    return [told, *table(rows, [*head(seen), "coverage", *errors]), *by_domain]


def compared(ours: Any, theirs: Any, again: Any, noise: float = 0.0) -> list[str]:
    """Return an error in nats and its ratio to another; squares of errors: (mixtures, domains)."""
    one, other = (
        np.sqrt(np.maximum(squares[again].mean(axis=(1, 2)) - noise, 1e-12))
        for squares in (ours, theirs)
    )
    low, high = np.quantile(one[1:] / other[1:], (0.05, 0.95))
    return [f"{one[0]:.4f}", f"{one[0] / other[0]:.3f} [{low:.3f}, {high:.3f}]"]


def knowing(seen: Insight, kind: str, shares: Any, measured: Any) -> Any:
    """Return what a law says that was fitted to these runs, too: how near its form can come."""
    fit, (count, mixtures, domains) = seen.fits[kind], measured.shape
    draws = fit.problems.effects.argmax(axis=1)
    new = draws.max() + 1 + np.repeat(np.arange(count), mixtures)
    both = fitted(
        seen.ground,
        np.vstack([fit.shares, np.tile(shares, (count, 1))]),
        np.vstack([fit.losses, measured.reshape(-1, domains)]),
        kind,
        np.concatenate([draws, new]),
    )
    return both.mean(shares)


def without_noise(means: dict[str, Any], measured: Any) -> list[str]:
    """Return the floor, and the error of each law's shape over that of the effective-data law's.

    means: by law, (mixtures, domains). measured: (seeds, mixtures, domains).
    """
    count, mixtures, domains = measured.shape
    away = measured - measured.mean(axis=0)
    away = away - away.mean(axis=1, keepdims=True)
    own = (away**2).sum(axis=(0, 1)) / ((count - 1) * (mixtures - 1))
    again = np.random.default_rng(0).integers(0, mixtures, (RESAMPLED, mixtures))
    again = np.vstack([np.arange(mixtures), again])
    shapes: dict[str, Any] = {}
    for kind, mean in means.items():
        off = (mean - measured.mean(axis=0))[again]  # (1 + resampled, mixtures, domains)
        off -= off.mean(axis=1, keepdims=True)
        squares = (off**2).sum(axis=(1, 2)) / (mixtures - 1) / domains - own.mean() / count
        shapes[kind] = np.sqrt(np.maximum(squares, 0))
    rows: list[list[object]] = []
    for kind, shape in shapes.items():
        with np.errstate(all="ignore"):
            ratios = shape / shapes["effective"]
        low, high = np.nanquantile(ratios[1:], (0.05, 0.95))
        rows.append([kind, f"{shape[0]:.4f}", f"{ratios[0]:.3f} [{low:.3f}, {high:.3f}]"])
    floor = f"floor {np.sqrt(own.mean()):.4f}; own noise by domain {np.sqrt(own).round(4).tolist()}"
    return [floor, *table(rows, ["law", "shape", "of effective"])]


def head(seen: Insight) -> list[str]:
    return ["law", *(f"rho {name}" for name in seen.domains), "mean", "valued", "regret"]


def ranks(seen: Insight, kind: str, shares: Any, measured: Any) -> list[str]:
    """Return a law's rank correlations with the mixtures' losses, and its regret in nats."""
    mean, value = seen.fits[kind].mean(shares), [seen.spec.value[name] for name in seen.domains]
    each = [spearman(mean[:, i], measured[:, i]) for i in range(measured.shape[1])]
    valued = measured @ value
    regret = valued[int(np.argmin(mean @ value))] - valued.min()
    numbers = [*each, float(np.mean(each)), spearman(mean @ value, valued)]
    return [kind, *(f"{x:.3f}" for x in numbers), f"{regret:.4f}"]


if __name__ == "__main__":
    main()
