"""Scattered rows: rows of many shards in any order, each file opened once and read forwards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.rows.hdf5_layout import CHANNELS
from crystalmix.prep.rows.open_shards import (
    POOL,
    UNREADABLE,
    Buffer,
    Handle,
    Rows,
    fault,
    inflated,
    reading,
)

FEW_ROWS = 64  # of a shard, which are read by ranges from an object store
HELD_BYTES = 1 << 26  # deflated rows that are held at once
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Scattered:
    """Rows to read: row rows[i] of sources[which[i]]."""

    sources: Sequence[Path]
    which: Numbers
    rows: Numbers

    def path(self, i: int) -> Path:
        """Return the file of the i-th row."""
        return self.sources[int(self.which[i])]

    def files(self, first: int = 0, last: int | None = None) -> Iterator[tuple[Path, Numbers]]:
        """Yield each file of the rows [first, last) once, with its places among all, by row."""
        which, rows = self.which[first:last], self.rows[first:last]
        order = np.lexsort((rows, which))
        cuts = np.flatnonzero(np.diff(which[order])) + 1
        for places in np.split(order, cuts) if len(order) else []:
            yield self.path(first + int(places[0])), first + places


def gather(
    sources: Sequence[Path],
    which: NDArray[np.integer],
    rows: NDArray[np.integer],
    *,
    whole: bool = False,
) -> Rows:
    """Read scattered rows, row rows[i] of sources[which[i]]: (n, 3, msl) int32.

    whole: bring the shards that a mirror lacks, as for who reads on in them; else those alone of
    which more than FEW_ROWS are read. Raises DamageError for a row that is not there, a broken
    file, and files of two msl.
    """
    request = Scattered(sources, which.astype(np.int64), rows.astype(np.int64))
    if not len(rows):
        raise ValueError("no rows")
    out: Rows | None = None
    for path, places in request.files():
        with reading(path):
            handle = POOL.get(path, whole=whole or len(places) > FEW_ROWS)
            handle.check(request.rows[places])
            if out is None:
                out = np.empty((len(rows), CHANNELS, handle.msl), dtype=np.int32)
            _same_msl(handle, out.shape[2])
            handle.into(out, places, request.rows[places])
    assert out is not None
    return out


@dataclass(frozen=True)
class _Located:
    """Where scattered rows lie: of each row the place and size of its chunk, 0 if HDF5 reads it.

    identities: of each source that is read.
    """

    at: NDArray[np.uint64]
    size: NDArray[np.int64]
    skipped: NDArray[np.uint32]
    row_bytes: int
    identities: dict[Path, tuple[int, ...]] = field(default_factory=dict)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield bounds of runs of rows of HELD_BYTES at most, or of one row."""
        held = np.cumsum(np.where(self.size, self.size, self.row_bytes))
        first = 0
        while first < len(held):
            before = held[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(held, before + HELD_BYTES, side="right")))
            yield first, last
            first = last


def packed(
    sources: Sequence[Path], which: NDArray[np.integer], rows: NDArray[np.integer]
) -> Iterator[tuple[Buffer, bytes | None]]:
    """Yield scattered rows one by one: plain bytes, and the chunk as it lies deflated in its file.

    The chunk is None where the row is not stored so (another layout). Memory is bounded by
    HELD_BYTES; a file is opened once for each such block of rows. Raises DamageError as `gather`,
    and for a file that is replaced meanwhile.
    """
    request = Scattered(sources, which.astype(np.int64), rows.astype(np.int64))
    located = _locate(request)
    for first, last in located.blocks():
        chunks = _hold(request, located, first, last)
        skipped = located.skipped[first:last].tolist()
        sizes = located.size[first:last].tolist()
        for i, data in enumerate(chunks):
            bare = skipped[i] if sizes[i] else 1
            try:
                plain = inflated(data, bare, located.row_bytes)
            except UNREADABLE as error:
                raise fault(request.path(first + i), error) from None
            yield plain, None if bare else data


def _locate(request: Scattered) -> _Located:
    count = len(request.rows)
    at, size = np.zeros(count, np.uint64), np.zeros(count, np.int64)
    skipped, row_bytes = np.zeros(count, np.uint32), 0
    identities: dict[Path, tuple[int, ...]] = {}
    for path, places in request.files():
        with reading(path):
            handle = POOL.get(path, whole=True)
            handle.check(request.rows[places])
            row_bytes = row_bytes or handle.row_bytes
            _same_msl(handle, row_bytes // 4 // CHANNELS)
            identities[path] = handle.identity
            entries = handle.locate(request.rows[places])
            if entries is not None:
                at[places], size[places] = entries["at"], entries["size"]
                skipped[places] = entries["skipped"]
    return _Located(at, size, skipped, row_bytes, identities)


def _hold(request: Scattered, located: _Located, first: int, last: int) -> list[bytes]:
    """Read the chunks of the rows [first, last), or plain rows where HDF5 must read them."""
    held = [b""] * (last - first)
    for path, places in request.files(first, last):
        with reading(path):
            handle = POOL.get(path, whole=True)
            if handle.identity != located.identities[path]:
                raise ValueError("was replaced while it was read")
            if located.size[places[0]]:
                where = located.at[places].tolist(), located.size[places].tolist()
                for place, at, size in zip((places - first).tolist(), *where, strict=True):
                    held[place] = handle.packed(at, size)
            else:
                block: Any = np.empty((len(places), CHANNELS, handle.msl), dtype=np.int32)
                handle.into(block, np.arange(len(places)), request.rows[places])
                for place, row in zip((places - first).tolist(), block, strict=True):
                    held[place] = row.tobytes()
    return held


def _same_msl(handle: Handle, msl: int) -> None:
    if handle.msl != msl:
        raise ValueError(f"has rows of {handle.msl} tokens, the others of {msl}")
