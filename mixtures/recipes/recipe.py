"""Recipes: what to build, as checked dataclasses read from YAML.

A recipe says *what*: sources, domains (packed and shuffled folders of rows), and phases that mix
domains by weight. *Where* and *how fast* are flags.
"""

import math
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from crystalmix.mixtures.manifest.exact_order import LIMIT
from crystalmix.mixtures.recipes import continuing
from crystalmix.mixtures.recipes.phase import Phase
from crystalmix.prep.chat.settings import ChatSettings
from crystalmix.prep.crystalcoder.modelzoo_shuffle import ZooShuffleSettings
from crystalmix.prep.documents.source import Source, label
from crystalmix.prep.filters.exact_duplicates import Duplicates
from crystalmix.prep.filters.upsample import Upsample
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.atomic_files import as_url, beside, is_url
from crystalmix.prep.runtime.errors import InputError, RecipeError, UsageError
from crystalmix.prep.runtime.types import Strict, frozen
from crystalmix.prep.tokenizer.tokenizer import SAMPLED, TokenizerSettings
from crystalmix.prep.tokenizer.tokenizer import load as load_tokenizer

BUNDLED = Path(__file__).parent
NAME = re.compile(r"[\w+-][\w.+-]*")  # names of sources, domains and phases are folders' names
LONGEST_NAME = 200  # bytes; file systems take 255
NAME_RULE = f"use letters, digits and _ . + -, no dot first, at most {LONGEST_NAME} bytes"
MOST_EPOCHS = 10_000  # of a domain, each of which is a folder
SHOWN = 40  # letters of a name that is too long


@frozen
class Domain(Strict):
    """One folder of rows: documents of its sources, packed, permuted per epoch, shuffled.

    epochs: how many variants with fresh FIM cuts are made. shuffle: over all shards and epochs by
    our own order, or as the original's shuffle would have with its settings. split: only the
    documents that the recipe's `valid` share holds out, or only the others. held_out: all of its
    documents are for validation, and no text of theirs may be trained on. tokens: how many
    tokens the domain is expected to hold, for `plan` before anything is built. rows: its own
    settings of rows; in a recipe file those that differ from the recipe's `rows`. chat: how its
    conversations are written, where its sources are of `format: chat`. upsample: how often its
    documents are taken, by a number that they have; the most times is the number of epochs.
    """

    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    fim: FimSettings | None = None
    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = 1
    shuffle: bool | ZooShuffleSettings = True
    split: Literal["train", "valid"] | None = None
    held_out: bool = False
    tokens: float | None = None
    rows: PackSettings | None = None
    chat: ChatSettings | None = None
    upsample: Upsample | None = None

    def __post_init__(self) -> None:
        if self.upsample is not None:
            self._check_upsample(self.upsample)
        elif self.epochs > 1 and self.fim is None:
            raise ValueError(
                "epochs: without fim every epoch would hold the same rows; "
                "a part repeats by its weight: drop epochs or set fim"
            )
        if self.held_out and self.split is not None:
            raise ValueError(
                "held_out: a split says already which documents are held out; drop one of the two"
            )
        if self.chat is not None and self.fim is not None:
            raise ValueError("fim: has no meaning for conversations; drop fim or chat")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources: names one source twice: {', '.join(self.sources)}")

    def _check_upsample(self, upsample: Upsample) -> None:
        """Refuse what can't go with copies of documents; take the epochs from the curve."""
        epochs = max(1, math.ceil(upsample.peak))
        if self.epochs not in (1, epochs):
            raise ValueError("epochs: follow from the curve of upsample; drop them")
        if self.validates:
            raise ValueError("upsample: repeats what is there to validate on; drop it")
        object.__setattr__(self, "epochs", epochs)

    @property
    def validates(self) -> bool:
        """Whether its documents are for validation."""
        return self.held_out or self.split == "valid"

    @property
    def zoo_shuffle(self) -> ZooShuffleSettings | None:
        """The settings of the original's shuffle, where it is set."""
        return self.shuffle if isinstance(self.shuffle, ZooShuffleSettings) else None


