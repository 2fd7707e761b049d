"""Trials of factors: what varies besides shares, at the centre mixture and at equal tokens.

FIM rate of code; order of language and code; replay of language in a last third of code; how often
one domain is gone through; CrystalCoder's third phase. Each level is run once for each draw.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from crystalmix.mixtures.ablations.design import Mixture
from crystalmix.mixtures.ablations.published_mixtures import crystal, published_rows
from crystalmix.mixtures.ablations.small_manifest import Portion, Window
from crystalmix.mixtures.ablations.spec import FIM_SECOND, FIM_THIRD, fim_domain
from crystalmix.mixtures.ablations.trials import Ground, Trial

Shares = Mapping[str, float]
Stages = Sequence[tuple[Shares, float]]
REPLAYED = 3  # the last third of a run is the one that replays
REPLAY = 0.1  # of the language, in the third phase of `crystal-3`
ROUNDED = 2  # rows that a part may get beyond its share: mixtures.manifest.exact_order.PREFIX_BOUND


def factors(ground: Ground) -> list[Trial]:
    """Return the trials of all factors at the centre mixture."""
    spec = ground.spec.factors
    levels: list[Trial] = []
    for number in range(spec.seeds):
        levels += _fim(ground, number)
        levels += [_order(ground, order, number) for order in spec.order]
        levels += [_replay(ground, share, number) for share in spec.replay]
        levels += [_epochs(ground, epochs, number) for epochs in spec.epochs]
        levels += _third_phase(ground, number) if spec.third_phase else []
    own = ground.spec.proxy.size
    return [
        trial if size == own else replace(trial, size=size, name=f"{trial.name}-{size}")
        for size in spec.sizes or (own,)
        for trial in levels
    ]


def _fim(ground: Ground, draw: int) -> list[Trial]:
    """Return the centre with all code permuted at each rate.

    A draw has rows of its own. Variants of a domain are shuffled apart, so that rates read other
    rows of it: one sample of few rows for all draws would be part of every difference.
    """
    code = ground.spec.of_kind("code")
    arms: dict[str, Stages] = {}
    for rate in ground.spec.factors.fim_rate:
        shares = {
            fim_domain(name, rate) if name in code else name: share
            for name, share in ground.uniform.items()
        }
        arms[f"{rate:g}"] = [(shares, 1.0)]
    windows = _apart(ground, draw, list(arms.values()))
    return [
        _staged(ground, "fim", level, draw, stages, (), windows) for level, stages in arms.items()
    ]


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
    rows = ground.uniform[name] * proxy.steps * proxy.batch
    last = max(1, min(ground.rows[name], round(rows / epochs)))
    mixture = Mixture(f"epochs-{epochs}-{draw + 1}", ground.uniform, "design")
    trial = ground.single(mixture, draw)
    portions = tuple(
        replace(portion, windows={**portion.windows, name: Window(0, last)})
        for portion in trial.portions
    )
    level = str(epochs)
    return replace(trial, role="factor", factor="epochs", level=level, portions=portions)


def _third_phase(ground: Ground, draw: int) -> list[Trial]:
    """Return CrystalCoder's three phases, and its first two with the second as much longer.

    At the published shares, lengths and FIM rates; a draw has rows of its own, which both share.
    """
    code, lengths = ground.spec.of_kind("code"), published_rows()
    kinds = {name: group.kind for name, group in ground.spec.domains.items()}
    first, second, third = (
        {
            fim_domain(name, rate) if name in code else name: share
            for name, share in crystal(ground.tokens, phase, kinds).items()
            if share
        }
        for phase, rate in (("phase1", 0.0), ("phase2", FIM_SECOND), ("phase3", FIM_THIRD))
    )
    one, two, three = (rows / sum(lengths) for rows in lengths)
    arms: dict[str, Stages] = {
        "without": [(first, one), (second, two + three)],
        "with": [(first, one), (second, two), (third, three)],
    }
    windows = _apart(ground, draw, list(arms.values()))
    decay = ground.spec.factors.decay
    return [
        replace(_staged(ground, "third_phase", level, draw, stages, (), windows), decay=decay)
        for level, stages in arms.items()
    ]


def _apart(ground: Ground, draw: int, arms: Sequence[Stages]) -> dict[str, Window]:
    """Return windows that hold what any of the arms reads, other rows for each draw if there are.

    Where a domain has fewer rows than that, draws overlap, or all read it whole.
    """
    proxy, needs = ground.spec.proxy, dict[str, int]()
    for stages in arms:
        asked = dict[str, int]()
        for shares, size in stages:
            for name, share in shares.items():
                rows = share / sum(shares.values()) * size * proxy.steps * proxy.batch
                asked[name] = asked.get(name, 0) + round(rows) + ROUNDED + proxy.batch
        needs |= {name: max(rows, needs.get(name, 0)) for name, rows in asked.items()}
    windows: dict[str, Window] = {}
    for name, rows in ground.rows.items():
        need = min(rows, needs.get(name, rows))
        first = draw * need % (rows - need + 1)
        windows[name] = Window(first, first + need)
    return windows


def _staged(
    ground: Ground,
    factor: str,
    level: str,
    draw: int,
    stages: Stages,
    replayed: tuple[str, ...] = (),
    windows: Mapping[str, Window] | None = None,
) -> Trial:
    """Return a trial of one phase after the other; each goes on where the one before ended.

    stages: shares, and how much of the run. replayed: domains whose rows the last phase sees again.
    windows: that it draws from, by default those that stand for the real run's rows.
    """
    name = f"{factor}-{level}-{draw + 1}"
    whole = windows or ground.windows(draw)
    portions = tuple(_portions(ground, name, whole, stages, replayed))
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
    whole: Mapping[str, Window],
    stages: Stages,
    replayed: tuple[str, ...],
) -> Iterator[Portion]:
    proxy = ground.spec.proxy
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
