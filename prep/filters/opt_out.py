"""Opt-out lists: repositories, urls or texts that must not be used, one a line."""

from __future__ import annotations

import os
import stat
from array import array
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from crystalmix.prep.filters import entries
from crystalmix.prep.readers.files import local
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Strict, frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes, Numbers = NDArray[np.uint64], NDArray[np.int64]

NAME, DIGEST = "name", "digest"  # what a list may be matched with besides SQL
ENTRIES = "entries"  # each line says by itself what it is matched with: `entries`


@frozen
class OptOut(Strict):
    """A list of what its owners want left out, and what of a document it is matched with.

    file: relative to the data root; one entry a line, `#` begins a comment line.
    match: `name` (the source's identity), `digest` (xxh3-128 of the text, in hex), `entries` (names
    and what is below them, prefixes, digests: the lists of `audit`), or SQL over the source's
    columns. ignore_case: entries and values are compared in lower case.
    """

    file: str
    match: str = NAME
    ignore_case: bool = True

    def __post_init__(self) -> None:
        if not self.match.strip():
            raise ValueError("match: must be name, digest or SQL, got nothing")

    @property
    def sql(self) -> str | None:
        """The SQL that a record is matched by, None where none is needed."""
        return None if self.match in (NAME, DIGEST, ENTRIES) else self.match

    def matched(self, root: Path, values: list[str | None]) -> NDArray[np.int64]:
        """Return the number of the entry that each value is, -1 where it is none.

        Values are compared by 64-bit hashes: of a billion values and a million entries, one in
        twenty thousand builds leaves out one document too many.
        """
        path = local(root, self.file)
        hashes, entries = _entries(path, self.ignore_case, stamp(path))
        keys = np.array([_hash(value or "", self.ignore_case) for value in values], np.uint64)
        places = np.searchsorted(hashes, keys).clip(0, max(0, len(hashes) - 1))
        if len(hashes) == 0 or len(keys) == 0:
            return np.full(len(keys), -1, np.int64)
        present = np.array([value is not None for value in values])
        return np.where((hashes[places] == keys) & present, entries[places], -1)

    def matched_entries(
        self, root: Path, names: list[str | None], digests: list[bytes | None]
    ) -> NDArray[np.int64]:
        """Return the number of the entry (its line) that each document is of, -1 for none."""
        path = local(root, self.file)
        return entries.matcher(path, stamp(path)).matched(names, digests)

    def entries(self, root: Path) -> int:
        """Return how many different entries the list has."""
        path = local(root, self.file)
        if self.match == ENTRIES:
            return entries.matcher(path, stamp(path)).count
        return len(_entries(path, self.ignore_case, stamp(path))[0])


def stamp(path: Path) -> tuple[int, int]:
    """Return size and time of a list or evaluation file; InputError where it is missing."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 2)}; check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is no regular file; check the path")
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=8)
def _entries(path: Path, ignore_case: bool, _stamp: object) -> tuple[Hashes, Numbers]:
    """Return the sorted hashes of a list's entries, and the number of each (its line)."""
    hashes, numbers = array("Q"), array("q")
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file):
                if (entry := line.strip()) and not entry.startswith("#"):
                    hashes.append(_hash(entry, ignore_case))
                    numbers.append(number)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error.reason})") from None
    unique, first = np.unique(np.array(hashes, np.uint64), return_index=True)
    return unique, np.array(numbers, np.int64)[first]


def _hash(value: str, ignore_case: bool) -> int:
    value = value.strip()
    return xxhash.xxh3_64_intdigest((value.lower() if ignore_case else value).encode())
