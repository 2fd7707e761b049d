"""Descriptions of sources: what they are, whose, under which licence, from when; for cards alone.

No digest of documents, rows or manifests holds them: a better description rebuilds nothing. A build
seals them in `about.json`, each beside the digest of the documents that it describes.
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.records import read_sealed, write_sealed
from crystalmix.prep.runtime.types import Content, Strict, frozen

NAME = "about.json"
REMEDY = "remove it and run `crystalmix build` again, which writes it anew"
Kind = Literal["public", "licensed", "private", "crawled", "user", "synthetic", "other"]
Day = Annotated[str, BeforeValidator(str), Field(pattern=r"^\d{4}(-\d\d){0,2}$")]


@frozen
class Collected(Strict):
    """When data was collected: days, months or years such as 2023-05-31, 2023-05, 2023.

    since: the first. to: the last.
    """

    since: Annotated[Day | None, Field(alias="from")] = None
    to: Day | None = None


@frozen
class Crawler(Strict):
    """The crawler that fetched a source.

    name: as it called itself. purpose: what it fetched for. behaviour: what it did at robots.txt,
    captchas and paywalls.
    """

    name: str | None = None
    purpose: str | None = None
    behaviour: str | None = None


def _words(value: object) -> object:
    """Return a number as YAML reads it, such as a revision 2 or 1.0, as the text that it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@frozen
class About(Strict):
    """What a source is, for cards; what is left out is printed there as not stated.

    title: its name for readers. kind: who its data are from: a public dataset, licensed from
    rightsholders, private of others, crawled by or for you, of users, synthetic, or other.
    licence: an SPDX id, or words. url: where it is. revision: its version or commit. collected:
    when its data were. languages: codes such as `en`. generator: models that wrote synthetic data.
    crawler: what fetched it. users: of a kind user, whether of the model or of other services.
    reservations: which opt-outs were honoured, and how. personal: whether
    it holds personal data. domains: SQL of a document's url over its columns (its `name`, what the
    source keeps), to tally registrable domains. licences: SQL of its licence, to tally those. text:
    what else is to be said.
    """

    title: str | None = None
    kind: Kind | None = None
    licence: str | None = None
    url: str | None = None
    revision: Annotated[str | None, BeforeValidator(_words)] = None
    collected: Collected = field(default_factory=Collected)
    languages: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()
    crawler: Crawler = field(default_factory=Crawler)
    users: Literal["model", "services"] | None = None
    reservations: str | None = None
    personal: Literal["none", "possible", "yes"] | None = None
    domains: str | None = None
    licences: str | None = None
    text: str | None = None

    def content(self) -> Content:
        """Return it as JSON with the keys of a recipe."""
        content = asdict(self)
        content["collected"] = {"from": self.collected.since, "to": self.collected.to}
        return content


@frozen
class Described:
    """A description, and the digest of the documents that it describes."""

    about: About
    documents: str


@frozen
class Descriptions:
    """The descriptions of a build's sources."""

    sources: dict[str, Described]


def write(path: Path, sources: dict[str, Described]) -> None:
    """Write `about.json` where it says something else; without a description there is none."""
    if path.exists() == bool(sources) and read(path) == sources:
        return  # also on a disk that is read-only
    if not sources:
        path.unlink()
        return
    content = {
        name: {"about": described.about.content(), "documents": described.documents}
        for name, described in sorted(sources.items())
    }
    write_sealed(path, {"sources": content})


def read(path: Path) -> dict[str, Described]:
    """Read `about.json`, no description where there is none; DamageError where it was edited."""
    return read_sealed(path, Descriptions, REMEDY).sources if path.exists() else {}


def faults(path: Path, names: Collection[str]) -> Iterator[str]:
    """Yield where `about.json` was edited, or describes a source of another name."""
    try:
        for source in read(path):
            if source not in names:
                yield f"{path}: describes source {source}, which is not here; {REMEDY}"
    except DamageError as error:
        yield str(error)