@frozen
class Recipe(Strict):
    """A whole build."""

    name: str
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)]  # as JSON holds exactly
    tokenizer: TokenizerSettings
    sources: dict[str, Source]
    domains: dict[str, Domain]
    phases: dict[str, Phase]
    rows: PackSettings = field(default_factory=PackSettings)
    duplicates: Duplicates = field(default_factory=Duplicates)
    valid: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of documents that a split holds out
    format: Literal[1, 2] = 1  # of 2, parts without `from` continue; of 1, they begin at the start
    file: Path | None = field(default=None, init=False, compare=False)  # where it was read

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases: must have at least one phase, got none")
        for section in ("sources", "domains", "phases"):
            for name in getattr(self, section):
                if not NAME.fullmatch(name) or len(name.encode()) > LONGEST_NAME:
                    shown = name if len(name) < SHOWN else f"{name[:SHOWN]}..."
                    raise ValueError(f"{section}: {shown!r} can't name a folder; {NAME_RULE}")
        self._check_split()
        self._check_lengths()
        self._check_chat()
        self._check_upsamples()
        self._check_counts()
        for name, domain in self.domains.items():
            if self.rows_of(name).cerebras and domain.fim and domain.fim.level == "document":
                raise ValueError(
                    f"domains.{name}.fim.level: document can't go with rows.cerebras, whose texts "
                    "are cut in pieces; set level: row"
                )
            if self.rows_of(name).sharing() and domain.fim and domain.fim.level == "row":
                raise ValueError(
                    f"domains.{name}.fim.level: row moves ids over the ends of documents, which "
                    "rows.pack, documents or loss_across keep apart; set level: document"
                )

    def _check_chat(self) -> None:
        """Refuse rows that can't hold conversations, and settings that only they have."""
        for name, domain in self.domains.items():
            rows = self.rows_of(name)
            if domain.chat is None and rows.too_long == "split_turns":
                raise ValueError(
                    f"domains.{name}.rows.too_long: split_turns cuts conversations, and these are "
                    "none; set it in the rows of domains of chat"
                )
            if domain.chat is not None and rows.cerebras:
                raise ValueError(
                    f"domains.{name}.chat: can't go with rows.cerebras; set cerebras: null in "
                    "the domain's rows"
                )

    def _check_upsamples(self) -> None:
        """Refuse copies by a column that is not kept, and more of them than a part may repeat."""
        for name, domain in self.domains.items():
            if (upsample := domain.upsample) is None:
                continue
            if self.rows_of(name).cerebras:
                raise ValueError(
                    f"domains.{name}.upsample: can't go with rows.cerebras, which takes each "
                    "document once; drop one of the two"
                )
            for source in (self.sources[s] for s in domain.sources if s in self.sources):
                if upsample.by not in map(label, source.keep):
                    raise ValueError(
                        f"domains.{name}.upsample.by: source {source.name} keeps no column "
                        f"{upsample.by!r}; add it to sources.{source.name}.keep"
                    )
        for name, phase in self.phases.items():
            for i, part in enumerate(phase.parts):
                domain = self.domains.get(part.domain)
                if domain and domain.upsample and domain.upsample.peak > part.max_epochs:
                    raise ValueError(
                        f"phases.{name}.parts.{i}.max_epochs: documents of {part.domain} are "
                        f"repeated up to {domain.upsample.peak:g} times by its upsample, over "
                        f"{part.max_epochs:g}; lower the curve or raise max_epochs"
                    )

    def domains_of(self, phases: Collection[str] = ()) -> list[str]:
        """Return the domains that phases draw from, all phases by default, in order."""
        every = [phase for name, phase in self.phases.items() if not phases or name in phases]
        drawn = {part.domain for phase in every for part in phase.parts}
        return [name for name in self.domains if name in drawn]

    def sources_of(self, phases: Collection[str] = ()) -> list[str]:
        """Return the sources that phases draw from, all phases by default, in order."""
        drawn = {s for name in self.domains_of(phases) for s in self.domains[name].sources}
        return [name for name in self.sources if name in drawn]

    def rows_of(self, domain: str) -> PackSettings:
        """Return the settings of a domain's rows: its own, else the recipe's."""
        return self.domains[domain].rows or self.rows

    def msl_of(self, phase: Phase) -> int:
        """Return the tokens of a row of a phase, the same for all of its domains."""
        domain = phase.parts[0].domain
        return self.rows_of(domain).msl if domain in self.domains else self.rows.msl

    def _check_lengths(self) -> None:
        """Refuse a phase whose domains have rows of different lengths."""
        for name, phase in self.phases.items():
            msl = self.msl_of(phase)
            for i, part in enumerate(phase.parts):
                if part.domain in self.domains and self.rows_of(part.domain).msl != msl:
                    raise ValueError(
                        f"phases.{name}.parts.{i}.domain: rows of {part.domain} have "
                        f"{self.rows_of(part.domain).msl} tokens, those of "
                        f"{phase.parts[0].domain} {msl}; give them one rows.msl or another phase"
                    )

    def _check_split(self) -> None:
        """Refuse a split of nothing, and a domain with documents that another one holds out."""
        validation = [domain for domain in self.domains.values() if domain.split == "valid"]
        sources = {source for domain in validation for source in domain.sources}
        for name, domain in self.domains.items():
            if domain.split is not None and not self.valid:
                raise ValueError(
                    f"domains.{name}.split: needs a share to hold out; set `valid` of the recipe"
                )
            if domain.split is None and (shared := sources & {*domain.sources}):
                raise ValueError(
                    f"domains.{name}.split: documents of source {min(shared)} are held out for "
                    "validation by another domain, and here too; set split: train"
                )

    def _check_counts(self) -> None:
        """Refuse a phase whose tokens no 64-bit integer counts."""
        for name, phase in self.phases.items():
            msl = self.msl_of(phase)
            rows = phase.most_rows(msl)
            if rows * msl >= LIMIT:
                key = "steps" if phase.steps is not None else "parts"
                raise ValueError(
                    f"phases.{name}.{key}: must come to less than 2**62 tokens, "
                    f"got {rows:.3g} rows of {msl}"
                )

    def content(self) -> dict[str, Any]:
        """Return the recipe as JSON; how many documents are checked is left as it once was."""
        content = {key: value for key, value in asdict(self).items() if key != "file"}
        content["rows"] = _rows_content(self.rows)
        for name, domain in self.domains.items():
            del content["domains"][name]["rows"]
            if domain.rows is not None:
                content["domains"][name]["rows"] = _rows_content(domain.rows)
            for key in ("chat", "upsample"):
                if getattr(domain, key) is None:
                    del content["domains"][name][key]
        del content["format"]  # it says no more than where parts begin
        for name, phase in self.phases.items():
            for part, entry in zip(phase.parts, content["phases"][name]["parts"], strict=True):
                if continuing.begins(phase, part, self.format) == "start":
                    del entry["begins"]
                elif part.begins is None:
                    entry["begins"] = "continue"
        if self.tokenizer.verify_every == SAMPLED:
            content["tokenizer"]["verify_every"] = 0  # the default of folders made before
        for name, source in self.sources.items():
            content["sources"][name] = source.content()
            if (settings := source.select.decontaminate) is not None:
                content["sources"][name]["select"]["decontaminate"] = settings.content()
        return content

    def fault(self, message: str, *steps: str | int) -> RecipeError:
        """Return an error about a value that proved wrong after loading, with file and line."""
        where = ".".join(map(str, steps))
        if self.file is None:
            return RecipeError(f"{where}: {message}")
        line = yaml_settings.line_of(yaml_settings.load(self.file), steps)
        return RecipeError(f"{self.file}:{line}: {where}: {message}")


