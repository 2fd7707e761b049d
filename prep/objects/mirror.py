"""Mirrors: local folders that stand for builds and runs behind urls.

A mirror has all small files of what it mirrors, and its links. Shards of rows are brought when they
are opened, each once, whole and checked by its digest; token blocks, which nobody who reads a build
opens, only where the whole of it is asked for. Mirrors lie below `$CRYSTALMIX_CACHE` (by default
`~/.cache/crystalmix/objects`); with `$CRYSTALMIX_CACHE_BYTES` the shards brought longest ago make
room for others.
"""

import fcntl
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import time_ns

import xxhash

from crystalmix.prep.objects.copies import each, indexed, link
from crystalmix.prep.objects.index import STORE, Index
from crystalmix.prep.objects.remote import Remote, checked
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.machine import machine

WAITS = ".h5"  # suffix of files that are brought when they are opened
UNREAD = (f"{STORE}/tokens/", f"{STORE}/uses/")
GRACE_SECONDS = 60
MARK = "mirror.json"
INDEX = "objects.json"
logger = logging.getLogger("crystalmix")


@dataclass(frozen=True)
class Mirror:
    """A mirror by its folder, and what it mirrors."""

    folder: Path
    url: str
    index: Index

    def bring(self, name: str) -> None:
        """Fetch a file unless it is there; other processes wait for the one that fetches."""
        path, file = self.folder / name, self.index.files[name]
        with _locked(self.folder.parent / "locks" / xxhash.xxh3_64_hexdigest(name.encode())):
            if path.exists():
                return
            _make_room(self.folder, file.bytes)
            remote = Remote(self.url)
            remote.fetch(name, path, file)
        logger.debug(
            "%s/%s: %s bytes in %d requests",
            self.url,
            name,
            f"{file.bytes:,}",
            remote.traffic.requests,
        )


def cache_root() -> Path:
    """Return the folder below which mirrors lie."""
    if own := os.environ.get("CRYSTALMIX_CACHE"):
        return Path(own).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache").absolute() / "crystalmix" / "objects"


def mirror(url: str, *, whole: bool = False) -> Path:
    """Return a local folder that stands for a build or run behind a url, as it is there now.

    whole: bring every file now. Raises InputError where the url holds no whole copy, MachineError
    where the way there fails.
    """
    remote = Remote(url)
    index = indexed(remote)
    home = cache_root() / xxhash.xxh3_64_hexdigest(remote.url.encode())
    folder = home / remote.url.rpartition("/")[2]
    with machine(home):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(home / "locks" / "mirror"):
            _refresh(home, folder, index)
            write_atomic(home / MARK, canonical({"url": remote.url}))
            wanted = [n for n in index.files if whole or not _waits(n)]
            missing = [name for name in wanted if not (folder / name).exists()]
            each(missing, lambda n: remote.fetch(n, folder / n, index.files[n]))
            link(folder, index)
    logger.info(
        "%s: %d files, %s bytes brought in %d requests; %d shards wait until they are read (%s)",
        remote.url, len(missing), f"{remote.traffic.received:,}", remote.traffic.requests,
        sum(not (folder / name).exists() for name in index.files if name.endswith(WAITS)), folder,
    )  # fmt: skip
    return folder


def is_mirrored(path: Path) -> bool:
    """Return whether a path lies in a mirror."""
    return path.absolute().is_relative_to(cache_root())


def bring(path: Path) -> bool:
    """Fetch a file that a mirror lacks; return whether it is there now.

    Only what lies below the cache is ever fetched.
    """
    real = path.parent.resolve() / path.name
    root = cache_root().resolve()
    if not real.is_relative_to(root):
        return False
    home, *inside = real.relative_to(root).parts
    if len(inside) < 2:
        return False
    local = _mirror(root / home, inside[0], _stamp(root / home / INDEX))
    name = "/".join(inside[1:])
    if local is None or name not in local.index.files:
        return False
    local.bring(name)
    return True


@lru_cache(maxsize=4)
def _mirror(home: Path, name: str, stamp: int) -> Mirror | None:
    if not stamp:
        return None
    url = read_json(home / MARK)["url"]
    return Mirror(home / name, checked(url), Index.parse((home / INDEX).read_bytes(), str(home)))


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _refresh(home: Path, folder: Path, index: Index) -> None:
    """Take away what is no longer so behind the url, and write its index down."""
    raw = (home / INDEX).read_bytes() if (home / INDEX).exists() else None
    if raw == index.raw():
        return
    before = Index.parse(raw, str(home / INDEX)) if raw is not None else Index({}, {})
    for name, file in before.files.items():
        if index.files.get(name) != file:
            (folder / name).unlink(missing_ok=True)
    for name, target in before.links.items():
        if index.links.get(name) != target:
            (folder / name).unlink(missing_ok=True)
    write_atomic(home / INDEX, index.raw())


def _waits(name: str) -> bool:
    return name.endswith(WAITS) or name.startswith(UNREAD)


def _make_room(folder: Path, size: int) -> None:
    """Remove the shards that were brought longest ago where the cache's bound asks for it.

    Those of the last minute stay, over the bound: somebody is about to open them.
    """
    bound = os.environ.get("CRYSTALMIX_CACHE_BYTES")
    if not bound:
        return
    if not bound.isdecimal():
        raise UsageError(f"CRYSTALMIX_CACHE_BYTES: must be a number of bytes, got {bound!r}")
    held = sorted(
        (path.stat().st_mtime_ns, path.stat().st_size, path) for path in folder.rglob(f"*{WAITS}")
    )
    room = int(bound) - size - sum(size for _, size, _ in held)
    for brought, freed, path in held:
        if room >= 0:
            return
        if 0 <= time_ns() - brought < GRACE_SECONDS * 10**9:  # else it is of a clock set back
            continue
        path.unlink(missing_ok=True)
        room += freed


@contextmanager
def _locked(path: Path) -> Generator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
