"""Lookups: sorted names and digests of each source, and the documents of each packed shard.

They are made when phases are sealed, from what is sealed already, and are no part of any digest: a
build without them is the same build, and the first question that needs them makes them.
"""

import atexit
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pyarrow.parquet as pq

from crystalmix.mixtures.manifest.build_folder import (
    DOMAINS,
    LOOKUP,
    SOURCES,
    BuildFolder,
    shards_of,
)
from crystalmix.prep.documents import lookup
from crystalmix.prep.documents.lookup import Lookup
from crystalmix.prep.rows import document_ranges, spans
from crystalmix.prep.rows.document_ranges import Ranges
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.receipts import FileEntry, Receipt
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tallies import tally

REMEDY = "remove its folder, which is made again when it is needed"
SEAL = "lookup.json"  # written last: what it was made from, and its files
RANGES = "ranges.parquet"
SPANS = ".spans.parquet"
IMPORT = "import"
READ_ONLY = {errno.EPERM, errno.EACCES, errno.EROFS}


@dataclass(frozen=True)
class Lookups:
    """The lookups of a build; place: its folder `lookup`, or one beside a build that is read-only.

    made: how many had to be made now.
    """

    build: BuildFolder
    place: Path
    made: int = 0

    @property
    def sources(self) -> list[str]:
        """The names of the sources, sorted."""
        return sorted(path.name for path in (self.place / SOURCES).glob("*"))

    def names(self, source: str) -> Lookup:
        """Return the sorted names of a source."""
        return Lookup(self.place / SOURCES / source / lookup.NAMES)

    def digests(self, source: str) -> Lookup:
        """Return the sorted text digests of a source."""
        return Lookup(self.place / SOURCES / source / lookup.DIGESTS)

    def ranges(self, folder: Path) -> Ranges:
        """Return the documents of the shards of a folder of packed rows."""
        inside = folder.relative_to(self.build.path)
        return Ranges(pq.read_table(self.place / inside / RANGES))


def ensured(out: Path) -> Lookups:
    """Return a build's lookups, made where they are not there or of something else.

    Where the build can't be written to they are made in a folder that goes with the system's
    temporary files.
    """
    build = BuildFolder(out)
    lookups = Lookups(build, build.lookup)
    try:
        return replace(lookups, made=make(build, lookups.place))
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
    place = Path(mkdtemp(prefix="crystalmix-lookup-"))
    atexit.register(rmtree, place, ignore_errors=True)
    return Lookups(build, place, make(build, place))


def make(build: BuildFolder, place: Path | None = None) -> int:
    """Make the lookups that are missing or stale; return how many."""
    place, made = place or build.path / LOOKUP, 0
    for folder in build.sealed():
        receipt = receipts.read(folder)
        inside = place / folder.relative_to(build.path)
        if receipt.stage == "documents":
            made += _sealed(inside, folder, receipt, _of_source)
        elif receipt.stage != IMPORT and _has_spans(folder, receipt):
            made += _sealed(inside, folder, receipt, _of_rows)
    return made


def _has_spans(folder: Path, receipt: Receipt) -> bool:
    names = [entry["name"] for entry in receipt.files]
    return folder.parent.parent.name == DOMAINS and any(n.endswith(SPANS) for n in names)


def _sealed(
    inside: Path, folder: Path, receipt: Receipt, write: Callable[[Path, Path, Receipt], list[str]]
) -> int:
    made_from = {"version": lookup.VERSION, "origin": origin_digest(receipt)}
    seal = inside / SEAL
    if _is_fresh(seal, made_from):
        return 0
    names = write(folder, inside, receipt)
    files = [receipts.describe(inside / name) for name in names]
    content = {**made_from, "files": files}
    write_atomic(seal, canonical({**content, "digest": receipts.digest(content)}))
    return 1


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


def faults(build: BuildFolder, sealed: dict[Path, Receipt]) -> Iterator[str]:
    """Yield where lookups are damaged, or follow from other folders than those here."""
    for path in sorted(build.lookup.rglob(SEAL)):
        origin = build.path / path.parent.relative_to(build.lookup)
        try:
            seal = _read(path)
            files = [FileEntry.from_json(entry) for entry in seal["files"]]
            yield from receipts.damages(path.parent, files)
            is_of_it = origin not in sealed or seal["origin"] == origin_digest(sealed[origin])
        except DamageError as error:
            yield str(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield f"{path}: is no whole seal ({type(error).__name__}: {error}); {REMEDY}"
        else:
            if not is_of_it:
                yield f"{path}: was made from another {origin} than the one here; {REMEDY}"
    yield from tally.faults(build.lookup / SOURCES)


def origin_digest(receipt: Receipt) -> str:
    """Return a digest of what a folder holds, by its receipt, that no time of a file is part of."""
    return receipts.digest({**receipt.recipe, "content": receipt.content, "files": receipt.files})


def _of_source(folder: Path, inside: Path, _: Receipt) -> list[str]:
    lookup.write(folder / "documents.parquet", inside)
    return [lookup.NAMES, lookup.DIGESTS]


def _of_rows(folder: Path, inside: Path, receipt: Receipt) -> list[str]:
    names = [folder / entry["name"] for entry in shards_of(receipt)]
    spans.write(inside / RANGES, document_ranges.of_shards(names))
    return [RANGES]
