"""Recommendation of a mixture from a table of runs that were trained elsewhere.

What it is for comes as a small YAML file and as KEY=VALUE assignments (`Aims`): the weight of each
target, how many tokens there are and how often they may be repeated, the mixture in use.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crystalmix.mixtures.ablations import published_mixtures
from crystalmix.mixtures.ablations.design import caps
from crystalmix.mixtures.laws.across_scales import AcrossScales, across_scales, scale_lines
from crystalmix.mixtures.laws.fit import Fit
from crystalmix.mixtures.laws.recommend import Recommendation, RecommendSettings, recommend
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Content, Strict

ANY_EPOCHS = 4.0
ONE_SCALE = (
    "runs of one size and one number of tokens: how well their valued losses rank mixtures for the "
    "real run was not measured (published tables: rho .74 from 1M to 1B parameters)"
)


@dataclass(frozen=True)
class Aims(Strict):
    """What a mixture is to be good for, and what it must keep to.

    value: weight of each target in what is minimised (empty: all alike; those left out: 0).
    standardise: divide each target's loss by its spread over the runs first. tokens: how many there
    are of each domain; target_tokens: of the real run; max_epochs: how often each domain, or one of
    them, may be gone through. parameters: of the real run, for a table of several sizes. least,
    most: bounds of single domains' shares. minimum: the least share of any domain. current: the
    mixture in use, to be better than (default: the natural one, in proportion to `tokens`; without
    these the uniform one). kl: weight, in units of the loss, of the divergence from the natural
    mixture (without `tokens`: from the current one).
    """

    value: dict[str, float] = field(default_factory=dict)
    standardise: bool = False
    tokens: dict[str, float] = field(default_factory=dict)
    target_tokens: float | None = None
    parameters: float | None = None
    max_epochs: float | dict[str, float] = ANY_EPOCHS
    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    minimum: float = 0.0
    current: dict[str, float] | None = None
    kl: float = 0.0
    least_rho: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target_tokens is not None and not self.tokens and self.parameters is None:
            raise ValueError("target_tokens: needs `tokens`, how many there are of each domain")


@dataclass(frozen=True)
class TableMixture:
    """A mixture recommended from a table.

    law: that it follows from, the best convex one. caps: the largest share of each domain. epochs:
    how often the real run goes through each domain, empty where its tokens are not given. across:
    what several sizes say together, None for a table of one.
    """

    law: str
    caps: dict[str, float]
    epochs: dict[str, float]
    recommendation: Recommendation
    across: AcrossScales | None = None

    def content(self) -> Content:
        """Return everything as JSON has it."""
        return {
            "law": self.law,
            "caps": self.caps,
            "epochs": self.epochs,
            "across_scales": None if self.across is None else asdict(self.across),
            **self.recommendation.content(),
        }

    def lines(self) -> Iterator[str]:
        """Yield the mixture as a table, its gain, and a refusal where there is one."""
        yield f"best mixture, by the law {self.law}:"
        yield from mixture_lines(self.recommendation, self.caps, self.epochs)
        yield from [ONE_SCALE] if self.across is None else scale_lines(self.across)


def read_aims(path: Path | None, overrides: Sequence[str] = ()) -> Aims:
    """Read aims from a YAML file and assignments over it; RecipeError names line, key, value."""
    content = {} if path is None else yaml_settings.load(path)
    place = path if path is not None else Path("--set")
    return yaml_settings.check(place, yaml_settings.override(content, overrides), Aims)


def recommend_mixture(fits: Sequence[Fit], aims: Aims) -> TableMixture:
    """Recommend a mixture by the best convex law of a table, best law first.

    Raises RefusalError where no law is convex or the bounds leave no mixture, UsageError for names
    that the table does not have.
    """
    convex = [fitted for fitted in fits if fitted.law.convex and fitted.kind != "linear"]
    if not convex:
        raise RefusalError("--recommend: needs a law with one optimum; fit concave or effective")
    fitted, domains = convex[0], convex[0].domains
    chosen = _at_target(fitted, aims)
    _check_names(chosen, aims)
    high = dict.fromkeys(domains, 1.0)
    by_tokens: dict[str, float] | None = None  # the natural mixture
    epochs: dict[str, float] = {}
    if aims.tokens:
        tokens = {name: aims.tokens[name] for name in domains}
        by_tokens = published_mixtures.natural(tokens)
        if aims.target_tokens is not None:
            high = caps(tokens, aims.target_tokens, _max_epochs(aims, domains))
    high = {name: min(high[name], aims.most.get(name, 1.0)) for name in domains}
    current = aims.current or by_tokens or dict.fromkeys(domains, 1 / len(domains))
    settings = RecommendSettings(
        standardise=aims.standardise,
        minimum=aims.minimum,
        least=aims.least,
        kl=aims.kl,
        least_rho=aims.least_rho,
        seed=aims.seed,
    )
    value = aims.value or dict.fromkeys(chosen.targets, 1.0)
    best = recommend(chosen, value, high, current, settings, towards=by_tokens)
    if aims.target_tokens is not None and aims.tokens:
        epochs = {
            name: share * aims.target_tokens / aims.tokens[name]
            for name, share in best.shares.items()
        }
    target = (aims.parameters or 0.0, aims.target_tokens or 0.0)
    across = None if fitted.scales is None else across_scales(fitted, value, high, target, settings)
    return TableMixture(chosen.kind, high, epochs, best, across)


def _at_target(fitted: Fit, aims: Aims) -> Fit:
    """Return a joint law at the scale of the real run, any other law as it is."""
    if fitted.scales is None:
        return fitted
    if aims.parameters is None or aims.target_tokens is None:
        raise UsageError(
            "--recommend: the table's runs differ in size or tokens; say those of the real run, "
            "--set parameters=7e9 --set target_tokens=1.4e12"
        )
    return fitted.at(aims.parameters, aims.target_tokens)


def mixture_lines(
    best: Recommendation, most: Mapping[str, float], epochs: Mapping[str, float]
) -> list[str]:
    """Return a recommended mixture as a table, with its gain or the reason for none."""
    head = ["domain", "share", "interval", "as good", "current", "cap"]
    rows = [
        [
            name,
            f"{share:.4f}",
            _range(best.interval[name]),
            _range(best.flat[name]),
            f"{best.current[name]:.4f}",
            f"{most[name]:.4f}",
            *([f"{epochs[name]:.2f}"] if epochs else []),
        ]
        for name, share in best.shares.items()
    ]
    mean, low, high = best.gain
    return [
        *table(rows, [*head, "epochs"] if epochs else head),
        f"predicted gain over the current mixture: {mean:.4f} nats [{low:.4f}, {high:.4f}]",
        best.refusal or "recommended: better than the current mixture beyond the interval",
    ]


def _check_names(fitted: Fit, aims: Aims) -> None:
    for key, known in (
        ("value", fitted.targets),
        *((key, fitted.domains) for key in ("tokens", "least", "most", "current")),
        *([("max_epochs", fitted.domains)] if isinstance(aims.max_epochs, dict) else []),
    ):
        names = getattr(aims, key) or {}
        unknown = [name for name in names if name not in known]
        if unknown:
            close = yaml_settings.like(unknown[0], known)
            raise UsageError(f"{key}: the table has no {unknown[0]}{close}")
    missing = [name for name in fitted.domains if aims.tokens and name not in aims.tokens]
    if missing:
        raise UsageError(f"tokens: must name every domain of the table, lacks {missing[0]}")


def _max_epochs(aims: Aims, domains: Sequence[str]) -> dict[str, float]:
    if isinstance(aims.max_epochs, dict):
        return {name: aims.max_epochs.get(name, ANY_EPOCHS) for name in domains}
    return dict.fromkeys(domains, aims.max_epochs)


def _range(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3f}-{pair[1]:.3f}"
