"""Spec of an ablation: mixtures that small proxies compare for a real run, a checked YAML file.

The spec names a recipe whose domains are mixed; the recipe's phases play no part. What all proxies
share follows from both (`pool_recipe`), or is what a build of the recipe holds (`pool_of_build`).
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.atomic_files import beside
from crystalmix.prep.runtime.constraints import AtLeastOne, FromZero, Positive, Share, within
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.runtime.types import Content, Json, Strict

BUNDLED = Path(__file__).parent
POOL, HELD_OUT = "pool", "held-out"  # phases of the proxies' build
FIM_SECOND, FIM_THIRD = 0.9, 0.3  # of code in CrystalCoder's second and third phase
HELD_SHARE = 0.05  # of documents, where nothing else is said
HELD = ".valid"  # what a held-out domain's name ends in
FIM = ".fim-"
INFILL = ".infill"  # what a target of the middles of a domain's held-out rows ends in
STRATUM = ".from-"  # between a domain's name and that of its source, in a stratified pool
# Removed keys: the path, the value by which an older folder's ablation goes on, the remedy.
REMOVED = (
    (("proxy", "stack"), 1, "proxies train one by one"),
    (("residual",), False, "trees on residuals never improved what was recommended"),
)
ORDERS = ("mixed", "language-then-code", "code-then-language", "crystal", "crystal-3")


@dataclass(frozen=True)
class Group(Strict):
    """One domain of the simplex.

    kind: what it counts as where code is weighed against language, or comes after it. max_epochs:
    how often the real run may go through it. tokens: how many the real run has of it, where the
    recipe's raw files are a sample only. value: its weight in what is minimised.
    """

    kind: Literal["language", "code"] = "code"
    max_epochs: Positive = 4.0
    tokens: Positive | None = None
    value: Annotated[float, Field(ge=0)] = 1.0


@dataclass(frozen=True)
class TextTask(Strict):
    """Texts whose answers are a target beside the domains, in bits per byte.

    file: lines of JSON, beside the spec. prompt, answer: their keys; the loss is of the answer
    after its prompt. value: its weight in what is minimised, beside the domains'.
    """

    file: str
    prompt: str = "prompt"
    answer: str = "answer"
    value: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Target(Strict):
    """The real run: its tokens (None: as many as all domains hold), rows per step, its phase.

    parameters: of its model; with `scales` the mixture is recommended for that size.
    """

    tokens: Positive | None = None
    batch: AtLeastOne = 2112
    phase: str = "recommended"
    parameters: Positive | None = None


@dataclass(frozen=True)
class Scale(Strict):
    """Proxies of another size or length, to which one law is fitted together with the design.

    size: of the proxies. count: how many of the design's mixtures are trained so, its first ones.
    steps: of each (None: the proxy's). replicates: other seeds under which the centre is run again.
    """

    size: str
    count: AtLeastOne = 16
    steps: AtLeastOne | None = None
    replicates: FromZero = 0


@dataclass(frozen=True)
class Swarm(Strict):
    """Mixtures of the design, some of them again under other seeds, and the design's seed.

    replicates: other seeds under which the centre is run again. anchors: mixtures of the design
    that are run again beside it; with one at least, a seed's effect, a run's own noise and misfit
    are told apart.
    """

    count: AtLeastOne = 16
    replicates: FromZero = 4
    anchors: int = 1
    seed: int = 0
    alpha: Positive = 0.7
    minimum: float = 0.01


@dataclass(frozen=True)
class Proxy(Strict):
    """What every proxy is: a size, steps of `batch` rows of `msl` tokens, a low learning rate.

    vocab: pieces of the tokenizer that is trained for the proxies (None: the recipe's own).
    matched: draw from prefixes, so that domains are repeated as in the real run. held_out_rows: of
    each domain, on which losses are measured. spike: robust z from which a loss is an outlier.
    stratified: every run and every loss takes the sources of a domain in proportion to their rows.
    """

    size: str = "0.2M"
    steps: AtLeastOne = 300
    batch: AtLeastOne = 8
    msl: AtLeastOne = 128
    learning_rate: Positive = 0.004
    warmup: Annotated[float, within(0, 1, "[)")] = 0.05
    vocab: AtLeastOne | None = 1024
    seed: int = 1
    matched: bool = True
    held_out_rows: AtLeastOne = 128
    spike: Positive = 8.0
    stratified: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens a proxy is trained on."""
        return self.steps * self.batch * self.msl


@dataclass(frozen=True)
class Checks(Strict):
    """Runs that check a recommendation: mixtures x seeds at the proxy's size, and other sizes.

    pareto: also the best mixture where language counts twice as much. sizes: of the recommended,
    the uniform and the natural mixture again, such as ["1M"]. delta: nats of valued loss, within
    which two mixtures count as equal.
    """

    seeds: FromZero = 1
    pareto: bool = True
    sizes: tuple[str, ...] = ()
    delta: float = 0.01


@dataclass(frozen=True)
class Factors(Strict):
    """What is varied at the centre mixture besides shares; nothing where a list is empty.

    fim_rate: of rows of code, judged on infilling too. order: of language and code, at equal
    totals. replay: share of language in a last third of code. epochs: how often `repeated` is gone
    through for one share. third_phase: CrystalCoder's three phases against its first two, the
    second longer, at equal compute and published shares and FIM rates. decay: share of the steps of
    these, at their end, in which the learning rate falls. seeds: runs of each level, the same for
    all, which are compared in pairs. sizes: of the runs (empty: the proxy's).
    """

    fim_rate: tuple[Share, ...] = ()
    order: tuple[str, ...] = ()
    replay: tuple[Share, ...] = ()
    epochs: tuple[int, ...] = ()
    repeated: str | None = None
    third_phase: bool = False
    decay: Annotated[float, within(0, 1, "(]")] = 0.2
    seeds: AtLeastOne = 8
    sizes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.order if name not in ORDERS]
        if unknown:
            raise ValueError(f"order: must be of {', '.join(ORDERS)}, got {unknown[0]}")
        if self.epochs and (min(self.epochs) < 1 or self.repeated is None):
            raise ValueError(
                f"epochs: must be at least 1, `repeated` naming a domain, got {list(self.epochs)}"
            )

    @property
    def permuted(self) -> tuple[float, ...]:
        """The FIM rates of code that the pool holds, beside the recipe's own."""
        third = (FIM_SECOND, FIM_THIRD) if self.third_phase else ()
        return tuple(dict.fromkeys([*self.fim_rate, *third]))


@dataclass(frozen=True)
class Ablation(Strict):
    """A whole ablation; recipe: a path beside the spec, or a bundled name.

    build: a path beside the spec, to a build of the recipe whose rows are taken as they lie.
    current: shares of the mixture in use, which a recommendation has to beat (None: natural).
    held_out: the share of documents that losses are measured on, where the recipe has no `valid`
    (None: 0.05). scales: proxies of other sizes beside the design. tasks: further targets, by
    name, which every run is measured on.
    """

    name: str
    recipe: str
    domains: dict[str, Group]
    target: Target = field(default_factory=Target)
    swarm: Swarm = field(default_factory=Swarm)
    proxy: Proxy = field(default_factory=Proxy)
    checks: Checks = field(default_factory=Checks)
    factors: Factors = field(default_factory=Factors)
    current: dict[str, float] | None = None
    held_out: Annotated[float, within(0, 1, "()")] | None = None
    law: str = "concave"
    build: str | None = None
    scales: tuple[Scale, ...] = ()
    tasks: dict[str, TextTask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = sorted(set(self.tasks) & set(self.domains))
        if both:
            raise ValueError(f"tasks: {both[0]} is the name of a domain; take another")
        for scale in self.scales:
            if scale.count > self.swarm.count:
                raise ValueError(
                    f"scales: count must be at most swarm.count, {self.swarm.count}, "
                    f"got {scale.count}"
                )
        if len(self.domains) < 2:
            raise ValueError(f"domains: must name two at least, got {list(self.domains)}")
        if not any(one.value for one in (*self.domains.values(), *self.tasks.values())):
            raise ValueError("domains: some value must be above 0")
        if self.current is not None and set(self.current) != set(self.domains):
            raise ValueError(f"current: must give a share to each of {', '.join(self.domains)}")
        if self.factors.repeated not in {None, *self.domains}:
            raise ValueError(f"factors.repeated: is no domain: {self.factors.repeated}")
        self._check_build()
        kinds = {group.kind for group in self.domains.values()}
        staged = {name: getattr(self.factors, name) for name in ("order", "replay", "third_phase")}
        for name in [name for name, value in staged.items() if value and len(kinds) < 2]:
            raise ValueError(f"factors.{name}: needs domains of both kinds, language and code")

    def _check_build(self) -> None:
        """Refuse names of a pool's parts, and what needs rows packed anew over a build."""
        for name in self.domains:
            if STRATUM in name:
                raise ValueError(f"domains: {name}: must not hold {STRATUM!r}; take another name")
        if self.build is None:
            return
        if self.proxy.vocab is not None:
            raise ValueError(
                "proxy.vocab: must be null over a build, whose rows are of its own tokenizer, "
                f"got {self.proxy.vocab}"
            )
        if self.factors.permuted:
            key = "fim_rate" if self.factors.fim_rate else "third_phase"
            raise ValueError(f"factors.{key}: needs rows packed anew; drop it, or drop `build`")
        if self.proxy.stratified:
            raise ValueError(
                "proxy.stratified: rows of a build mix the sources of a domain; drop it, or `build`"
            )

    @property
    def value(self) -> dict[str, float]:
        """The weight of each target in what is minimised; they sum to 1."""
        every = {**self.domains, **self.tasks}
        total = sum(one.value for one in every.values())
        return {name: one.value / total for name, one in every.items()}

    @property
    def targets(self) -> tuple[str, ...]:
        """What every run is measured on: the domains, then the tasks."""
        return (*self.domains, *self.tasks)

    @property
    def infilled(self) -> tuple[str, ...]:
        """Domains on whose middles runs of factors are measured: those of code, with FIM."""
        return tuple(self.of_kind("code")) if self.factors.permuted else ()

    def of_kind(self, kind: str) -> list[str]:
        """Return the domains of a kind."""
        return [name for name, group in self.domains.items() if group.kind == kind]

    def content(self) -> Content:
        """Serialise the spec; keys that older folders do not name are omitted where unset."""
        content = asdict(self)
        if self.build is None:
            del content["build"]
        if not self.scales:
            del content["scales"]
        if self.target.parameters is None:
            del content["target"]["parameters"]
        if not self.tasks:
            del content["tasks"]
        if not self.proxy.stratified:
            del content["proxy"]["stratified"]
        if not self.factors.sizes:
            del content["factors"]["sizes"]
        if not self.factors.third_phase:
            del content["factors"]["third_phase"], content["factors"]["decay"]
        return content


def of_folder(path: Path, content: Json) -> Ablation:
    """Return the spec that an ablation's folder holds, without keys that were removed since."""
    return yaml_settings.check(path, without_removed(content), Ablation)


def without_removed(content: Json) -> Json:
    """Return a folder's spec without removed keys that have the value by which it goes on."""
    content = {key: dict(v) if isinstance(v, dict) else v for key, v in content.items()}
    for keys, harmless, _ in REMOVED:
        section = content if len(keys) == 1 else content.get(keys[0], {})
        if section.get(keys[-1], harmless) == harmless:
            section.pop(keys[-1], None)
    return content


def find(name: str) -> Path:
    """Return the file of a spec: a path, or the name of a bundled one."""
    return yaml_settings.find(name, BUNDLED, "no such spec file, and no bundled spec")


def load(name: str) -> tuple[Ablation, Recipe]:
    """Load a spec and the recipe that it names; RecipeError names line, key, rule and value."""
    path = find(name)
    content = yaml_settings.load(path)
    _refuse_removed(path, content)
    spec = yaml_settings.check(path, content, Ablation)
    recipe = recipes.load(beside(path, spec.recipe))
    for domain in spec.domains:
        if domain not in recipe.domains:
            line = yaml_settings.line_of(content, ("domains", domain))
            raise RecipeError(
                f"{path}:{line}: domains.{domain}: no domain of {recipe.file} is called so "
                f"(there are {', '.join(recipe.domains)})"
            )
        if recipe.domains[domain].split == "valid":
            raise RecipeError(f"{path}: domains.{domain}: is held out by {recipe.file}")
    if spec.held_out is not None and (spec.build is not None or recipe.valid):
        line = yaml_settings.line_of(content, ("held_out",))
        by = f"`valid` of {recipe.file}" if spec.build is None else f"the build {spec.build}"
        raise RecipeError(f"{path}:{line}: held_out: {by} decides which documents are; drop it")
    return spec, recipe


def _refuse_removed(path: Path, content: object) -> None:
    for keys, _, reason in REMOVED:
        section = content
        for key in keys[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and keys[-1] in section:
            line = yaml_settings.line_of(content, keys)
            raise RecipeError(
                f"{path}:{line}: {'.'.join(keys)}: was removed ({reason}); delete the line"
            )


def fim_domain(name: str, rate: float) -> str:
    """Return the name of the variant of a domain with another FIM rate."""
    return f"{name}{FIM}{rate:g}"


def domain_of(name: str) -> str:
    """Return the domain, or variant of one, to which a domain of the pool belongs.

    >>> domain_of("web.fim-0.3.from-css"), domain_of("python")
    ('web.fim-0.3', 'python')
    """
    return name.partition(STRATUM)[0]
