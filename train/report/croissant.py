"""Croissant 1.1: a build as JSON-LD, its files with sha256 and its documents as record sets."""

from collections.abc import Iterator
from json import dumps
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, TOKENIZER
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import file_sha256
from crystalmix.prep.runtime.errors import DamageError, RefusalError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.report.facts import Facts
from crystalmix.train.report.words import Blanks

SCHEMA = "https://schema.org/"
TERMS = (
    *(
        "citeAs",
        "column",
        "equivalentProperty",
        "extract",
        "field",
        "fileObject",
        "fileProperty",
        "fileSet",
        "format",
    ),
    *("includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
    *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source"),
    *("subField", "transform"),
)
CONTEXT: Json = {
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
    _refuse_views(facts)
    given, provider = facts.card.dataset, facts.card.provider
    stated = {
        "url": given.url,
        "version": given.version,
        "datePublished": given.published,
        "license": _licences(facts),
        "creator": _creator(facts),
        "description": given.description or _description(facts),
    }
    names = {"url": "url", "version": "version", "datePublished": "published"}
    for key, name in names.items():
        blanks.say(f"dataset.{name}", stated[key])
    blanks.say("dataset.licence", given.licence or _licences(facts))
    blanks.say("provider.name", provider.name)
    derived = [{"@id": s.about.url} for s in facts.sources if s.about.url]
    content: Json = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": given.title or facts.name,
        **{key: value for key, value in stated.items() if value},
        **({"prov:wasDerivedFrom": derived} if derived else {}),
        "distribution": [_file_object(facts.build.path, path) for path in files(facts)],
        "recordSet": [_records(facts.build.path, s.name, s.folder) for s in facts.sources],
    }
    return [dumps(content, indent=1, ensure_ascii=False)]


def _refuse_views(facts: Facts) -> None:
    for phase in facts.phases:
        if phase.manifest.redaction is not None:
            raise RefusalError(
                f"{facts.build.path}: phase {phase.name} is a redacted view, whose rows no file "
                "holds; write them with `crystalmix export-rows`, or use another --as"
            )


def files(facts: Facts) -> list[str]:
    """Return the files of a build that its phases need, relative to it, sorted.

    Manifests, the tokenizer, the documents of sources, shards and what lies beside them.
    """
    build = facts.build
    names = {
        build.manifest(phase.name).relative_to(build.path).as_posix() for phase in facts.phases
    }
    if build.tokenizer.exists():
        names.add(TOKENIZER)
    names |= {f"{source.folder}/{DOCUMENTS}" for source in facts.sources}
    shards = {
        shard.path for phase in facts.phases for p in phase.manifest.parts for shard in p.shards
    }
    names |= shards
    folders = {Path(shard).parent for shard in shards}
    domains = {part.domain for phase in facts.phases for part in phase.manifest.parts}
    folders |= {
        path.relative_to(build.path) for d in domains for path in build.domain(d).glob("epoch-*")
    }
    for folder in folders:
        names |= set(_sides(build.path, folder))
    return sorted(names)


def _sides(build: Path, folder: Path) -> Iterator[str]:
    """Yield the files of a folder of rows that say where its rows are from: spans and origins."""
    if (build / folder / receipts.NAME).exists():
        for entry in receipts.read(build / folder)["files"]:
            if entry["name"].endswith(".parquet"):
                yield (folder / entry["name"]).as_posix()


def _file_object(build: Path, name: str) -> Json:
    path = build / name
    if not path.exists():
        raise DamageError(f"{path}: is missing; restore it, or build again")
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": FORMATS.get(path.suffix, "application/octet-stream"),
        "sha256": file_sha256(path),
    }


def _records(build: Path, source: str, folder: str) -> Json:
    """Return the record set of a source's documents: its columns of numbers and text."""
    file, place = f"{folder}/{DOCUMENTS}", f"documents/{source}"
    schema = pq.read_schema(build / file)
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
    """Return the licence of the whole, else those that sources state; ids as urls."""
    stated = [facts.card.dataset.licence] if facts.card.dataset.licence else []
    licences = [source.about.licence for source in facts.sources]
    if not stated and all(licences):
        stated = sorted({each for each in licences if each})
    return [_link(each) for each in stated]


def _link(licence: str) -> str:
    is_id = all(letter.isalnum() or letter in "-.+" for letter in licence)
    return f"https://spdx.org/licenses/{licence}.html" if is_id else licence


def _creator(facts: Facts) -> Json | None:
    provider = facts.card.provider
    if provider.name is None:
        return None
    url = {"url": provider.url} if provider.url else {}
    return {"@type": "Organization", "name": provider.name, **url}


def _description(facts: Facts) -> str:
    phases = ", ".join(phase.name for phase in facts.phases)
    digests = ", ".join(f"{phase.name} {phase.manifest.digest}" for phase in facts.phases)
    return (
        f"Packed rows of the phases {phases} of the recipe {facts.name}, and the documents that "
        f"they hold. Manifests: {digests}."
    )
