"""Digests of raw files, remembered by path, size, times and inode, so that none is read twice."""

import errno
from functools import lru_cache
from pathlib import Path

from crystalmix.prep.runtime.atomic_files import below, is_url
from crystalmix.prep.runtime.types import Content, frozen
from crystalmix.prep.store.store import Store, read_mark, write_mark


@frozen
class Remembered:
    """What is remembered of raw files in a store; `gc --drop digests` forgets it."""

    store: Store

    def digest(self, name: str, looks: Content) -> str | None:
        """Return the digest of a file that looks as it did, None where it is to be read.

        name: its absolute path or url. looks: size, times and inode; an unknown time never matches.
        What was remembered before `changed` was looked at is believed, and remembered with it.
        """
        path = self.store.remembered(name)
        entry = None if looks.get("modified") is None else read_mark(path)
        if entry is None:
            return None
        older = {"changed"} - entry.keys()
        if any(entry.get(key) != looks[key] for key in looks.keys() - older):
            return None
        if older and not self.store.dry:
            self.keep(name, looks, entry["xxh3"])
        return entry["xxh3"]

    def keep(self, name: str, looks: Content, xxh3: str) -> None:
        """Remember the digest of a file, unless the store lies on a disk that is read-only."""
        if looks.get("modified") is not None:
            try:
                write_mark(self.store.remembered(name), {"file": name, **looks, "xxh3": xxh3})
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise


def place_of(root: Path, name: str) -> str:
    """Return the absolute path of a file below a data root, be that a link; of a url itself."""
    if "://" in name:
        return name
    return below(root, name) if is_url(root) else str(_real(root) / name)


@lru_cache(maxsize=8)
def _real(root: Path) -> Path:
    return root.resolve()