def _rows_content(rows: PackSettings) -> dict[str, Any]:
    masked = {"documents": "masked"} if rows.documents == "masked" else {}
    return {**rows.content(), **masked}


def find(name: str) -> Path:
    """Return the file of a recipe: a path, also of a url, or the name of a bundled one."""
    return yaml_settings.find(name, BUNDLED, "no such recipe file, and no bundled recipe")


def load(name: str | Path, tokenizer: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by path or bundled name; `tokenizer` replaces the tokenizer's path.

    overrides: `--set` assignments over the recipe.

    Raises RecipeError with file, line and path of the first fault, UsageError for a tokenizer
    option that names none.
    """
    path = find(str(name))
    content = yaml_settings.override(yaml_settings.load(path), overrides)
    _name_entries(path, content)
    _spread_rows(content)
    recipe = yaml_settings.check(path, content, Recipe)
    _check_names(path, content, recipe)
    for fault in continuing.faults(recipe.phases, recipe.format):
        line = yaml_settings.line_of(content, fault.steps)
        where = ".".join(map(str, fault.steps))
        raise RecipeError(f"{path}:{line}: {where}: {fault.message}")
    chosen = replace(recipe.tokenizer, path=str(_tokenizer(path, recipe, tokenizer)))
    if tokenizer is not None:
        _check_option(chosen)
    recipe = replace(recipe, tokenizer=chosen)
    object.__setattr__(recipe, "file", path)  # a field that YAML can't set
    return recipe


def _tokenizer(path: Path, recipe: Recipe, option: Path | None) -> Path | str:
    place = beside(path, recipe.tokenizer.path) if option is None else option
    if not is_url(place):
        return place
    from crystalmix.prep.objects.remote import checked

    return checked(as_url(place))


def _check_option(settings: TokenizerSettings) -> None:
    """Blame the option, not the recipe's line, for a tokenizer that can't be loaded."""
    with suppress(RecipeError):  # the recipe's faults are raised later, with their line
        try:
            load_tokenizer(settings)
        except InputError as error:
            raise UsageError(f"--tokenizer: {error}") from None


def _name_entries(path: Path, content: object) -> None:
    """Give sources and phases the name of their key."""
    for section in ("sources", "phases"):
        entries = content.get(section) if isinstance(content, dict) else None
        for name, entry in (entries or {}).items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict):
                if "name" in entry:
                    line = yaml_settings.line_of(content, (section, name, "name"))
                    raise RecipeError(
                        f"{path}:{line}: {section}.{name}.name: is no known key; its name is the "
                        f"key that it stands under, {name}"
                    )
                entry["name"] = str(name)


def _spread_rows(content: object) -> None:
    """Give the `rows` of domains what they leave to the recipe's."""
    if not isinstance(content, dict) or not isinstance(content.get("domains"), dict):
        return
    shared = content.get("rows")
    for domain in content["domains"].values():
        rows = domain.get("rows") if isinstance(domain, dict) else None
        if isinstance(rows, dict) and isinstance(shared, dict):
            for key, value in shared.items():
                rows.setdefault(key, value)


def _check_names(path: Path, content: object, recipe: Recipe) -> None:
    """Refuse a domain of an unknown source and a part of an unknown domain."""
    for name, domain in recipe.domains.items():
        for i, source in enumerate(domain.sources):
            if source not in recipe.sources:
                steps = ("domains", name, "sources", i)
                raise _unknown(path, content, steps, source, recipe.sources)
            if recipe.sources[source].is_chat != (domain.chat is not None):
                steps = ("domains", name, "sources", i)
                hint = "chat, so that the domain needs `chat` with a template"
                if domain.chat is not None:
                    hint = "no chat; set its `format: chat`, or drop `chat` of the domain"
                where = (
                    f"{path}:{yaml_settings.line_of(content, steps)}: domains.{name}.sources.{i}"
                )
                raise RecipeError(f"{where}: source {source} is of {hint}")
    for name, phase in recipe.phases.items():
        for i, part in enumerate(phase.parts):
            if part.domain not in recipe.domains:
                steps = ("phases", name, "parts", i, "domain")
                raise _unknown(path, content, steps, part.domain, recipe.domains)


def _unknown(
    path: Path, content: object, steps: tuple[str | int, ...], name: str, known: dict[str, Any]
) -> RecipeError:
    where = ".".join(map(str, steps))
    kind = "source" if steps[0] == "domains" else "domain"
    return RecipeError(
        f"{path}:{yaml_settings.line_of(content, steps)}: {where}: "
        f"no {kind} is called {name!r} (there are {', '.join(known)})"
    )
