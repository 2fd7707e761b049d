"""Trials: the runs of an ablation, as portions of the pool that all of them share.

The swarm's design and repeats of its centre, the checks of a recommendation, and factors other than
shares (FIM rate, order of phases, replay, epochs), which are crossed at the centre mixture only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mixtures import presets, swarm
from mixtures.ablation import Ablation, fim_domain
from mixtures.manifest import Manifest
from mixtures.remix import Portion, Window
from mixtures.swarm import Mixture

Shares = Mapping[str, float]
CHECKED = 3  # mixtures that are checked at every size: recommended, current, uniform
REPLAY = 0.1  # of the language, in the third phase of `crystal-3`
ROUNDED = 2  # rows that a part may get beyond its share: mixtures.order.PREFIX_BOUND
REPLAYED = 3  # the last third of a run is the one that replays


@dataclass(frozen=True)
class Trial:
    """One run: shares of all it consumes, seed of weights, size, and its phases.

    draw: which rows of each domain it draws from, 0 being the first. factor, level: what is varied
    besides shares, and how; empty in the swarm.
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


@dataclass(frozen=True)
class Ground:
    """What all trials stand on: the spec and the pool of rows that the proxies share."""

    spec: Ablation
    pool: Manifest

    @cached_property
    def rows(self) -> dict[str, int]:
        """Rows that the pool holds of each of its domains."""
        return {part.domain: part.available for part in self.pool.parts}

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
        return swarm.caps(self.tokens, self.target, self.epochs)

    def windows(self, draw: int = 0) -> dict[str, Window]:
        """Return which rows of each domain of the pool a run draws from.

        Draw 0 is the prefix. Each other one lies one row further: about the same documents, but in
        another order, for the order follows from what a part holds.
        """
        told: dict[str, Window] = {}
        for name, rows in self.rows.items():
            size = min(rows, self.matched(name))
            first = draw % (rows - size + 1)
            told[name] = Window(first, first + size)
        return told

    def matched(self, domain: str) -> int:
        """Return how many rows of a domain stand for the whole of it in a proxy's run."""
        if not self.spec.proxy.matched:
            return self.rows[domain]
        tokens = self.tokens[next(n for n in self.tokens if domain in (n, *self._variants(n)))]
        scale = self.spec.proxy.tokens / self.target
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
        return presets.natural(self.tokens)

    @cached_property
    def uniform(self) -> dict[str, float]:
        """The uniform mixture, as far as caps let it."""
        return presets.unimax(self.tokens, self.target, self.epochs)

    def notes(self) -> list[str]:
        """Tell of domains of which proxies have fewer rows than stand for the whole."""
        return [
            f"domain {name}: {rows:,} rows are there, {self.matched(name):,} would stand for the "
            "real run's; proxies repeat it more often than the real run"
            for name, rows in self.rows.items()
            if self.spec.proxy.matched and rows < self.matched(name)
        ]

    def single(self, mixture: Mixture, draw: int) -> Trial:
        """Return the trial of one mixture in one phase; draws have weights of their own."""
        proxy, seed = self.spec.proxy, self.spec.proxy.seed + draw
        windows = self.windows(draw)
        portion = Portion(mixture.name, mixture.shares, proxy.steps, proxy.batch, windows)
        return Trial(mixture.name, mixture.role, mixture.shares, seed, proxy.size, (portion,), draw)

    def _variants(self, name: str) -> list[str]:
        return [fim_domain(name, rate) for rate in self.spec.factors.fim_rate]


def design(ground: Ground) -> list[Trial]:
    """Return the trials that the law is fitted to; all but the replicates are of one draw."""
    plan = ground.spec.swarm
    mixtures = swarm.design(
        ground.tokens,
        target=ground.target,
        epochs=ground.epochs,
        count=plan.count,
        replicates=plan.replicates,
        seed=plan.seed,
        alpha=plan.alpha,
        minimum=plan.minimum,
    )
    again = iter(range(1, 1 + plan.replicates))
    return [
        ground.single(mixture, next(again) if mixture.role == "replicate" else 0)
        for mixture in mixtures
    ]


def checks(ground: Ground, chosen: Mapping[str, Shares]) -> list[Trial]:
    """Return trials of chosen mixtures, of draws that no run of the fit has, and at other sizes."""
    asked = ground.spec.checks
    told: list[Trial] = []
    for number in range(asked.seeds):
        for name, shares in chosen.items():
            mixture = Mixture(f"check-{name}-{number + 1}", dict(shares), "check")
            trial = ground.single(mixture, ground.spec.swarm.replicates + 1 + number)
            told.append(replace(trial, factor="check", level=name))
            if name != "pareto":
                told += [
                    replace(told[-1], name=f"{trial.name}-{size}", size=size)
                    for size in asked.sizes
                ]
    return told


def factors(ground: Ground) -> list[Trial]:
    """Return the trials of all factors at the centre mixture."""
    asked = ground.spec.factors
    told: list[Trial] = []
    for number in range(asked.seeds):
        told += [_fim(ground, rate, number) for rate in asked.fim_rate]
        told += [_order(ground, order, number) for order in asked.order]
        told += [_replay(ground, share, number) for share in asked.replay]
        told += [_epochs(ground, epochs, number) for epochs in asked.epochs]
    return told


