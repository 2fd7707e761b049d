"""Recipes: what to build, as checked dataclasses read from YAML.

A recipe says *what*: sources, domains (packed and shuffled folders of rows), and phases that mix
domains by weight. *Where* and *how fast* are flags.
"""

import re
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

from mixtures import yamlfile
from mixtures.order import integer_weights
from prep.duplicates import Duplicates
from prep.errors import RecipeError, UsageError
from prep.fim import FimSettings
from prep.pack import PackSettings
from prep.sources import Source
from prep.tokens import TokenizerSettings

BUNDLED = Path(__file__).parent / "recipes"
SUM_TOLERANCE = Fraction(1, 10**9)
PLACES = 18  # decimal places of a weight
NAME = re.compile(r"[\w+-][\w.+-]*")  # names of sources, domains and phases are folders' names
NAME_RULE = "use letters, digits and _ . + -, no dot first"
DEFAULT_MAX_EPOCHS = 4.0  # Muennighoff et al. 2023: repeats beyond about four add little


@dataclass(frozen=True)
class Domain:
    """One folder of rows: documents of its sources, packed, permuted per epoch, shuffled.

    epochs: how many variants with fresh FIM cuts are made. tokens: how many tokens the domain is
    expected to hold, for `plan` before anything is built.
    """

    __pydantic_config__: ClassVar[Any] = yamlfile.STRICT
    sources: tuple[str, ...]
    fim: FimSettings | None = None
    epochs: int = 1
    shuffle: bool = True
    tokens: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs: must be at least 1, got {self.epochs}")
        if self.epochs > 1 and self.fim is None:
            raise ValueError(
                "epochs: without fim every epoch would hold the same rows; "
                "a part repeats by its weight: drop epochs or set fim"
            )
        if not self.sources:
            raise ValueError("sources: must name at least one source, got none")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources: names one source twice: {', '.join(self.sources)}")


@dataclass(frozen=True)
class Part:
    """One line of a mixture: a domain (or some of its shards or rows) and its weight in rows."""

    __pydantic_config__: ClassVar[Any] = yamlfile.STRICT
    domain: str
    weight: float
    name: str = ""
    half: Literal["even", "odd"] | None = None
    subset: tuple[float, float] | None = None
    max_epochs: float = DEFAULT_MAX_EPOCHS

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight: must be positive (leave the part out), got {self.weight}")
        exact(self)
        if not self.max_epochs > 0:
            raise ValueError(f"max_epochs: must be positive, got {self.max_epochs}")
        if self.subset is not None and not 0 <= self.subset[0] < self.subset[1] <= 1:
            raise ValueError(f"subset: must be 0 <= from < to <= 1, got {list(self.subset)}")
        if not self.name:
            object.__setattr__(self, "name", self._default_name())

    def _default_name(self) -> str:
        half = f"-{self.half}" if self.half else ""
        subset = f"-{self.subset[0]:g}-{self.subset[1]:g}" if self.subset else ""
        return f"{self.domain}{half}{subset}"


@dataclass(frozen=True)
class Phase:
    """Parts, steps and batch size (rows per step): what one manifest seals."""

    __pydantic_config__: ClassVar[Any] = yamlfile.STRICT
    steps: int
    batch: int
    parts: tuple[Part, ...]
    normalise: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        for key in ("steps", "batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: must be positive, got {getattr(self, key)}")
        names = [part.name for part in self.parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"parts: {twice[0]} stands twice; give one of them another name")
        if not self.parts:
            raise ValueError("parts: must have at least one part, got none")
        total = sum(map(exact, self.parts), Fraction(0))
        if abs(total - 1) > SUM_TOLERANCE and not self.normalise:
            raise ValueError(
                f"parts: weights must sum to 1, got {float(total)}; "
                "mend them or set `normalise: true`"
            )
        try:
            self.integer_weights()
        except ValueError as error:
            raise ValueError(f"parts: {error}") from None

    @property
    def rows(self) -> int:
        """Rows that the phase consumes."""
        return self.steps * self.batch

    def integer_weights(self) -> list[int]:
        """Return the weights as exact integers over their sum."""
        return integer_weights([exact(part) for part in self.parts])


