"""Files that wait in mirrors, the local folders that stand for what lies behind urls.

What is not here is fetched whole and checked by its digest (`bring`, `settle`), or by the ranges
that are read (`readable`, `ranges_of`). Mirrors are made by `mirror`.
"""

import fcntl
import logging
import os
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import time_ns
from typing import IO, cast
from urllib.parse import quote

import xxhash

from crystalmix.prep.objects.copies import each
from crystalmix.prep.objects.index import STORE, File, Index
from crystalmix.prep.objects.ranges import KEPT, RangeFile, Ranges
from crystalmix.prep.objects.remote import Remote
from crystalmix.prep.runtime.atomic_files import MIRROR, read_json
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.lazy_names import imported_later

with imported_later(__name__):
    import sqlite3

SHARD = ".h5"  # suffix of files that have no name here before they are brought
TABLES = (".parquet", ".arrow")  # suffixes of files for which zeros stand
HEADED = ("receipt.json", "manifest.json")  # files whose head may stand for them
UNREAD = (f"{STORE}/tokens/", f"{STORE}/uses/")  # folders that nobody reads who reads a build
GRACE_SECONDS = 60
INDEX = "objects.json"
NAMES = "objects.sqlite"  # of the index what a file is, found by its name
BLOCKS = "blocks"
logger = logging.getLogger("crystalmix")


@dataclass(frozen=True)
class Mirror:
    """A mirror by its folder, and what it mirrors."""

    folder: Path
    remote: Remote
    _ranges: dict[str, Ranges] = field(default_factory=dict[str, Ranges])

    def file(self, name: str) -> File | None:
        """Return a file as the index has it, None where it has none of the name."""
        place = f"file:{quote(str(self.folder.parent / NAMES))}?mode=ro"
        with closing(sqlite3.connect(place, uri=True)) as names:
            row = names.execute("SELECT bytes, xxh3 FROM files WHERE name = ?", [name]).fetchone()
        return None if row is None else File(*row)

    def index(self) -> Index:
        """Return the whole index."""
        return Index.parse((self.folder.parent / INDEX).read_bytes(), str(self.folder.parent))

    def bring(self, name: str, file: File) -> None:
        """Fetch a file unless it is there; other processes wait for the one that fetches."""
        path = self.folder / name
        with locked(self.folder.parent / "locks" / xxhash.xxh3_64_hexdigest(name.encode())):
            if not is_missing(path):
                return
            _make_room(self.folder, file.bytes)
            before = self.remote.traffic.requests
            self.remote.fetch(name, path, file)
            forget(self.folder, name)
        logger.debug(
            "%s/%s: %s bytes in %d requests",
            self.remote.url,
            name,
            f"{file.bytes:,}",
            self.remote.traffic.requests - before,
        )

    def ranges(self, name: str) -> Ranges | None:
        """Return the ranges of a file, None as of `file`."""
        if name not in self._ranges:
            if (file := self.file(name)) is None:
                return None
            _make_room(self.folder, 0)
            self._ranges[name] = Ranges(self.remote, name, file.bytes, _blocks(self.folder, name))
        return self._ranges[name]


def cache_root() -> Path:
    """Return the folder below which mirrors lie."""
    if own := os.environ.get("CRYSTALMIX_CACHE"):
        return Path(own).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache").absolute() / "crystalmix" / "objects"


def bring(path: Path) -> bool:
    """Fetch a file that a mirror lacks; return whether it is there now.

    Only what lies below the cache is ever fetched.
    """
    local, name = _find(path)
    file = None if local is None else local.file(name)
    if local is None or file is None:
        return False
    local.bring(name, file)
    return True


def settled(path: Path) -> bool:
    """Fetch a file whose stand-in lies in a mirror; return whether it was fetched."""
    return _has_stand_in(path) and is_missing(path) and bring(path)


def settle(place: Path) -> None:
    """Bring the tables and JSON that wait in a mirror, for who reads whole files by their paths.

    place: anything in it, or anywhere else, where nothing waits.
    """
    local, _ = _find(place)
    if local is not None:
        files = local.index().files
        late = [n for n in files if not waits_whole(n) and is_missing(local.folder / n)]
        each(late, lambda name: local.bring(name, files[name]))


def ranges_of(path: Path) -> Ranges | None:
    """Return the ranges of a file that a mirror lacks; None where it is of no mirror."""
    local, name = _find(path)
    return None if local is None else local.ranges(name)


def readable(path: Path) -> Path | IO[bytes]:
    """Return what reads a table by parts: its path, or the ranges of one that waits in a mirror."""
    ranges = ranges_of(path) if is_missing(path) else None
    return path if ranges is None else cast("IO[bytes]", RangeFile(ranges))


def _find(path: Path) -> tuple[Mirror | None, str]:
    """Return the mirror in which a file lies, None where it lies elsewhere, and its name there."""
    real = path.parent.resolve() / path.name
    root = cache_root().resolve()
    if not real.is_relative_to(root):
        return None, ""
    home, *inside = real.relative_to(root).parts
    if not inside:
        return None, ""
    local = _mirror(root / home, inside[0], _stamp(root / home / MIRROR))
    return local, "/".join(inside[1:])


@lru_cache(maxsize=4)
def _mirror(home: Path, name: str, stamp: int) -> Mirror | None:
    if not stamp:
        return None
    return Mirror(home / name, Remote(read_json(home / MIRROR)["url"]))


def is_missing(path: Path) -> bool:
    """Return whether a file is not there, or its stand-in is: no table or JSON ends in a zero."""
    if not _has_stand_in(path):
        return not path.exists()
    try:
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            return size > 0 and os.pread(file.fileno(), 1, size - 1) == b"\0"
    except FileNotFoundError:
        return True


def _has_stand_in(path: Path) -> bool:
    """Return whether something may stand for a file of this name."""
    return path.suffix in TABLES or path.name in HEADED


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def waits_whole(name: str) -> bool:
    """Return whether a file has no name here before it is brought."""
    return name.endswith(SHARD) or name.startswith(UNREAD)


def _blocks(folder: Path, name: str) -> Path:
    """Return where the blocks of a file lie, without a suffix."""
    return folder.parent / BLOCKS / xxhash.xxh3_64_hexdigest(name.encode())


def forget(folder: Path, name: str) -> None:
    """Remove the blocks of a file."""
    for suffix in KEPT:  # the sums first: without them no block is there
        _blocks(folder, name).with_suffix(suffix).unlink(missing_ok=True)


def _make_room(folder: Path, size: int) -> None:
    """Remove the shards that were brought longest ago where the cache's bound asks for it.

    Those of the last minute stay, over the bound: somebody is about to open them.
    """
    bound = os.environ.get("CRYSTALMIX_CACHE_BYTES")
    if not bound:
        return
    if not bound.isdecimal():
        raise UsageError(f"CRYSTALMIX_CACHE_BYTES: must be a number of bytes, got {bound!r}")
    every = [*folder.rglob(f"*{SHARD}"), *(folder.parent / BLOCKS).glob(f"*{KEPT[1]}")]
    stats = [(path.stat(), path) for path in every if path.exists()]
    held = sorted((stat.st_mtime_ns, 512 * stat.st_blocks, path) for stat, path in stats)
    room = int(bound) - size - sum(size for _, size, _ in held)
    for brought, freed, path in held:
        if room >= 0:
            return
        if 0 <= time_ns() - brought < GRACE_SECONDS * 10**9:  # else it is of a clock set back
            continue
        path.with_suffix(KEPT[0]).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        room += freed


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold a lock that is a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
