"""Pool of open shards: a bounded number of files, never one that was replaced meanwhile.

A row of ours or of Model Zoo's is read and inflated here, without HDF5; rows of any other layout
(other chunks, filters or versions of the format) are read by h5py.
"""

import errno
import math
import os
import resource
import stat
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import finalize

import deflate
import h5py
import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.objects.ranges import Ranges
from crystalmix.prep.objects.waiting import bring, ranges_of
from crystalmix.prep.rows import hdf5_layout, tombstones
from crystalmix.prep.rows.hdf5_layout import CHANNELS, Chunks, Pread
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError
from crystalmix.prep.runtime.machine import machine_error

Rows = NDArray[np.int32]  # (rows, 3, msl)
Buffer = bytes | bytearray | memoryview
FOREIGN_CACHE = 1 << 20  # bytes of chunks that HDF5 keeps inflated for each file
MOST_CHUNK_BYTES = 1 << 27  # HDF5 inflates a chunk whole, so this bounds the memory
OWN_FILTERS = {1, 2, 3, 32000}  # deflate, byte shuffle, checksum; LZF, which h5py brings
FOREIGN_WEIGHT = 8  # of what HDF5 opens, in the pool
WINDOW_BYTES = 1 << 24  # read at once of a shard that is read from its first row to its last
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # no fault of the file
UNREADABLE = (
    *(OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError),
    deflate.DeflateError,
)


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Raise a DamageError that names the shard for what a missing or broken one raises."""
    try:
        yield
    except UNREADABLE as error:
        raise fault(path, error) from None


def fault(path: Path, error: BaseException) -> CrystalmixError:
    """Return the error for what reading a shard raised: the machine's trouble, or damage."""
    if isinstance(error, FileNotFoundError):
        return DamageError(f"{path}: is missing; build again or restore it")
    if trouble := machine_error(error, path):
        return trouble
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DamageError(f"{path}: is not a readable shard ({first}); build again or restore it")


def inflated(packed: Buffer, skipped: int, size: int) -> Buffer:
    """Return the `size` bytes of a row from its chunk; its checksum (Adler-32) is checked."""
    if skipped > 1:
        raise ValueError(f"a row that skipped filters {skipped:#x}")
    data = packed if skipped else deflate.zlib_decompress(packed, size)
    if len(data) != size:
        raise ValueError(f"a row of {len(data)} bytes, expected {size}")
    return data


class _Window:
    """The part of a file that was read last, for many small reads in the order of the file."""

    def __init__(self, pread: Pread) -> None:
        self._at, self._data, self._asked = 0, b"", 0
        self._pread = pread

    def pread(self, fd: int, size: int, at: int) -> bytes:
        """Return the bytes of a file from `at` on, fewer at its end."""
        low = at - self._at
        ended = len(self._data) < self._asked
        if low < 0 or (low + size > len(self._data) and not ended):
            self._at, low, self._asked = at, 0, max(size, WINDOW_BYTES)
            self._data = self._pread(fd, self._asked, at)
        return self._data[low : low + size]


