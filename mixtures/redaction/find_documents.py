"""Documents of entries: what of a build is meant by repositories, owners, urls, texts or SQL.

Names and digests are looked up in sorted files (`lookup`). A record that was dropped is found too,
with the reason; where it was dropped as a copy, the document that stayed is. Other documents with
the same text are its copies, whatever they are called.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.build.lookups import Lookups
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, SOURCES, BuildFolder
from crystalmix.mixtures.redaction import erased_names, near_copies
from crystalmix.mixtures.redaction.near_copies import NearSearch
from crystalmix.prep.documents import dropped, lookup
from crystalmix.prep.filters.entries import Entry
from crystalmix.prep.runtime.atomic_files import readable, settle
from crystalmix.prep.runtime.database import connect, explained, one_reading_statement, quoted
from crystalmix.prep.runtime.errors import UsageError

Relation = Literal["entry", "copy", "near copy"]
SHOWN = ["file", "record", "name", "digest", "characters", "bytes"]
DROP_COLUMNS = ["file", "record", "name", "digest", "reason", "detail"]
NEAR = "near_duplicate"
Places = NDArray[np.int64]
_Found = dict[tuple[str, int], list[tuple[int, Relation]]]  # place -> entries, and how


@dataclass(frozen=True)
class Found:
    """A document of an entry: how it is related, its identity, its text's digest in hex.

    similarity: of a near copy that signatures found.
    """

    relation: Relation
    source: str
    document: int
    name: str
    digest: str
    characters: int
    bytes: int
    similarity: float | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Source and number."""
        return self.source, self.document


@dataclass(frozen=True)
class Dropped:
    """A record of an entry that is no document: its name, why it was dropped, and the detail."""

    source: str
    name: str
    digest: str | None
    reason: str
    detail: str | None


@dataclass
class Hits:
    """What a build holds of one entry."""

    entry: Entry
    documents: list[Found] = field(default_factory=list[Found])
    dropped: list[Dropped] = field(default_factory=list[Dropped])

    @property
    def own(self) -> list[Found]:
        """The documents that the entry names itself."""
        return [document for document in self.documents if document.relation == "entry"]

    @property
    def copies(self) -> list[Found]:
        """Its copies under other names, and near copies."""
        return [document for document in self.documents if document.relation != "entry"]


def find_near(lookups: Lookups, hits: Sequence[Hits]) -> NearSearch:
    """Add near copies that signatures find to hits; return what was searched.

    Their similarity is that to the most similar document of the entry.
    """
    wanted = {document.key for hit in hits for document in hit.documents}
    search, alike = near_copies.find(lookups.build, sorted(wanted))
    similar: dict[tuple[str, int], dict[tuple[str, int], float]] = {}
    for copy in alike:
        similar.setdefault(copy.of, {})[copy.key] = copy.similarity
    more: _Found = {}
    shares: dict[tuple[int, tuple[str, int]], float] = {}
    for number, hit in enumerate(hits):
        own = {document.key for document in hit.documents}
        for of in own:
            for key, share in similar.get(of, {}).items():
                if key not in own:
                    shares[number, key] = max(share, shares.get((number, key), 0.0))
    for number, key in sorted(shares):
        more.setdefault(key, []).append((number, "near copy"))
    _read(lookups, more, list(hits))
    for number, hit in enumerate(hits):
        hit.documents = [
            replace(document, similarity=shares.get((number, document.key), document.similarity))
            for document in hit.documents
        ]
    return search


def find(lookups: Lookups, entries: Sequence[Entry], *, copies: bool = True) -> list[Hits]:
    """Return what a build holds of each entry, in their order.

    copies: also other documents with the same text, and those that stayed where a record of an
    entry was dropped as a duplicate. Raises UsageError for SQL that is wrong.
    """
    hits = [Hits(entry) for entry in entries]
    relations: _Found = {}
    for number, key in places_of(lookups, entries):
        relations.setdefault(key, []).append((number, "entry"))
    _read(lookups, relations, hits)
    if copies:
        keys = [{document.key for document in hit.documents} for hit in hits]
        more: _Found = {}
        for number, key, relation in _copies(lookups, hits):
            if key not in keys[number]:
                keys[number].add(key)
                more.setdefault(key, []).append((number, relation))
        _read(lookups, more, hits)
    return hits


def places_of(lookups: Lookups, entries: Sequence[Entry]) -> Iterator[tuple[int, tuple[str, int]]]:
    """Yield the entry, and source and place of what entries name, each pair once.

    A place is the number of a document, or -1 - n for line n of what was dropped.
    """
    pairs: set[tuple[int, tuple[str, int]]] = set()
    for pair in chain(_places(lookups, entries), erased_names.places(lookups.build, entries)):
        if pair not in pairs:
            pairs.add(pair)
            yield pair


