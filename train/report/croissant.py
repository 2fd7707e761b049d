"""Croissant 1.1: a build as JSON-LD, its files with sha256 and its documents as record sets."""

from json import dumps
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.mixtures.manifest.build_folder import DOCUMENTS
from crystalmix.mixtures.manifest.report import redaction_line
from crystalmix.prep.runtime.atomic_files import file_sha256, readable
from crystalmix.prep.runtime.types import Content
from crystalmix.train.report import build_files
from crystalmix.train.report.facts import Facts
from crystalmix.train.report.licences import of_source, spdx_expression
from crystalmix.train.report.words import Blanks

SCHEMA = "https://schema.org/"
TERMS = (
    *("citeAs", "column", "equivalentProperty", "extract"),
    *("field", "fileObject", "fileProperty", "fileSet", "format"),
    *("includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
    *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source"),
    *("subField", "transform"),
)
CONTEXT: Content = {
    "@language": "en",
    "@vocab": SCHEMA,
    "sc": SCHEMA,
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    **{term: f"cr:{term}" for term in TERMS},
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
FORMATS = {
    ".parquet": "application/x-parquet",
    ".h5": "application/x-hdf5",
    ".json": "application/json",
}


def croissant(facts: Facts, blanks: Blanks) -> list[str]:
    """Return the description; every file of the build that it lists is read for its sha256."""
    dataset, provider = facts.card.dataset, facts.card.provider
    stated = {
        "url": dataset.url,
        "version": dataset.version,
        "datePublished": dataset.published,
        "license": _licences(facts),
        "creator": _creator(facts),
        "description": dataset.description or _description(facts),
    }
    names = {"url": "url", "version": "version", "datePublished": "published"}
    for key, name in names.items():
        blanks.say(f"dataset.{name}", stated[key])
    blanks.say("dataset.licence", dataset.licence or _licences(facts))
    blanks.say("provider.name", provider.name)
    derived = [{"@id": s.about.url} for s in facts.sources if s.about.url]
    content: Content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": dataset.title or facts.name,
        **{key: value for key, value in stated.items() if value},
        **({"prov:wasDerivedFrom": derived} if derived else {}),
        "distribution": [_file_object(facts.build.path, path) for path in build_files.files(facts)],
        "recordSet": [_records(facts.build.path, s.name, s.folder) for s in facts.sources],
    }
    return [dumps(content, indent=1, ensure_ascii=False)]


def _file_object(build: Path, name: str) -> Content:
    path = build / name
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": FORMATS.get(path.suffix, "application/octet-stream"),
        "sha256": file_sha256(path),
    }


def _records(build: Path, source: str, folder: str) -> Content:
    """Return the record set of a source's documents: its columns of numbers and text."""
    file, place = f"{folder}/{DOCUMENTS}", f"documents/{source}"
    schema = pq.read_schema(readable(build / file))
    columns = {column.name: _type(column.type) for column in schema}
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{place}/{name}",
            "name": name,
            "dataType": kind,
            "source": {"fileObject": {"@id": file}, "extract": {"column": name}},
        }
        for name, kind in columns.items()
        if kind is not None
    ]
    key = {"key": {"@id": f"{place}/document"}} if "document" in columns else {}
    return {"@type": "cr:RecordSet", "@id": place, "name": place, **key, "field": fields}


def _type(kind: Any) -> str | None:  # noqa: ANN401  a type of Arrow
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _licences(facts: Facts) -> list[str]:
    """Return the licence of the whole, else those of its sources, if each has one; ids as urls."""
    stated = [facts.card.dataset.licence] if facts.card.dataset.licence else []
    if not stated:
        licences = [of_source(source) for source in facts.sources]
        stated = sorted({name for own in licences for name in own}) if all(licences) else []
    return [_link(name) for name in stated]


def _link(licence: str) -> str:
    """Return the address of an SPDX licence; other words as they are."""
    expression = spdx_expression(licence)
    is_id = expression is not None and " " not in expression
    return f"https://spdx.org/licenses/{expression}.html" if is_id else licence


def _creator(facts: Facts) -> Content | None:
    provider = facts.card.provider
    if provider.name is None:
        return None
    url = {"url": provider.url} if provider.url else {}
    return {"@type": "Organization", "name": provider.name, **url}


def _description(facts: Facts) -> str:
    phases = ", ".join(phase.name for phase in facts.phases)
    digests = ", ".join(f"{phase.name} {phase.manifest.digest}" for phase in facts.phases)
    lines = [(phase.name, redaction_line(phase.manifest)) for phase in facts.phases]
    return (
        f"Packed rows of the phases {phases} of the recipe {facts.name}, and the documents that "
        f"they hold. Manifests: {digests}."
    ) + "".join(f" Phase {name} was {line}." for name, line in lines if line)