class Handle:
    """One open shard. Its file is closed when no reference to it is left.

    identity: inode, time and size: a file that replaced another under its name has another inode,
    even within one tick of the clock. ranges: what reads the file in place of its path.
    """

    def __init__(self, path: Path, ranges: Ranges | None = None) -> None:
        self.path = path
        self._pread: Pread = os.pread if ranges is None else ranges.pread
        if ranges is None:
            # a FIFO would wait for its writer for ever
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            finalize(self, os.close, self._fd)
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is no regular file")
            self.identity = identity(status)
        else:
            self._fd, self.identity = -1, ranges.identity
        self._chunks = hdf5_layout.read(self._fd, self.identity[-1], self._pread)
        if ranges is not None and self._chunks is None:
            raise UnknownLayoutError
        self._dataset: Any = None
        if self._chunks is None:
            self._dataset = _foreign(path)
            self.rows, _, self.msl = map(int, self._dataset.shape)
        else:
            self.rows, self.msl = self._chunks.rows, self._chunks.msl
        is_alone = self._chunks is not None and self._chunks.together == 1
        self._own_chunks = self._chunks if is_alone else None  # one of each row
        self.row_bytes = CHANNELS * self.msl * 4
        if not 0 < self.row_bytes <= MOST_CHUNK_BYTES:
            raise ValueError(f"its rows are of {self.msl} tokens")

    @property
    def weight(self) -> int:
        """Return what the handle costs in the pool."""
        return 1 if self._dataset is None else FOREIGN_WEIGHT

    def check(self, rows: NDArray[np.integer]) -> None:
        """Raise DamageError for row numbers, ascending, that the shard does not have."""
        if len(rows) and not 0 <= rows[0] <= rows[-1] < self.rows:
            raise DamageError(
                f"{self.path}: has {self.rows} rows, but rows {rows[0]} to {rows[-1]} are asked; "
                "build again or restore it"
            )

    def is_of(self, now: tuple[int, ...]) -> bool:
        """Tell whether the file of an identity is the one that was opened."""
        return self.identity == now

    def locate(self, rows: NDArray[np.int64]) -> NDArray[Any] | None:
        """Return the `hdf5_layout.ENTRY` of each row, ascending; None if none has its own chunk."""
        if self._own_chunks is None:
            return None
        return self._own_chunks.locate(self._fd, rows, self._pread)

    def packed(self, at: int, size: int, pread: Pread | None = None, together: int = 1) -> bytes:
        """Read the bytes of one chunk, of so many rows together, as they are."""
        plain = self.row_bytes * together
        if size > 2 * plain + 1024:  # deflate adds far less: spare the memory
            raise ValueError(f"a row of {size} bytes deflated, {plain} plain")
        data = (pread or self._pread)(self._fd, size, at)
        if len(data) != size:
            raise ValueError(f"a row ends past the end of the file, at byte {at + size}")
        return data

    def chunks(self, rows: int) -> Iterator[tuple[bytes, int]] | None:
        """Return the first rows, of each its chunk and the filters it skipped; None as `locate`.

        The file is read by WINDOW_BYTES at a time.
        """
        if self._own_chunks is None:
            return None
        window = _Window(self._pread)
        entries = self._own_chunks.locate(self._fd, np.arange(rows), window.pread)
        places, sizes = entries["at"].tolist(), entries["size"].tolist()
        chunks = (self.packed(*place, window.pread) for place in zip(places, sizes, strict=True))
        return zip(chunks, entries["skipped"].tolist(), strict=True)

    def into(self, out: Rows, places: NDArray[np.integer], rows: NDArray[np.int64]) -> None:
        """Read rows, ascending, to the places out[places]."""
        if self._chunks is not None and self._own_chunks is None:
            self._shared_into(self._chunks, out, places, rows)
            return
        entries = self.locate(rows)
        if entries is None:
            for first, last in _runs(rows):
                here = slice(int(rows[first]), int(rows[last - 1]) + 1)
                out[places[first:last]] = self._dataset[here]
            return
        flat, size = out.reshape(-1).data.cast("B"), self.row_bytes
        where = zip(
            (places * size).tolist(),
            entries["at"].tolist(),
            entries["size"].tolist(),
            entries["skipped"].tolist(),
            strict=True,
        )
        for place, at, length, skipped in where:
            flat[place : place + size] = inflated(self.packed(at, length), skipped, size)

    def _shared_into(
        self, chunks: Chunks, out: Rows, places: NDArray[np.integer], rows: NDArray[np.int64]
    ) -> None:
        """Read rows as `into`, where several share a chunk: each chunk is inflated once."""
        number, within = np.divmod(rows, chunks.together)
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        entries = chunks.locate(self._fd, rows[starts], self._pread)
        shape = chunks.together, CHANNELS, self.msl
        where = zip(
            pairwise([*starts.tolist(), len(rows)]),
            entries["at"].tolist(),
            entries["size"].tolist(),
            entries["skipped"].tolist(),
            strict=True,
        )
        for (first, last), at, length, skipped in where:
            packed = self.packed(at, length, together=chunks.together)
            plain = inflated(packed, skipped, chunks.together * self.row_bytes)
            block = np.frombuffer(plain, "<i4").reshape(shape)
            out[places[first:last]] = block[within[first:last]]


class UnknownLayoutError(Exception):
    """A shard whose rows HDF5 must read, from a file."""


class BuriedHandle(Handle):
    """An open shard with tombstones: its rows are those of the shard that it was, without them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stones, origin = tombstones.read(path)
        self._origin = opened(origin)
        self.identity = found(path)
        self.rows, self.msl = self._origin.rows, self._origin.msl
        self.row_bytes = self._origin.row_bytes
        if len(self._stones.row) and not (
            0 <= self._stones.rows[0] <= self._stones.rows[-1] < self.rows
            and self._stones.start.min() >= 0
            and (self._stones.start <= self._stones.stop).all()
            and self._stones.stop.max() <= self.msl
        ):
            raise ValueError("its tombstones lie outside its rows")

    @property
    def weight(self) -> int:
        """Return what the handle costs in the pool."""
        return 1 + self._origin.weight

    def is_of(self, now: tuple[int, ...]) -> bool:
        """Tell whether the tombstones and the shard that it was are the ones that were opened."""
        return super().is_of(now) and self._origin.is_of(found(self._origin.path))

    def locate(self, rows: NDArray[np.int64]) -> None:
        """Return None: rows with tombstones lie nowhere as they are."""
        del rows

    def chunks(self, rows: int) -> None:
        """Return None, as `locate`."""
        del rows

    def into(self, out: Rows, places: NDArray[np.integer], rows: NDArray[np.int64]) -> None:
        """Read rows, ascending, to the places out[places]."""
        self._origin.into(out, places, rows)
        for at in np.flatnonzero(np.isin(rows, self._stones.rows)).tolist():
            self._stones.bury(out[places[at]], int(rows[at]))


def opened(path: Path) -> Handle:
    """Open a shard, or what stands for it: tombstones in a redacted build, ranges in a mirror."""
    if path.exists():
        return Handle(path)
    if tombstones.path_of(path).exists():
        return BuriedHandle(path)
    try:
        return Handle(path, ranges_of(path))
    except UnknownLayoutError:
        bring(path)
        return Handle(path)


def found(path: Path, *, whole: bool = False) -> tuple[int, ...]:
    """Return the identity of the file that has a shard's name now, or of what stands for it.

    whole: bring the file where a mirror lacks it.
    """
    try:
        return identity(os.stat(path))  # noqa: PTH116  half the price of Path.stat
    except FileNotFoundError:
        side = tombstones.path_of(path)
        if side.exists():
            return identity(side.stat())
        if whole and bring(path):
            return identity(path.stat())
        if (ranges := ranges_of(path)) is None:
            raise
        return ranges.identity


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of runs of consecutive rows."""
    return pairwise([0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)])


