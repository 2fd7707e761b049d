"""Ranges of objects: of a file behind a url the blocks that somebody read, kept on this disk.

Two files stand for them: `.data`, sparse, as long as the object is, and `.sums`: a digest of the
object's version, then the xxh3-64 of each block that is here (0: it is not). A block whose bytes
have another sum is fetched again, so that none is taken that was written in part, by a process that
was killed or on a disk that lost its power.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import xxhash

from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.machine import machine

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crystalmix.prep.objects.remote import Remote

    Sums = NDArray[np.uint64]

BLOCK = 1 << 16
MOST_BLOCKS = 1 << 7  # of a request
KEPT = (".sums", ".data")
HEAD = 16  # bytes of `.sums` before the sums: a digest of the version
_read: dict[str, tuple[int, int]] = {}  # requests and bytes by url, since they were told
_alone = Lock()


@dataclass
class Ranges:
    """An object whose blocks are fetched when they are read; safe from any thread and process.

    place: of `.data` and `.sums`, without the suffix. size: in bytes. Reading blocks in a row asks
    for twice as many each time.
    """

    remote: Remote
    name: str
    size: int
    place: Path
    _next: int = -1  # the block after those fetched last
    _more: int = 1  # blocks to fetch where it is that one

    @property
    def identity(self) -> tuple[int, ...]:
        """What tells it from another file, as `open_shards.identity` does."""
        return 0, xxhash.xxh3_64_intdigest(str(self.place).encode()), 0, self.size

    def pread(self, _descriptor: int, size: int, at: int) -> bytes:
        """Return the bytes from `at` on, fewer at its end.

        Raises InputError where the object is another than the one that was read before.
        """
        size = max(0, min(size, self.size - at))
        if not size:
            return b""
        first, last = at // BLOCK, -(-(at + size) // BLOCK)
        with machine(self.place):
            content = self._blocks(first, last)
        return bytes(content[at - first * BLOCK :][:size])

    def _blocks(self, first: int, last: int) -> memoryview:
        self.place.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        sums, data = (os.open(f"{self.place}{kind}", flags, 0o600) for kind in KEPT)
        try:
            if os.fstat(data).st_size != self.size:
                os.ftruncate(data, self.size)
            kept = np.zeros(last - first, np.uint64)
            raw = os.pread(sums, kept.nbytes, HEAD + 8 * first)
            kept[: len(raw) // 8] = np.frombuffer(raw, np.uint64, len(raw) // 8)
            content = memoryview(bytearray(os.pread(data, (last - first) * BLOCK, first * BLOCK)))
            for low, high in _runs(np.flatnonzero(kept != _sums(content))):
                fetched = self._fetch(first + low, first + high, data, sums)
                wanted = content[low * BLOCK : high * BLOCK]
                wanted[:] = fetched[: len(wanted)]
        finally:
            os.close(data)
            os.close(sums)
        return content

    def _fetch(self, first: int, last: int, data: int, sums: int) -> memoryview:
        """Fetch blocks [first, last) and keep them; return their bytes, and those ahead."""
        self._more = min(2 * self._more, MOST_BLOCKS) if first == self._next else 1
        self._next = min(max(last, first + self._more), -(-self.size // BLOCK))
        stop = min(self._next * BLOCK, self.size)
        content, version = self.remote.read_range(self.name, first * BLOCK, stop)
        with _alone:
            requests, received = _read.get(self.remote.url, (0, 0))
            _read[self.remote.url] = requests + 1, received + len(content)
        self._check(sums, version)
        os.pwrite(data, content, first * BLOCK)
        os.pwrite(sums, _sums(memoryview(content)).tobytes(), HEAD + 8 * first)
        return memoryview(content)

    def _check(self, sums: int, version: tuple[int, str]) -> None:
        """Refuse an object of another size or version than that of the blocks that are here."""
        size, state = version
        place = f"{self.remote.url}/{self.name}"
        if size != self.size:
            raise InputError(
                f"{place}: has {size} bytes, its index says {self.size}; copy the build or run "
                "there again"
            )
        digest = xxhash.xxh3_128_digest(state.encode())
        before = os.pread(sums, HEAD, 0)
        if before in {b"", bytes(HEAD)}:
            os.pwrite(sums, digest, 0)
        elif before != digest:
            raise InputError(
                f"{place}: is another object than it was, though its index is the same; copy the "
                f"build or run there again, or remove {self.place.parent} to read it as it is"
            )


def _sums(content: memoryview) -> Sums:
    """Return the sum of each block, which is not 0."""
    starts = range(0, len(content), BLOCK)
    sums = [xxhash.xxh3_64_intdigest(content[at : at + BLOCK]) or 1 for at in starts]
    return np.array(sums, np.uint64)


def _runs(numbers: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Yield the bounds of runs of consecutive numbers, at most MOST_BLOCKS long."""
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
        for low in range(0, len(run), MOST_BLOCKS):
            some = run[low : low + MOST_BLOCKS].tolist()
            yield some[0], some[-1] + 1


def tell() -> None:
    """Log what this process fetched by ranges from each url since this was called last."""
    with _alone:
        for url, (requests, received) in _read.items():
            logging.getLogger("crystalmix").info(
                "%s: %s bytes of ranges brought in %d requests", url, f"{received:,}", requests
            )
        _read.clear()


class RangeFile(io.RawIOBase):
    """Ranges as a file, for whatever reads one."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges, self._at = ranges, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place; return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._ranges.size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._at

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401  whatever has a buffer
        """Read into a buffer; return how many bytes."""
        view = memoryview(buffer).cast("B")
        content = self._ranges.pread(-1, len(view), self._at)
        view[: len(content)] = content
        self._at += len(content)
        return len(content)
