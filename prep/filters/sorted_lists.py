"""Sorted lists on disk: entries by a 64-bit key, of which one range of keys is read at a time.

A list is a plain file of segments. Each holds SEGMENT entries, the last one those that are left,
sorted by key: its columns one after the other, little-endian, the key (uint64) first. Keys are
digests or hashes, so that ranges of equal width hold about equally many entries. A search over many
lists is one work item for each range: what an item holds follows from the size of a range alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from crystalmix.prep.runtime.atomic_files import read_json, replacing, write_atomic
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json, frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Columns = Sequence[NDArray[Any]]
    Keys = NDArray[np.uint64]
    Places = NDArray[np.int64]

SEGMENT = 1 << 20  # entries that are sorted together
RANGE = 1 << 21  # entries of all lists in one range, about


@frozen
class KeyRange:
    """One of `of` equal ranges of the 64-bit keys."""

    number: int
    of: int

    @property
    def bounds(self) -> tuple[np.uint64, np.uint64]:
        """The smallest and the largest key.

        >>> KeyRange(1, 2).bounds == (2**63, 2**64 - 1)
        True
        """
        first, behind = (-(-(n << 64) // self.of) for n in (self.number, self.number + 1))
        return np.uint64(first), np.uint64(behind - 1)


def ranges(entries: int, most: int | None = None) -> list[KeyRange]:
    """Return the ranges that this many entries are searched by, of about `most` each."""
    count = max(1, -(-entries // (most or RANGE)))
    return [KeyRange(number, count) for number in range(count)]


@frozen
class Layout:
    """The types of an entry's columns, the key first."""

    types: tuple[str, ...]

    @property
    def width(self) -> int:
        """Bytes of an entry."""
        return sum(np.dtype(kind).itemsize for kind in self.types)

    def write(self, path: Path, pieces: Iterable[Columns]) -> None:
        """Write a list; pieces: columns of entries, in any order."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            for columns in _segments(pieces):
                order = np.argsort(columns[0], kind="stable")
                for column, kind in zip(columns, self.types, strict=True):
                    file.write(column[order].astype(kind).tobytes())

    def count(self, path: Path) -> int:
        """Return how many entries a list has."""
        return path.stat().st_size // self.width

    def read(self, path: Path, keys: KeyRange) -> Iterator[list[NDArray[Any]]]:
        """Yield the entries of a range of keys, segment by segment."""
        first, last = keys.bounds
        with path.open("rb") as file:
            entries = file.seek(0, 2) // self.width
            place = 0
            view = mmap(file.fileno(), 0, access=ACCESS_READ) if entries else b""
            while entries:
                size = min(entries, SEGMENT)
                columns: list[NDArray[Any]] = []
                for kind in self.types:
                    columns.append(np.frombuffer(view, kind, size, place))
                    place += columns[-1].nbytes
                low = columns[0].searchsorted(first)
                high = columns[0].searchsorted(last, "right")
                if low < high:
                    yield [column[low:high].copy() for column in columns]
                entries -= size


def _segments(pieces: Iterable[Columns]) -> Iterator[list[NDArray[Any]]]:
    """Yield the columns of pieces, cut anew: SEGMENT entries at a time."""
    blocks: list[Columns] = []
    for piece in pieces:
        blocks.append(piece)
        while (count := sum(len(columns[0]) for columns in blocks)) >= SEGMENT:
            columns = joined(blocks)
            yield [column[:SEGMENT] for column in columns]
            blocks = [[column[SEGMENT:] for column in columns]] if count > SEGMENT else []
    if blocks:
        yield joined(blocks)


def joined(pieces: Sequence[Columns]) -> list[NDArray[Any]]:
    """Return the columns of some pieces, one behind the other."""
    return [np.concatenate(columns) for columns in zip(*pieces, strict=True)]


def gathered(pieces: Iterable[Sequence[Columns]]) -> Iterator[list[NDArray[Any]]]:
    """Yield columns of what is there, in order: at least RANGE entries, the last ones less.

    pieces: of one list each; a list is never divided.
    """
    blocks: list[Columns] = []
    count = 0
    for piece in pieces:
        blocks += piece
        count += sum(len(columns[0]) for columns in piece)
        if count >= RANGE:
            yield joined(blocks)
            blocks, count = [], 0
    if count:
        yield joined(blocks)


class Seen:
    """Keys that were seen, and where each was first; it grows with the different ones alone.

    A key is one or more columns, of which the first alone nearly always tells keys apart.
    """

    def __init__(self, columns: int) -> None:
        self.keys: list[Keys] = [np.empty(0, np.uint64)] * columns
        self.first: Places = np.empty(0, np.int64)

    def add(self, keys: Sequence[Keys], places: Places) -> tuple[Places, Places]:
        """Return which of these keys were seen before, ascending, and where each was first.

        places: ascending, and none before those of earlier calls.
        """
        count = len(self.first)
        every = [np.concatenate(pair) for pair in zip(self.keys, keys, strict=True)]
        order, is_new = sorted_groups(every)
        first = np.concatenate([self.first, places])[order[is_new]]
        again = np.flatnonzero(~is_new)
        rows = order[again] - count
        firsts = first[np.cumsum(is_new)[again] - 1]
        self.keys, self.first = [column[order[is_new]] for column in every], first
        by_place = np.argsort(rows)
        return rows[by_place], firsts[by_place]


def sorted_groups(keys: Sequence[Keys]) -> tuple[Places, NDArray[np.bool_]]:
    """Return the stable order of keys, and for each in that order whether it is another one."""
    order = np.argsort(keys[0], kind="stable")  # of sorted runs, which it finds
    is_new = _differ(keys[0][order])
    if len(keys) > 1:
        others = np.logical_or.reduce([_differ(column[order]) for column in keys[1:]])
        if (others & ~is_new).any():
            order = np.lexsort(keys[::-1])
            others = np.logical_or.reduce([_differ(column[order]) for column in keys])
        is_new |= others
    return order, is_new


def _differ(values: Keys) -> NDArray[np.bool_]:
    return np.concatenate([np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1]])


class Grouped:
    """Entries by the number of a list, as items write them: each file ascends by number.

    Beside each file, which holds entries of one numpy type, lie the places where numbers begin.
    """

    def __init__(self, paths: Sequence[Path], kind: np.dtype[Any]) -> None:
        self.paths, self.kind = paths, kind
        self.starts = [np.load(_starts(path), "r") for path in paths]
        self.files = [
            np.memmap(path, kind, "r") if starts[-1] else np.empty(0, kind)
            for path, starts in zip(paths, self.starts, strict=True)
        ]

    def between(self, low: int, high: int) -> NDArray[Any]:
        """Return the entries of lists [low, high), file by file."""
        parts = [
            file[starts[low] : starts[high]]
            for file, starts in zip(self.files, self.starts, strict=True)
        ]
        return np.concatenate([np.empty(0, self.kind), *parts])

    @property
    def counts(self) -> Places:
        """How many entries each list has."""
        counts = np.diff(np.load(_starts(self.paths[0])))
        for path in self.paths[1:]:
            counts += np.diff(np.load(_starts(path)))
        return counts


def write_grouped(path: Path, lists: int, pieces: Iterable[tuple[Places, NDArray[Any]]]) -> int:
    """Write a file of `Grouped`; return how many. pieces: lists' numbers, ascending; entries."""
    counts = np.zeros(lists, np.int64)
    with replacing(path) as temporary, temporary.open("wb") as file:
        for numbers, entries in pieces:
            counts += np.bincount(numbers, minlength=lists)
            file.write(entries.tobytes())
    starts = np.concatenate([[0], np.cumsum(counts)])
    with replacing(_starts(path)) as temporary, temporary.open("wb") as file:
        np.save(file, starts)
    return int(starts[-1])


def _starts(path: Path) -> Path:
    return path.with_suffix(".starts")


def write_catalogue(path: Path, content: Json) -> Path:
    """Write what all items of a search look at, so that each of them names only this file."""
    write_atomic(path, orjson.dumps(content))
    return path


@lru_cache(maxsize=2)
def catalogue(path: Path) -> Json:
    """Read it, once a process."""
    return read_json(path)