def _fim(ground: Ground, rate: float, draw: int) -> Trial:
    """Return the centre with all code permuted at a rate."""
    code = ground.spec.of_kind("code")
    shares = {
        fim_domain(name, rate) if name in code else name: share
        for name, share in ground.uniform.items()
    }
    return _staged(ground, "fim", f"{rate:g}", draw, [(shares, 1.0)])


def _order(ground: Ground, order: str, draw: int) -> Trial:
    """Return the centre, its domains in an order, the totals always the same.

    `mixed` has two phases too, for comparison. `crystal`: half of the language alone, then all
    else. `crystal-3`: the code in two phases, the last with a tenth of the language.
    """
    language = {n: ground.uniform[n] for n in ground.spec.of_kind("language")}
    code = {n: ground.uniform[n] for n in ground.spec.of_kind("code")}
    half = {name: share / 2 for name, share in language.items()}
    some, few = (
        {**{n: s * part for n, s in language.items()}, **{n: s / 2 for n, s in code.items()}}
        for part in (1 / 2 - REPLAY, REPLAY)
    )
    stages = {
        "mixed": [{n: s / 2 for n, s in ground.uniform.items()}] * 2,
        "language-then-code": [language, code],
        "code-then-language": [code, language],
        "crystal": [half, {**half, **code}],
        "crystal-3": [half, some, few],
    }[order]
    weighed = [(stage, sum(stage.values())) for stage in stages]
    return _staged(ground, "order", order, draw, weighed)


def _replay(ground: Ground, share: float, draw: int) -> Trial:
    """Return the centre, then a third of code in which a share of language is replayed."""
    of_kind = ground.spec.of_kind
    language, code = (
        {name: ground.uniform[name] for name in of_kind(kind)} for kind in ("language", "code")
    )
    scale = {"language": share / sum(language.values()), "code": (1 - share) / sum(code.values())}
    last = {name: value * scale["language"] for name, value in language.items()} if share else {}
    last |= {name: value * scale["code"] for name, value in code.items() if share < 1}
    stages = [(ground.uniform, (REPLAYED - 1) / REPLAYED), (last, 1 / REPLAYED)]
    return _staged(ground, "replay", f"{share:g}", draw, stages, replayed=tuple(language))


def _epochs(ground: Ground, epochs: int, draw: int) -> Trial:
    """Return the centre with one domain cut to so few rows that it is gone through `epochs` times.

    All other domains, and the shares, stay as they are.
    """
    proxy, name = ground.spec.proxy, ground.spec.factors.repeated or ""
    asked = ground.uniform[name] * proxy.steps * proxy.batch
    last = max(1, min(ground.rows[name], round(asked / epochs)))
    mixture = Mixture(f"epochs-{epochs}-{draw + 1}", ground.uniform, "design")
    trial = ground.single(mixture, draw)
    portions = tuple(
        replace(portion, windows={**portion.windows, name: Window(0, last)})
        for portion in trial.portions
    )
    level = str(epochs)
    return replace(trial, role="factor", factor="epochs", level=level, portions=portions)


def _staged(
    ground: Ground,
    factor: str,
    level: str,
    draw: int,
    stages: Sequence[tuple[Shares, float]],
    replayed: tuple[str, ...] = (),
) -> Trial:
    """Return a trial of one phase after the other; each goes on where the one before ended.

    stages: shares, and how much of the run. replayed: domains whose rows the last phase sees again.
    """
    name = f"{factor}-{level}-{draw + 1}"
    portions = tuple(_portions(ground, name, draw, stages, replayed))
    total = sum(portion.steps for portion in portions)
    shares: dict[str, float] = {}
    for portion in portions:
        for domain, share in portion.shares.items():
            part = share / sum(portion.shares.values()) * portion.steps / total
            shares[domain] = shares.get(domain, 0.0) + part
    proxy = ground.spec.proxy
    seed, size = proxy.seed + draw, proxy.size
    return Trial(name, "factor", shares, seed, size, portions, draw, factor, level)


def _portions(
    ground: Ground,
    name: str,
    draw: int,
    stages: Sequence[tuple[Shares, float]],
    replayed: tuple[str, ...],
) -> Iterator[Portion]:
    proxy, whole = ground.spec.proxy, ground.windows(draw)
    taken = {name: window.first for name, window in whole.items()}
    gone, done = 0.0, 0
    for number, (shares, size) in enumerate(stages, start=1):
        gone += size
        steps = round(proxy.steps * gone) - done
        done += steps
        windows = dict(whole)
        for domain, share in shares.items():
            rows = round(share / sum(shares.values()) * steps * proxy.batch) + ROUNDED
            first, last = taken[domain], taken[domain] + rows
            if domain in replayed and number == len(stages):
                windows[domain] = Window(whole[domain].first, max(whole[domain].first + 1, first))
            elif last <= whole[domain].last:
                windows[domain] = Window(first, last)
            taken[domain] = min(last, whole[domain].last)
        phase = name if len(stages) == 1 else f"{name}-{number}"
        yield Portion(phase, shares, steps, proxy.batch, windows)
