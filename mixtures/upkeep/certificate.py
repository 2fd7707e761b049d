"""Certificate of a purge: what was erased where, what stays, and what could not be reached.

All of it is read from the receipts of the folders as they are now, and from the request: a purge
that was killed and went on has the same certificate as one that was not, but for its time.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import HISTORY, LOOKUP, MIXTURES, BuildFolder
from crystalmix.mixtures.manifest.purged import (
    Certificate,
    ChangedFile,
    ChangedManifest,
    ErasedShard,
    Marks,
    Request,
)
from crystalmix.mixtures.upkeep.collect import artifacts
from crystalmix.prep.runtime import receipts
from crystalmix.prep.store.store import Store

OWN = {
    *("sources", "domains", "phases", "store", "tokenizer.json", "about.json"),
    *(LOOKUP, MIXTURES, HISTORY, purged.PURGE),
}
STAYS = (
    "of each document: the xxh3-128 of its text, its length, its number, its file and record in "
    "the raw data, its places in rows (spans), salted hashes of its name",
    "as built: digests of shards that held it, in receipts and manifests, by which runs name them",
)
NOT_REACHED = (
    "raw files: the records are named by file and record in documents.parquet and dropped.parquet",
    "what was made of the build elsewhere: exports, merged builds, drop lists, evidence, letters",
    "weights, optimiser states and samples of runs: `crystalmix audit RUN --list` with texts.txt "
    "beside this says which steps consumed it, and the last checkpoint before",
    "old blocks of the disk, snapshots and backups, which are the file system's",
)
NO_MORE = (
    "the decoded rows of the shards above cannot be held against the digests that they were built "
    "with; they are held against those of what they hold now",
    "of steps that consumed these rows before, the digest of the batch cannot be worked out from "
    "rows; which rows they were, and the chain of digests, still can",
)


def linked(files: Iterable[Path]) -> list[str]:
    """Return the files that have another name, by which their old bytes stay reachable."""
    return sorted({str(path) for path in files if path.stat().st_nlink > 1})


def certified(
    folder: BuildFolder, request: Request, changed: Iterable[ChangedManifest]
) -> Certificate:
    """Return the certificate of a request that was done."""
    files = (*_files(folder, request.id), *_removed(request))
    links = [f"{path}: has another name, which holds its old bytes" for path in request.links]
    places = [place for _, place, _, _ in request.documents]
    return Certificate(
        schema=1,
        id=request.id,
        request=request.digest,
        time=request.time,
        finished=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        by=request.by,
        list=request.list,
        names=request.names,
        documents=sum(place >= 0 for place in places),
        dropped=sum(place < 0 for place in places),
        shards=sum(file.tokens is not None for file in files),
        rows=sum(file.rows or 0 for file in files),
        tokens=sum(file.tokens or 0 for file in files),
        files=files,
        manifests=tuple(changed),
        builds=request.builds,
        stays=[*STAYS, *_kept(request)],
        not_reached=[*NOT_REACHED, *links],
        not_verified=NO_MORE,
        not_read=sorted(path.name for path in folder.path.iterdir() if path.name not in OWN),
    ).sealed()


def _kept(request: Request) -> Iterator[str]:
    if request.names == "kept":
        yield "names of documents, as asked"
    if request.copies_left:
        yield f"{request.copies_left} other documents of equal text, or near it (no --copies)"


def _files(folder: BuildFolder, number: str) -> Iterator[ChangedFile]:
    """Yield the files of a build that a purge rewrote, as receipts record them."""
    store = Store(folder.store.resolve())
    for place in sorted({*artifacts(folder.path, store, history=True)}):
        if not (place / receipts.NAME).exists():
            continue
        receipt = receipts.read(place)
        marks, now = Marks.of(receipt), {entry["name"]: entry["xxh3"] for entry in receipt.files}
        inside = Path(folder.store.name) / place.relative_to(store.path)
        for name, mark in [*marks.shards.items(), *marks.files.items()]:
            if mark.purge == number:
                counts = (mark.rows, mark.tokens) if isinstance(mark, ErasedShard) else ()
                path = (inside / name).as_posix()
                yield ChangedFile(path, "rewritten", mark.was, now[name], *counts)


def _removed(request: Request) -> Iterator[ChangedFile]:
    for inside, digest in request.caches:
        yield ChangedFile(inside, "removed", digest, None)
