"""Trials: the runs of an ablation, as portions of the pool that all of them share.

The swarm's design and repeats of its centre, and the checks of a recommendation. Factors other than
shares stand in `factor_trials`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from crystalmix.mixtures.ablations import design as mixture_design
from crystalmix.mixtures.ablations.design import Mixture
from crystalmix.mixtures.ablations.published_mixtures import natural, unimax
from crystalmix.mixtures.ablations.small_manifest import Portion, Window, strata
from crystalmix.mixtures.ablations.spec import Ablation, Scale, fim_domain
from crystalmix.mixtures.manifest.manifest import Manifest

Shares = Mapping[str, float]
CHECKED = 3  # mixtures that are checked at every size: recommended, current, uniform


@dataclass(frozen=True)
class Trial:
    """One run: shares of all it consumes, seed of weights, size, and its phases.

    draw: which rows of each domain it draws from, 0 being the first. factor, level: what is varied
    besides shares, and how; empty in the swarm. decay: share of the steps, at their end, in which
    the learning rate falls to zero; 1 where it falls from the warm-up on.
    """

    name: str
    role: str
    shares: dict[str, float]
    seed: int
    size: str
    portions: tuple[Portion, ...]
    draw: int = 0
    factor: str = ""
    level: str = ""
    decay: float = 1.0


@dataclass(frozen=True)
class Ground:
    """What all trials stand on: the spec and the pool of rows that the proxies share.

    remarks: what there is to know of the pool.
    """

    spec: Ablation
    pool: Manifest
    remarks: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> dict[str, int]:
        """Rows that the pool holds of each of its domains."""
        return {
            name: sum(part.available for part in parts) for name, parts in strata(self.pool).items()
        }

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Tokens that the real run has of each domain: as declared, or as the pool holds."""
        return {
            name: int(group.tokens or self.rows[name] * self.pool.msl)
            for name, group in self.spec.domains.items()
        }

    @cached_property
    def target(self) -> float:
        """Tokens of the real run."""
        return self.spec.target.tokens or float(sum(self.tokens.values()))

    @cached_property
    def epochs(self) -> dict[str, float]:
        """How often each domain may be repeated."""
        return {name: group.max_epochs for name, group in self.spec.domains.items()}

    @cached_property
    def caps(self) -> dict[str, float]:
        """The largest share that each domain may have."""
        return mixture_design.caps(self.tokens, self.target, self.epochs)

    def windows(self, draw: int = 0, steps: int | None = None) -> dict[str, Window]:
        """Return which rows of each domain of the pool a run of so many steps draws from.

        Draw 0 is the prefix. Each other one lies one row further in every part of the domain: about
        the same documents, but in another order, for the order follows from what a part holds.
        """
        windows: dict[str, Window] = {}
        for name, parts in strata(self.pool).items():
            rows = self.rows[name]
            size = min(rows, self.matched(name, steps))
            further = -(-rows // min(part.available for part in parts))
            first = draw * further % (rows - size + 1)
            windows[name] = Window(first, first + size)
        return windows

    def matched(self, domain: str, steps: int | None = None) -> int:
        """Return how many rows of a domain stand for the whole of it in a proxy's run.

        steps: of the run (None: the proxy's).
        """
        if not self.spec.proxy.matched:
            return self.rows[domain]
        tokens = self.tokens[next(n for n in self.tokens if domain in (n, *self._variants(n)))]
        scale = self.spec.proxy.tokens / self.target
        scale *= 1 if steps is None else steps / self.spec.proxy.steps
        return max(1, round(tokens * scale / self.spec.proxy.msl))

    @cached_property
    def once(self) -> tuple[float, ...]:
        """The share at which a proxy has read a domain once, by domain."""
        total = self.spec.proxy.steps * self.spec.proxy.batch
        windows = self.windows()
        return tuple(windows[name].last / total for name in self.spec.domains)

    @cached_property
    def current(self) -> dict[str, float]:
        """The mixture in use: as the spec says, or all domains as they are, under their caps."""
        if self.spec.current is not None:
            total = sum(self.spec.current.values())
            return {name: self.spec.current[name] / total for name in self.spec.domains}
        return natural(self.tokens)

    @cached_property
    def uniform(self) -> dict[str, float]:
        """The uniform mixture, as far as caps let it."""
        return unimax(self.tokens, self.target, self.epochs)

    def notes(self) -> list[str]:
        """Tell of domains of which proxies have fewer rows than stand for the whole."""
        few = [
            f"domain {name}: {rows:,} rows are there, {self.matched(name):,} would stand for the "
            "real run's; proxies repeat it more often than the real run"
            for name, rows in self.rows.items()
            if self.spec.proxy.matched and rows < self.matched(name)
        ]
        return [*self.remarks, *few]

    def single(self, mixture: Mixture, draw: int) -> Trial:
        """Return the trial of one mixture in one phase; draws have weights of their own."""
        proxy, seed = self.spec.proxy, self.spec.proxy.seed + draw
        windows = self.windows(draw)
        portion = Portion(mixture.name, mixture.shares, proxy.steps, proxy.batch, windows)
        return Trial(mixture.name, mixture.role, mixture.shares, seed, proxy.size, (portion,), draw)

    def scaled(self, mixture: Mixture, draw: int, scale: Scale) -> Trial:
        """Return the trial of one mixture at another size or length."""
        plain, steps = self.single(mixture, draw), scale.steps or self.spec.proxy.steps
        portion = replace(plain.portions[0], steps=steps, windows=self.windows(draw, steps))
        name = f"{mixture.name}-{scale.size}-{steps}"
        return replace(
            plain, name=name, role="scale", size=scale.size, portions=(portion,), level=scale.size
        )

    def _variants(self, name: str) -> list[str]:
        return [fim_domain(name, rate) for rate in self.spec.factors.permuted]


def design(ground: Ground) -> list[Trial]:
    """Return the trials that the law is fitted to; all but replicates and anchors are of draw 0."""
    plan = ground.spec.swarm
    mixtures = mixture_design.design(
        ground.tokens,
        target=ground.target,
        epochs=ground.epochs,
        count=plan.count,
        replicates=plan.replicates,
        seed=plan.seed,
        alpha=plan.alpha,
        minimum=plan.minimum,
        anchors=plan.anchors,
    )
    return [ground.single(mixture, mixture.seed) for mixture in mixtures]


def scales(ground: Ground, designed: Sequence[Trial]) -> list[Trial]:
    """Return the design's first mixtures, and repeats of its centre, at each further scale."""
    every: list[Trial] = []
    for scale in ground.spec.scales:
        first = [trial for trial in designed if trial.draw == 0][: scale.count]
        again = [trial for trial in designed if trial.role == "replicate"][: scale.replicates]
        every += [
            ground.scaled(Mixture(trial.name, trial.shares), trial.draw, scale)
            for trial in [*first, *again]
        ]
    return every


def checks(ground: Ground, chosen: Mapping[str, Shares]) -> list[Trial]:
    """Return trials of chosen mixtures, of draws that no run of the fit has, and at other sizes."""
    spec = ground.spec.checks
    every: list[Trial] = []
    for number in range(spec.seeds):
        for name, shares in chosen.items():
            mixture = Mixture(f"check-{name}-{number + 1}", dict(shares), "check")
            trial = ground.single(mixture, ground.spec.swarm.replicates + 1 + number)
            every.append(replace(trial, factor="check", level=name))
            if name != "pareto":
                every += [
                    replace(every[-1], name=f"{trial.name}-{size}", size=size)
                    for size in spec.sizes
                ]
    return every