@dataclass(frozen=True)
class Recipe:
    """A whole build."""

    __pydantic_config__: ClassVar[Any] = yamlfile.STRICT
    name: str
    seed: int
    tokenizer: TokenizerSettings
    sources: dict[str, Source]
    domains: dict[str, Domain]
    phases: dict[str, Phase]
    rows: PackSettings = field(default_factory=PackSettings)
    duplicates: Duplicates = field(default_factory=Duplicates)
    file: Path | None = field(default=None, init=False, compare=False)  # where it was read

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases: must have at least one phase, got none")
        for section in ("sources", "domains", "phases"):
            for name in getattr(self, section):
                if not NAME.fullmatch(name):
                    raise ValueError(f"{section}: {name!r} can't name a folder; {NAME_RULE}")

    def content(self) -> dict[str, Any]:
        """Return the recipe as JSON."""
        return {key: value for key, value in asdict(self).items() if key != "file"}

    def fault(self, message: str, *steps: str | int) -> RecipeError:
        """Return an error about a value that proved wrong after loading, with file and line."""
        where = ".".join(map(str, steps))
        if self.file is None:
            return RecipeError(f"{where}: {message}")
        line = yamlfile.line_of(yamlfile.load(self.file), steps)
        return RecipeError(f"{self.file}:{line}: {where}: {message}")


def exact(part: Part) -> Fraction:
    """Return a part's weight as the decimal that was written."""
    try:
        value = Fraction(Decimal(repr(part.weight)))
    except (InvalidOperation, OverflowError, ValueError):
        raise ValueError(f"weight: must be a finite number, got {part.weight}") from None
    if (value * 10**PLACES).denominator != 1:
        raise ValueError(f"weight: has over {PLACES} decimal places ({part.weight}); round it")
    return value


def find(name: str) -> Path:
    """Return the file of a recipe: a path, or the name of a bundled one."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    bundled = BUNDLED / f"{name}.yaml"
    if bundled.exists():
        return bundled
    names = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.yaml")))
    raise UsageError(f"{name}: no such recipe file, and no bundled recipe (there are {names})")


def load(name: str | Path, tokenizer: Path | None = None) -> Recipe:
    """Load a recipe by path or bundled name; `tokenizer` replaces the tokenizer's path.

    Raises RecipeError with file, line and path of the first fault.
    """
    path = find(str(name))
    content = yamlfile.load(path)
    _name_entries(path, content)
    recipe = yamlfile.check(path, content, Recipe)
    _check_names(path, content, recipe)
    chosen = replace(recipe.tokenizer, path=str(_tokenizer(path, recipe, tokenizer)))
    recipe = replace(recipe, tokenizer=chosen)
    object.__setattr__(recipe, "file", path)  # a field that YAML can't set
    return recipe


def _tokenizer(path: Path, recipe: Recipe, given: Path | None) -> Path | str:
    if given is not None:
        return given
    beside = path.parent / recipe.tokenizer.path
    return beside if beside.exists() else recipe.tokenizer.path


def _name_entries(path: Path, content: Any) -> None:  # noqa: ANN401
    """Give sources and phases the name of their key."""
    for section in ("sources", "phases"):
        entries = content.get(section) if isinstance(content, dict) else None
        for name, entry in (entries or {}).items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict):
                if "name" in entry:
                    line = yamlfile.line_of(content, (section, name, "name"))
                    raise RecipeError(f"{path}:{line}: {section}.{name}.name: is no known key")
                entry["name"] = str(name)


def _check_names(path: Path, content: Any, recipe: Recipe) -> None:  # noqa: ANN401
    """Refuse a domain of an unknown source and a part of an unknown domain."""
    for name, domain in recipe.domains.items():
        for i, source in enumerate(domain.sources):
            if source not in recipe.sources:
                steps = ("domains", name, "sources", i)
                raise _unknown(path, content, steps, source, recipe.sources)
    for name, phase in recipe.phases.items():
        for i, part in enumerate(phase.parts):
            if part.domain not in recipe.domains:
                steps = ("phases", name, "parts", i, "domain")
                raise _unknown(path, content, steps, part.domain, recipe.domains)


def _unknown(
    path: Path,
    content: Any,  # noqa: ANN401
    steps: tuple[str | int, ...],
    found: str,
    known: dict[str, Any],
) -> RecipeError:
    where = ".".join(map(str, steps))
    kind = "source" if steps[0] == "domains" else "domain"
    return RecipeError(
        f"{path}:{yamlfile.line_of(content, steps)}: {where}: "
        f"no {kind} is called {found!r} (there are {', '.join(known)})"
    )
