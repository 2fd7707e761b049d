"""Bucket files: deflated rows between the two passes of a shuffle of many shards.

The first pass reads packed rows as they lie, and puts each into the bucket that its place in the
shuffled order is in: a run of that order, one or more shards of it or a part of one. The second
pass reads one bucket, or some, of every file. A file holds rows of some packed shards:

    <INDEX of each bucket, and of the end> <bucket> <bucket> ...

A bucket: the place of each row, ascending (int64), the bytes of each (uint32), the rows.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from crystalmix.prep.rows.shards import Buffer
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import DamageError

VERSION = 1
GROUP_TOKENS = 1 << 27  # of packed rows that an item of the first pass puts into buckets
BUCKET_TOKENS = 1 << 24  # at most, however badly they deflate: 200 MB
HELD_BYTES = 3 << 26  # deflated rows that a process holds in either pass
WRITTEN_BYTES = 1 << 22  # at once
INDEX = np.dtype([("at", "<u8"), ("rows", "<u8"), ("xxh3", "<u8")])
PLACE, SIZE = np.dtype("<i8"), np.dtype("<u4")
Numbers = NDArray[np.int64]


def ends_of(bounds: Sequence[tuple[int, int]], most: int) -> Numbers:
    """Return where in the order each bucket ends, of `most` rows at most.

    bounds: the rows [first, last) of each shard; smaller ones are kept whole.

    >>> ends_of([(0, 4), (4, 8), (8, 12), (12, 33)], 8).tolist()
    [8, 12, 20, 28, 33]
    """
    ends, begin = list[int](), bounds[0][0]
    for first, last in bounds:
        if last - begin > most and first > begin:
            ends.append(first)
            begin = first
        while last - begin > most:
            begin += most
            ends.append(begin)
    return np.array([*ends, bounds[-1][1]], np.int64)


class Writer:
    """Writer of rows in any order to one file of buckets, or to several where they are large.

    ends: of all buckets. files: name, rows and bytes of each file that was written.
    """

    def __init__(self, out: Path, ends: Numbers) -> None:
        self.out, self.ends = out, ends
        self.files: list[tuple[str, int, int]] = []
        self._places: list[Numbers] = []
        self._rows: list[Buffer] = []
        self._held = 0

    def add(self, places: Numbers, rows: Sequence[Buffer]) -> None:
        """Add deflated rows; places: of each in the order."""
        self._places.append(places)
        self._rows += rows
        self._held += sum(map(len, rows))
        if self._held >= HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are held."""
        if not self._rows:
            return
        number = len(self.files)
        path = self.out.with_stem(f"{self.out.stem}-{number}") if number else self.out
        places, rows = np.concatenate(self._places), self._rows
        self._places, self._rows, self._held = [], [], 0
        order = np.argsort(places, kind="stable")
        sizes = np.fromiter(map(len, rows), SIZE, len(rows))[order]
        index = np.zeros(len(self.ends) + 1, INDEX)
        index["at"] = at = index.nbytes
        cuts = np.searchsorted(places[order], np.append(0, self.ends)).tolist()
        with replacing(path) as temporary, temporary.open("wb", WRITTEN_BYTES) as file:
            file.write(index.tobytes())
            for bucket, (low, high) in enumerate(pairwise(cuts)):
                own = order[low:high]
                head = places[own].astype(PLACE).tobytes() + sizes[low:high].tobytes()
                data = b"".join([head, *(rows[i] for i in own.tolist())])
                index[bucket] = at, high - low, xxhash.xxh3_64_intdigest(data, high - low)
                at += file.write(data)
            index[-1] = at, 0, 0
            file.seek(0)
            file.write(index.tobytes())
        self.files.append((path.name, len(rows), at))


