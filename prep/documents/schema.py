"""Schema of documents: the columns that identify each one, and the counts over documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from crystalmix.prep.documents.source import Source, label
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import pyarrow as pa

VERSION = 3  # of documents
IDENTITY = (  # columns of each document
    "document",  # dense number within the source
    "file",
    "record",  # line or row number in the file, from 0
    "name",
    "digest",  # xxh3-128 of the text's UTF-8
    "characters",
    "bytes",
)


def schema(source: Source) -> pa.Schema:
    """Return the columns of a source's documents.parquet with their types."""
    kept = columns(source)[len(IDENTITY) :]
    return pa.schema([*identity(), *(pa.field(name, pa.string()) for name in kept)])


def identity() -> pa.Schema:
    """Return the columns that identify a document with their types."""
    types = {"file": pa.dictionary(pa.int32(), pa.string()), "digest": pa.binary(16)}
    types |= dict.fromkeys(("document", "record", "characters", "bytes"), pa.int64())
    return pa.schema([(name, types.get(name, pa.string())) for name in IDENTITY])


def columns(source: Source) -> list[str]:
    """Return the names of a source's columns of documents: identity, then what it keeps.

    Raises RecipeError where two of them have one name.
    """
    columns = [*IDENTITY, *map(label, source.keep)]
    names = Counter(name.lower() for name in columns)  # SQL knows no case
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise RecipeError(
            f"source {source.name}: keep: two columns of its documents would be called "
            f"{twice[0]!r}; leave one out"
        )
    return columns


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptBlock:
    """Documents of a raw file. text_digest: of their texts in order. dropped: by reason."""

    documents: int
    characters: int
    bytes: int
    text_digest: str
    dropped: dict[str, int]


@frozen
class Broken:
    """Why a raw file is left out: a word to count it under, and the message."""

    reason: str
    told: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockAccount(KeptBlock):
    """Account of a raw file as a source scans it: records = documents + dropped.

    places: the first records of each reason. opt_out: of each list the entries that matched.
    absent: columns that the SQL names and no record has, None where it saw none. asked: records
    that the SQL was run on; misfit: why the first one does not fit it.
    """

    block: str
    records: int
    blank_lines: int
    places: dict[str, list[str]]
    broken: Broken | None
    opt_out: list[list[int]]
    absent: list[str] | None = None
    asked: int = 0
    misfit: str = ""


class Tally:
    """Counts over documents, as they come: documents, characters, bytes, digest of the texts."""

    def __init__(self) -> None:
        self.documents = self.characters = self.bytes = 0
        self.state = xxhash.xxh3_128()

    def add(self, table: pa.Table) -> None:
        """Count more documents."""
        self.documents += table.num_rows
        self.characters += int(table["characters"].to_numpy().sum())
        self.bytes += int(table["bytes"].to_numpy().sum())
        digests: list[Any] = table["digest"].to_pylist()
        self.state.update(b"".join(digests))

    def kept(self, dropped: Mapping[str, int]) -> KeptBlock:
        """Return what was counted, and what was dropped by reason."""
        return KeptBlock(
            documents=self.documents,
            characters=self.characters,
            bytes=self.bytes,
            text_digest=self.state.hexdigest(),
            dropped=dict(sorted(dropped.items())),
        )


def side(part: Path, kind: str) -> Path:
    """Return what lies beside a block's documents: `dropped` records, `near` signatures."""
    return part.with_suffix(".dropped.parquet" if kind == "dropped" else f".{kind}")
