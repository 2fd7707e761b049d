"""Lookups: sorted names and digests of each source, its lines, and the documents of each shard.

They are made when phases are sealed, from what is sealed already, and are no part of any digest: a
build without them is the same build, and the first question that needs them makes them.
"""

from __future__ import annotations

import atexit
import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import starmap
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from crystalmix.mixtures.manifest import opened as opened_manifests
from crystalmix.mixtures.manifest.build_folder import (
    DOMAINS,
    SOURCES,
    BuildFolder,
    shards_of,
)
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, settle, write_atomic
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import FileEntry, Receipt
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import pyarrow as pa
    import pyarrow.compute as pc

    from crystalmix.prep.documents import lookup
    from crystalmix.prep.rows import document_ranges
    from crystalmix.prep.tallies import tally

if TYPE_CHECKING:
    from crystalmix.prep.documents.lookup import Lookup
    from crystalmix.prep.engines.engine import Engine
    from crystalmix.prep.rows.document_ranges import Ranges
    from crystalmix.prep.runtime.types import Json

REMEDY = "remove its folder, which is made again when it is needed"
SEAL = "lookup.json"  # written last: what it was made from, and its files
RANGES = "ranges.parquet"
SPANS = ".spans.parquet"
IMPORT = "import"
LAST = ("shuffled", "joined", "imported")  # folders of a domain that have no spans of their own
READ_ONLY = {errno.EPERM, errno.EACCES, errno.EROFS}


class Lookups:
    """The lookups of a build; place: its folder `lookup`, or one beside a build that is read-only.

    made: how many had to be made now. Those of `opened` are looked at when they are asked for.
    """

    def __init__(self, build: BuildFolder, place: Path, made: int | None = 0) -> None:
        self.build, self.place, self.made = build, place, made
        self._fresh: set[Path] = set()
        self._ranges: dict[Path, Ranges] = {}
        self._names: dict[str, Lookup] = {}

    @property
    def sources(self) -> list[str]:
        """The names of the sources, sorted."""
        folders = self.build.path.glob(f"{SOURCES}/*")
        return sorted(path.name for path in folders if (path / receipts.NAME).exists())

    def names(self, source: str) -> Lookup:
        """Return the sorted names of a source."""
        if source not in self._names:
            inside = self._inside(self.build.source(source))
            self._names[source] = lookup.Lookup(inside / lookup.NAMES)
        return self._names[source]

    def digests(self, source: str) -> Lookup:
        """Return the sorted text digests of a source."""
        return lookup.Lookup(self._inside(self.build.source(source)) / lookup.DIGESTS)

    def lines(self, source: str) -> lookup.Lines | lookup.NumberedLines | None:
        """Return the lines of a source's documents; None where there are no documents.

        They are those of the lookup where it has them, else of documents.parquet.
        """
        folder = self.build.source(source)
        inside = self.place / folder.relative_to(self.build.path)
        if (inside / lookup.LINES).exists() and _is_known(folder, inside / SEAL):
            return lookup.NumberedLines(inside / lookup.LINES)
        documents = self.build.documents(source)
        return lookup.Lines(documents) if documents.exists() else None

    def ranges(self, folder: Path) -> Ranges:
        """Return the documents of the shards of a folder of packed rows."""
        if folder not in self._ranges:
            self._ranges[folder] = document_ranges.Ranges(self._inside(folder) / RANGES)
        return self._ranges[folder]

    def places(self, first: str, end: str, most: int | None = None) -> Iterator[tuple[str, int]]:
        """Yield source and place of the names in [first, end), whatever their case.

        most: of each source.
        """
        low, high = map(str, pc.utf8_lower(pa.array([first, end])).to_pylist())
        for source in self.sources:
            for place in self.names(source).between(low, high, most).tolist():
                yield source, place

    def packed(self) -> list[Path]:
        """Return the folders of packed rows that have spans, sorted."""
        every = sorted(self.build.path.glob(f"{DOMAINS}/*/*/{receipts.NAME}"))
        folders = [path.parent for path in every if path.parent.name not in LAST]
        return [folder for folder in folders if (self._inside(folder) / RANGES).exists()]

    def _inside(self, folder: Path) -> Path:
        """Return the folder of a lookup, made where it is missing or stale."""
        relative = folder.relative_to(self.build.path)
        if self.made is None and folder not in self._fresh:
            try:
                if not _is_known(folder, self.place / relative / SEAL):
                    _make([(folder, self.place / relative)])
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                self.place = _elsewhere()
                _make([(folder, self.place / relative)])
            self._fresh.add(folder)
        return self.place / relative