def _places(lookups: Lookups, entries: Sequence[Entry]) -> Iterator[tuple[int, tuple[str, int]]]:
    for number, entry in enumerate(entries):
        if entry.kind == "sql":
            yield from ((number, key) for key in _of_sql(lookups.build, entry))
    names = sorted((*r, number) for number, entry in enumerate(entries) for r in entry.ranges)
    texts = sorted((e.key, number) for number, e in enumerate(entries) if e.kind == "digest")
    for source in lookups.sources:
        by_name, by_digest = lookups.names(source), lookups.digests(source)
        pairs: set[tuple[int, int]] = set()
        for first, end, number in names:
            pairs |= {(number, place) for place in by_name.between(first, end).tolist()}
        for key, number in texts:
            pairs |= {(number, place) for place in _of_digest(by_digest, key)}
        yield from ((number, (source, place)) for number, place in sorted(pairs))


def _of_digest(lookup_: lookup.Lookup, digest: str) -> list[int]:
    key = bytes.fromhex(digest)
    return lookup_.between(key, key + b"\0").tolist()


def _of_sql(build: BuildFolder, entry: Entry) -> Iterator[tuple[str, int]]:
    """Yield the documents for which an expression is true; a column that a source lacks is NULL."""
    paths = sorted(build.path.glob(f"{SOURCES}/*/{DOCUMENTS}"))
    if not paths:
        return
    settle(build.path)
    # resolved, for sources may be links: into the store, or of a view or a mixture to its build
    files = {path.parent.name: path.resolve() for path in paths}
    connection = connect(readable=[path.parent for path in files.values()])
    tables = (
        f"SELECT {quoted(name)} AS source, * FROM read_parquet({quoted(str(path))})"
        for name, path in files.items()
    )
    with explained():
        connection.execute(f"CREATE VIEW documents AS {' UNION ALL BY NAME '.join(tables)}")
        query = f"SELECT source, document FROM documents WHERE ({entry.key}\n) ORDER BY ALL"
        try:
            yield from connection.execute(one_reading_statement(connection, query)).fetchall()
        except UsageError as error:
            raise UsageError(f"line {entry.line}: {error}") from None


def _read(lookups: Lookups, relations: _Found, hits: list[Hits]) -> None:
    """Add what stands at places to the hits of their entries."""
    for source in sorted({source for source, _ in relations}):
        places = np.array(sorted(place for name, place in relations if name == source), np.int64)
        folder = lookups.build.source(source)
        kept, gone = places[places >= 0], np.sort(-1 - places[places < 0])
        for number, row in _lines(folder / DOCUMENTS, kept, SHOWN):
            name = row["name"] or f"{row['file']}#{row['record']}"
            shown = (row["digest"].hex(), row["characters"], row["bytes"])
            for entry, relation in relations[source, number]:
                hits[entry].documents.append(Found(relation, source, number, name, *shown))
        for number, row in _lines(folder / dropped.NAME, gone, DROP_COLUMNS):
            name = row["name"] or f"{row['file']}#{row['record']}"
            digest = row["digest"] and row["digest"].hex()
            for entry, _ in relations[source, -1 - number]:
                drop = Dropped(source, name, digest, row["reason"], row["detail"])
                hits[entry].dropped.append(drop)


def _lines(path: Path, numbers: Places, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    if len(numbers):
        table = lookup.rows(path, numbers, columns)
        yield from zip(numbers.tolist(), table.to_pylist(), strict=True)


def _copies(
    lookups: Lookups, hits: Sequence[Hits]
) -> Iterator[tuple[int, tuple[str, int], Relation]]:
    """Yield, by entry, documents with the same text, and those kept for a near-duplicate."""
    digests: dict[str, list[int]] = {}
    for number, hit in enumerate(hits):
        texts = {document.digest for document in hit.documents}
        for digest in texts | {drop.digest for drop in hit.dropped if drop.digest}:
            digests.setdefault(digest, []).append(number)
    for source in lookups.sources:
        by_digest = lookups.digests(source)
        for digest in sorted(digests):
            for place in _of_digest(by_digest, digest):
                if place >= 0:
                    for number in digests[digest]:
                        yield number, (source, place), "copy"
    for number, hit in enumerate(hits):
        for drop in hit.dropped:
            if drop.reason == NEAR and (place := _stayed(lookups, drop)) is not None:
                yield number, place, "near copy"


def _stayed(lookups: Lookups, drop: Dropped) -> tuple[str, int] | None:
    """Return the document that stayed where a record was dropped for one of its own source."""
    file, _, record = (drop.detail or "").rpartition(" record ")
    if not file or not record.isdecimal():
        return None  # it stayed in a source before, which is all that is recorded
    path = lookups.build.documents(drop.source)
    with pq.ParquetFile(readable(path), pre_buffer=False) as documents:
        for batch in documents.iter_batches(columns=["document", "file", "record"]):
            files = np.asarray(batch.column("file").cast(pa.string()).to_pylist(), object)
            same = (files == file) & (batch.column("record").to_numpy() == int(record))
            rows = batch.filter(pa.array(same))
            if rows.num_rows:
                return drop.source, rows.column("document")[0].as_py()
    return None
