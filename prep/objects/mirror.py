"""Mirrors: local folders that stand for builds and runs behind urls.

A mirror has all links of what it mirrors, and its small files. Tables wait: zeros of their size
stand for them, and for large receipts and manifests their heads with zeros behind; no reader takes
those for the file. Who asks for a part of one reads its ranges (`readable`); who needs it whole
brings it, checked by its digest, as those do who train on shards. Shards have no name here before
that, nor have checkpoints and token blocks, which come where all of it is asked for. Mirrors lie
below `$CRYSTALMIX_CACHE` (by default `~/.cache/crystalmix/objects`); with
`$CRYSTALMIX_CACHE_BYTES` the shards and ranges brought longest ago make room for others.
"""

import logging
import os
from contextlib import closing
from pathlib import Path

import xxhash

from crystalmix.prep.objects.copies import each, indexed, link
from crystalmix.prep.objects.index import NAME, STORE, File, Index
from crystalmix.prep.objects.remote import Remote
from crystalmix.prep.objects.waiting import (
    HEADED,
    INDEX,
    NAMES,
    TABLES,
    bring,
    cache_root,
    forget,
    is_missing,
    locked,
    waits_whole,
)
from crystalmix.prep.runtime.atomic_files import (
    MIRROR,
    canonical,
    read_json,
    replacing,
    write_atomic,
)
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.machine import machine

with imported_later(__name__):
    import sqlite3

__all__ = ["bring", "cache_root", "is_mirrored", "mirror"]

READ = (f"{STORE}/rows/", f"{STORE}/documents/")  # folders of the store that questions read
CONTINUED = ("/checkpoints/", "/metrics.jsonl")  # parts of names that no question reads
LARGE_BYTES = 1 << 18  # of what a question does not read and that waits, or has its head here
HEAD_BYTES = 1 << 16  # which hold what a receipt or manifest says of itself
logger = logging.getLogger("crystalmix")


def mirror(url: str, *, whole: bool = False, by_ranges: bool = False) -> Path:
    """Return a local folder that stands for a build or run behind a url, as it is there now.

    whole: bring every file now. by_ranges: bring no table, large JSON or checkpoint, as for a
    question. Raises InputError where the url holds no whole copy, MachineError where the way there
    fails.
    """
    remote = Remote(url)
    home = cache_root() / xxhash.xxh3_64_hexdigest(remote.url.encode())
    folder = home / remote.url.rpartition("/")[2]
    version, missing = remote.version(NAME), list[str]()
    if version is None:
        indexed(remote)  # tells that there is no whole one
    with machine(home):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(home / "locks" / "mirror"):
            before = read_json(home / MIRROR) if (home / MIRROR).exists() else {}
            mark = {"url": remote.url, "version": list(version or ())}
            if before != mark:
                index = indexed(remote)
                _refresh(home, folder, index)
                _stand_in(remote, folder, index)
                link(folder, index)
                write_atomic(home / MIRROR, canonical(mark))
            if not by_ranges:
                index = Index.parse((home / INDEX).read_bytes(), str(home))
                wanted = [n for n in index.files if whole or not waits_whole(n)]
                missing = [name for name in wanted if is_missing(folder / name)]
                each(missing, lambda n: remote.fetch(n, folder / n, index.files[n]))
    logger.info(
        "%s: %d files, %s bytes brought in %d requests; others wait until they are read (%s)",
        remote.url, len(missing), f"{remote.traffic.received:,}", remote.traffic.requests, folder,
    )  # fmt: skip
    return folder


def is_mirrored(path: Path) -> bool:
    """Return whether a path lies in a mirror."""
    return path.absolute().is_relative_to(cache_root())


def _refresh(home: Path, folder: Path, index: Index) -> None:
    """Take away what is no longer so behind the url, and write its index down."""
    raw = (home / INDEX).read_bytes() if (home / INDEX).exists() else None
    if raw == index.raw() and (home / NAMES).exists():
        return
    before = Index.parse(raw, str(home / INDEX)) if raw is not None else Index({}, {})
    for name, file in before.files.items():
        if index.files.get(name) != file:
            (folder / name).unlink(missing_ok=True)
            forget(folder, name)
    for name, target in before.links.items():
        if index.links.get(name) != target:
            (folder / name).unlink(missing_ok=True)
    lines = ((name, file.bytes, file.xxh3) for name, file in index.files.items())
    with replacing(home / NAMES) as temporary, closing(sqlite3.connect(temporary)) as names, names:
        names.execute("CREATE TABLE files (name PRIMARY KEY, bytes, xxh3) WITHOUT ROWID")
        names.executemany("INSERT INTO files VALUES (?, ?, ?)", lines)
    write_atomic(home / INDEX, index.raw())


def _stand_in(remote: Remote, folder: Path, index: Index) -> None:
    """Bring small files, and put stand-ins where larger ones wait for a question."""
    late = [n for n, file in index.files.items() if not _is_unread(n, file)]
    late = [name for name in late if not (folder / name).exists()]

    def stand(name: str) -> None:
        path, file = folder / name, index.files[name]
        head = path.name in HEADED and file.bytes > LARGE_BYTES
        if not head and path.suffix not in TABLES:
            remote.fetch(name, path, file)
            return
        with replacing(path) as temporary, temporary.open("wb") as out:
            if head:
                out.write(remote.read_range(name, 0, HEAD_BYTES)[0])
            out.truncate(file.bytes)
            os.utime(temporary, (0, 0))  # older than what was made from it

    each(late, stand)


def _is_unread(name: str, file: File) -> bool:
    """Return whether no question reads a file."""
    if waits_whole(name) or (name.startswith(f"{STORE}/") and not name.startswith(READ)):
        return True
    return file.bytes > LARGE_BYTES and any(part in f"/{name}" for part in CONTINUED)