def opened(out: Path) -> Lookups:
    """Return a build's lookups, each of which is made when it is asked for and is not there."""
    build = BuildFolder(out)
    return Lookups(build, build.lookup, None)


def ensured(out: Path) -> Lookups:
    """Return a build's lookups, made where they are not there or of something else.

    Where the build can't be written to they are made in a folder that goes with the system's
    temporary files.
    """
    build = BuildFolder(out)
    try:
        return Lookups(build, build.lookup, make(build))
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
    place = _elsewhere()
    return Lookups(build, place, make(build, place))


def _elsewhere() -> Path:
    place = Path(mkdtemp(prefix="crystalmix-lookup-"))
    atexit.register(rmtree, place, ignore_errors=True)
    return place


def make(build: BuildFolder, place: Path | None = None, pool: Engine | None = None) -> int:
    """Make the lookups that are missing or stale; return how many. pool: who writes their files.

    Tables of shards with them (`manifest.opened`).
    """
    settle(build.path)
    opened_manifests.make(build)
    place = place or build.lookup
    folders = [folder for folder in build.sealed() if folder.name not in LAST]
    return _make([(folder, place / folder.relative_to(build.path)) for folder in folders], pool)


def _make(pairs: Sequence[tuple[Path, Path]], pool: Engine | None = None) -> int:
    """Make the lookups of folders, each into another, as of `make`."""
    settle(pairs[0][0]) if pairs else None
    stale = [its for its in starmap(_look, pairs) if its is not None]
    files = [Written(its.folder, its.inside, name) for its in stale for name in its.names]
    if files:
        for _ in map(_write, files) if pool is None else pool.map(_write, files, "lookups"):
            pass
    for its in stale:
        its.seal()
    return len(stale)


@frozen
class Stale:
    """A lookup to be made: of a folder, into another, what it follows from, its files."""

    folder: Path
    inside: Path
    made_from: Json
    receipt: FileEntry
    names: tuple[str, ...]

    def seal(self) -> None:
        """Seal it; its files are written."""
        files = [receipts.describe(self.inside / name) for name in self.names]
        content = {**self.made_from, "receipt": self.receipt.xxh3, "files": files}
        content["receipt_bytes"] = self.receipt.bytes
        content["receipt_digest"] = receipts.own_digest(self.folder / receipts.NAME)
        sealed = canonical({**content, "digest": receipts.digest(content)})
        write_atomic(self.inside / SEAL, sealed)


@frozen
class Written:
    """Work item: a file of a lookup."""

    folder: Path
    inside: Path
    name: str


def _look(folder: Path, inside: Path) -> Stale | None:
    """Return the lookup of a folder, None where it is there or the folder has none."""
    entry = FileEntry.of(folder / receipts.NAME)
    if _is_fresh(inside / SEAL, {"version": lookup.VERSION, "receipt": entry.xxh3}):
        return None
    receipt = receipts.read(folder)
    names = (lookup.NAMES, lookup.DIGESTS, lookup.LINES)
    if receipt.stage != "documents":
        if receipt.stage == IMPORT or not _has_spans(folder, receipt):
            return None
        names = (RANGES,)
    made_from = {"version": lookup.VERSION, "origin": origin_digest(receipt)}
    if _is_fresh(inside / SEAL, made_from):
        return None
    return Stale(folder, inside, made_from, entry, names)


def _is_known(folder: Path, seal: Path) -> bool:
    """Return whether a lookup is fresh by what is seen without reading the folder's receipt.

    That is its size, its age, and its own digest where that stands in its head.
    """
    try:
        known = _read(seal)
        entry = FileEntry(receipts.NAME, known["receipt_bytes"], known["receipt"])
    except (DamageError, KeyError):
        return False
    path = folder / receipts.NAME
    made_from = {"version": lookup.VERSION, "receipt_digest": receipts.own_digest(path)}
    return receipts.is_still(path, entry, seal) and _is_fresh(seal, made_from)


def _write(item: Written) -> Json:
    if item.name != RANGES:
        lookup.write(item.folder / "documents.parquet", item.inside, item.name)
        return {}
    every = shards_of(receipts.read(item.folder))
    table = document_ranges.of_shards(item.folder / shard.name for shard in every)
    document_ranges.write(item.inside / RANGES, table)
    return {}


