"""The card file: what a card says that belongs to no source, as its author states it."""

from dataclasses import dataclass, field
from pathlib import Path

from crystalmix.prep.documents.about import Day
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.types import Strict


@dataclass(frozen=True)
class Provider(Strict):
    """Who provides the data or the model.

    sme: whether it is a small or medium-sized enterprise.
    """

    name: str | None = None
    contact: str | None = None
    url: str | None = None
    representative: str | None = None
    sme: bool | None = None


@dataclass(frozen=True)
class ModelWords(Strict):
    """The model.

    names: its versioned names. base: what it was made from. placed: when it was placed on the
    market. use, limits: what it is for, and what it is not.
    """

    names: tuple[str, ...] = ()
    base: str | None = None
    placed: Day | None = None
    licence: str | None = None
    url: str | None = None
    use: str | None = None
    limits: str | None = None


@dataclass(frozen=True)
class DatasetWords(Strict):
    """The mixture as a dataset.

    version: MAJOR.MINOR.PATCH. licence: an SPDX id or expression. use: what it is for. bias: biases
    that are known.
    """

    title: str | None = None
    description: str | None = None
    url: str | None = None
    version: str | None = None
    published: Day | None = None
    licence: str | None = None
    use: str | None = None
    bias: tuple[str, ...] = ()


@dataclass(frozen=True)
class SummaryWords(Strict):
    """What the public summary of training content says beside the sources.

    version, updated: of the summary. continuous: whether training goes on with newer data.
    signatory: of the Code of Practice. rights: measures for reservations of rights. illegal:
    measures against illegal content. other: what else is to be said of processing.
    """

    version: str | None = None
    updated: Day | None = None
    continuous: bool | None = None
    signatory: bool | None = None
    rights: str | None = None
    illegal: str | None = None
    other: str | None = None


@dataclass(frozen=True)
class CardFile(Strict):
    """All of it; what is left out is printed as not stated."""

    provider: Provider = field(default_factory=Provider)
    model: ModelWords = field(default_factory=ModelWords)
    dataset: DatasetWords = field(default_factory=DatasetWords)
    summary: SummaryWords = field(default_factory=SummaryWords)


def read(path: Path | None) -> CardFile:
    """Read a card file; RecipeError names the first fault. None: nothing is stated."""
    return CardFile() if path is None else yaml_settings.read(path, CardFile)