class Reader:
    """Reader of rows in the shuffled order, of which HELD_BYTES or one bucket are held at once.

    files: all files of buckets. row_bytes: of a row, on average. last: where what is read ends.
    """

    def __init__(self, files: Sequence[Path], ends: Numbers, row_bytes: float, last: int) -> None:
        self.files, self.ends, self.last = files, ends, last
        self.most = HELD_BYTES / row_bytes  # rows
        self._held: _Run | None = None

    def rows(self, first: int, last: int) -> Iterator[Buffer]:
        """Yield the deflated rows [first, last) of the order."""
        while first < last:
            if self._held is None or not self._held.first <= first < self._held.last:
                self._held = None  # before others are read
                self._held = self._read(first)
            stop = min(last, self._held.last)
            yield from self._held.rows(first, stop)
            first = stop

    def _read(self, first: int) -> "_Run":
        bucket = int(np.searchsorted(self.ends, first, side="right"))
        begin = int(self.ends[bucket - 1]) if bucket else 0
        most = min(begin + self.most, self.last)
        stop = max(bucket + 1, int(np.searchsorted(self.ends, most, side="right")))
        return _Run(self.files, (bucket, stop), (begin, int(self.ends[stop - 1])))


class _Run:
    """The rows of some buckets, held; first, last: where they lie in the order."""

    def __init__(
        self, files: Sequence[Path], buckets: tuple[int, int], bounds: tuple[int, int]
    ) -> None:
        self.first, self.last = bounds
        pieces = [_read(path, buckets) for path in files]
        self._data = [piece.data for piece in pieces]
        places, starts, sizes = (
            np.concatenate([getattr(piece, name) for piece in pieces])
            for name in ("places", "starts", "sizes")
        )
        owner = np.repeat(np.arange(len(pieces)), [len(piece.places) for piece in pieces])
        order = np.argsort(places, kind="stable")
        if not np.array_equal(places[order], np.arange(*bounds)):
            raise DamageError(
                f"{files[0].parent}: does not hold each row of {self.first} to {self.last} once; "
                "remove it and build again"
            )
        self._owner, self._starts, self._ends = owner[order], starts[order], (starts + sizes)[order]

    def rows(self, first: int, last: int) -> Iterator[memoryview]:
        """Yield the rows [first, last) of the order."""
        some = slice(first - self.first, last - self.first)
        columns = (self._owner[some], self._starts[some], self._ends[some])
        for owner, start, end in zip(*(column.tolist() for column in columns), strict=True):
            yield self._data[owner][start:end]


@dataclass(frozen=True)
class _Piece:
    """Some buckets of a file: their bytes, and of each row its place, start and size."""

    data: memoryview
    places: Numbers
    starts: Numbers
    sizes: Numbers


def _read(path: Path, buckets: tuple[int, int]) -> _Piece:
    """Read some buckets of a file: two reads, however many rows."""
    first, last = buckets
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _damage(path) from None
    try:
        size = (last - first + 1) * INDEX.itemsize
        index = np.frombuffer(_bytes(fd, path, size, first * INDEX.itemsize), INDEX)
        base = int(index["at"][0])
        data = memoryview(_bytes(fd, path, int(index["at"][-1]) - base, base))
    finally:
        os.close(fd)
    columns: list[tuple[Numbers, Numbers, Numbers]] = []
    for (at, rows, digest), end in zip(index[:-1].tolist(), index["at"][1:].tolist(), strict=True):
        some = data[at - base : end - base]
        if xxhash.xxh3_64_intdigest(some, rows) != digest:
            raise _damage(path)
        places = np.frombuffer(some, PLACE, rows)
        sizes = np.frombuffer(some, SIZE, rows, places.nbytes).astype(np.int64)
        starts = at - base + places.nbytes + rows * SIZE.itemsize + np.cumsum(sizes) - sizes
        columns.append((places, starts, sizes))
    return _Piece(data, *map(np.concatenate, zip(*columns, strict=True)))


def _bytes(fd: int, path: Path, size: int, at: int) -> bytes:
    if not 0 <= at <= at + size <= os.fstat(fd).st_size:
        raise _damage(path)
    data = os.pread(fd, size, at) if size else b""
    if len(data) != size:
        raise _damage(path)
    return data


def _damage(path: Path) -> DamageError:
    return DamageError(f"{path}: is not as it was written; remove {path.parent} and build again")