def _foreign(path: Path) -> h5py.Dataset:
    """Open a shard of another layout; ValueError for what is no whole (rows, 3, msl) int32."""
    file = h5py.File(path, "r", rdcc_nbytes=FOREIGN_CACHE)
    link: Any = file.get("data", getlink=True)
    if link is None:
        raise ValueError("has no dataset `data`")
    if not isinstance(link, h5py.HardLink):
        raise ValueError("`data` is a link to elsewhere, which is not followed")
    dataset: Any = file["data"]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 3 or dataset.shape[1] != CHANNELS:
        raise ValueError(f"`data` is not of shape (rows, {CHANNELS}, msl)")
    if dataset.dtype != np.dtype("<i4"):
        raise ValueError(f"`data` is {dataset.dtype}, not int32")
    _check_stored(dataset)
    n_examples = file.attrs.get("n_examples", dataset.shape[0])
    if n_examples != dataset.shape[0]:
        raise ValueError(f"n_examples is {n_examples}, but `data` has {dataset.shape[0]} rows")
    return dataset


def _check_stored(dataset: h5py.Dataset) -> None:
    """Raise ValueError where HDF5 would load a plugin, read other files, or invent rows."""
    settings = dataset.id.get_create_plist()
    filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    if strange := filters - OWN_FILTERS:
        raise ValueError(f"its rows need a plugin (HDF5 filter {min(strange)}): repack it by gzip")
    if dataset.external or dataset.is_virtual:
        raise ValueError("its rows lie in other files, which are not read")
    chunk: tuple[int, ...] | None = dataset.chunks
    size = 4 * math.prod(dataset.shape)
    if chunk is not None:
        if 4 * math.prod(chunk) > MOST_CHUNK_BYTES:
            raise ValueError(f"its chunks of {chunk} are too large: repack it in chunks of a row")
        count = math.prod(-(-n // c) for n, c in zip(dataset.shape, chunk, strict=True))
        if dataset.id.get_num_chunks() != count:
            raise ValueError(f"holds {dataset.id.get_num_chunks()} chunks of {count}")
        size = 4 * count * math.prod(chunk)
    stored = dataset.id.get_storage_size()
    if not filters and stored != size:
        raise ValueError(f"holds {stored} bytes of rows, expected {size}")


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what tells a file from another that has, or had, its name."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class Pool:
    """Open handles by path, least recently used evicted first; an evicted handle stays usable."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.weight = 0
        self._handles: OrderedDict[Path, Handle] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._handles)

    def get(self, path: Path, *, whole: bool = False) -> Handle:
        """Return an open handle of the file that has this name now.

        whole: of one that a mirror lacks bring the file, in place of the ranges that are read.
        """
        now = found(path, whole=whole)
        with self._lock:
            handle = self._handles.get(path)
            if handle is not None and handle.is_of(now):
                self._handles.move_to_end(path)
                return handle
        handle = self._open(path)
        with self._lock:
            self._drop(path)
            self._handles[path] = handle
            self.weight += handle.weight
            while self.weight > self.most and len(self._handles) > 1:
                self._drop(next(iter(self._handles)))
        return handle

    def clear(self) -> None:
        """Close every file that nobody reads from."""
        with self._lock:
            for path in list(self._handles):
                self._drop(path)

    def _open(self, path: Path) -> Handle:
        try:
            return opened(path)
        except OSError as error:
            if error.errno not in SHORT_OF:
                raise
            self.clear()  # others took the descriptors that were free
            return opened(path)

    def _drop(self, path: Path) -> None:
        dropped = self._handles.pop(path, None)
        self.weight -= 0 if dropped is None else dropped.weight


def _most() -> int:
    """Return how many files to keep open: a quarter of what this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(512, soft // 4))


POOL = Pool(_most())