def _has_spans(folder: Path, receipt: Receipt) -> bool:
    names = [entry["name"] for entry in receipt.files]
    return folder.parent.parent.name == DOMAINS and any(n.endswith(SPANS) for n in names)


def _is_fresh(seal: Path, made_from: Json) -> bool:
    """Return whether a lookup is there, of what it is to be made from."""
    try:
        known = _read(seal)
    except DamageError:
        return False
    if {key: known.get(key) for key in made_from} != made_from:
        return False
    files = [(seal.with_name(entry["name"]), entry["bytes"]) for entry in known["files"]]
    return all(path.exists() and path.stat().st_size == size for path, size in files)


def _read(seal: Path) -> Json:
    content = read_json(seal, REMEDY)
    whole = {key: value for key, value in content.items() if key != "digest"}
    if canonical(content) != seal.read_bytes() or receipts.digest(whole) != content.get("digest"):
        raise DamageError(f"{seal}: was edited (its digest does not match); {REMEDY}")
    return content


def faults(
    build: BuildFolder, sealed: dict[Path, Receipt], note: Callable[[str], None]
) -> Iterator[str]:
    """Yield where lookups are damaged, or follow from other folders than those here.

    note: takes lines about seals that are not read whole.
    """
    for path in sorted(build.lookup.rglob(SEAL)):
        origin = build.path / path.parent.relative_to(build.lookup)
        try:
            seal = _read(path)
            files = [FileEntry(**entry) for entry in seal["files"]]
            if len({file.name for file in files}) != len(files):
                yield f"{path}: names a file twice; {REMEDY}"
            yield from receipts.damages(path.parent, files)
            if seal["version"] > lookup.VERSION:
                yield f"{path}: is of version {seal['version']}, which is not known; {REMEDY}"
            elif seal["version"] < lookup.VERSION:
                note(f"{path}: is of an older version; what it says of its receipt is not read")
            elif origin in sealed:
                yield from _strays(path, seal, origin, sealed[origin], note)
        except DamageError as error:
            yield str(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield f"{path}: is no whole seal ({type(error).__name__}: {error}); {REMEDY}"
    yield from opened_manifests.faults(build, sealed)
    yield from tally.faults(build.lookup / SOURCES, _documents(sealed))


def _strays(
    path: Path, seal: Json, origin: Path, receipt: Receipt, note: Callable[[str], None]
) -> Iterator[str]:
    """Yield where a seal is of another folder than its own; the receipt's times are no part."""
    if seal["origin"] != origin_digest(receipt):
        yield f"{path}: was made from another {origin} than the one here; {REMEDY}"
    entry = FileEntry.of(origin / receipts.NAME)
    now = {
        "receipt": entry.xxh3,
        "receipt_bytes": entry.bytes,
        "receipt_digest": receipts.own_digest(origin / receipts.NAME),
    }
    same = {key: seal[key] == value for key, value in now.items() if key in seal}
    if not (same.get("receipt") or same.get("receipt_digest")):
        note(f"{path}: its receipt was written again since; its digests of that are not read")
    elif not all(same.values()):
        yield f"{path}: has other digests of its receipt than that has; {REMEDY}"


def _documents(sealed: dict[Path, Receipt]) -> dict[str, tally.Counted]:
    """Return what is known of the documents of sources, of those whose receipts are whole."""
    known: dict[str, tally.Counted] = {}
    for place, receipt in sealed.items():
        if receipt.stage == "documents":
            with suppress(KeyError, TypeError):
                account = receipt.account
                counts = account["documents"], account["bytes"]
                known[place.name] = tally.Counted(receipt.content, *counts)
    return known


def named(build: BuildFolder) -> Iterator[Path]:
    """Yield the files that lookups, tallies and tables of shards consist of, as far as is known."""
    yield from (build.lookup / opened_manifests.TABLES).glob("*.json")
    for path in build.lookup.rglob(SEAL):
        yield path
        with suppress(DamageError, KeyError, TypeError):  # which `faults` reports
            yield from (path.with_name(str(entry["name"])) for entry in _read(path)["files"])
    for kind in tally.KINDS:
        for path in (build.lookup / SOURCES).glob(f"*/{kind}.*"):
            yield path


def origin_digest(receipt: Receipt) -> str:
    """Return a digest of what a folder holds, by its receipt, that no time of a file is part of."""
    return receipts.digest({**receipt.recipe, "content": receipt.content, "files": receipt.files})
