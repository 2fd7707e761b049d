"""Frames: a file of integers in zstd frames of equal length, of which any run is read alone.

    <frame> ... <frame> <bytes of each frame: uint32> <MAGIC>

A frame holds FRAME numbers, the last one what is left, and a checksum. A file of no number is
empty. Files of plain numbers, as they were written before, are read too: their size tells them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from crystalmix.prep.runtime.lazy_names import imported_later

with imported_later(__name__):
    import numpy as np
    import zstandard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.integer]

FRAME = 1 << 15
LEVEL = 4
MAGIC = b"frames-1"
SIZES, SIZE_BYTES = "<u4", 4


class FrameWriter:
    """Writer of numbers to an open file, frame by frame."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any]) -> None:
        self.file, self.dtype = file, dtype
        self.rest: Integers = np.empty(0, dtype)
        self.sizes: list[int] = []
        self.zstd = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)

    def add(self, numbers: Integers) -> None:
        """Add numbers of the file's type."""
        joined = np.concatenate([self.rest, numbers])
        whole = len(joined) - len(joined) % FRAME
        for first in range(0, whole, FRAME):
            self._write(joined[first : first + FRAME])
        self.rest = joined[whole:]

    def close(self) -> None:
        """Write the last frame, and where frames lie; the file stays open."""
        if len(self.rest):
            self._write(self.rest)
        if self.sizes:
            self.file.write(np.array(self.sizes, SIZES).tobytes() + MAGIC)

    def _write(self, numbers: Integers) -> None:
        self.sizes.append(self.file.write(self.zstd.compress(numbers.tobytes())))


class Frames:
    """A file of so many numbers, open for reading; ValueError or ZstdError where it is no such."""

    def __init__(self, path: Path, dtype: np.dtype[Any], count: int) -> None:
        self.dtype, self.count = dtype, count
        self.file = path.open("rb", buffering=0)
        try:
            self.ends = self._places(os.fstat(self.file.fileno()).st_size)
        except BaseException:
            self.file.close()
            raise
        self.zstd = zstandard.ZstdDecompressor()

    def _places(self, size: int) -> NDArray[np.int64] | None:
        """Return where each frame ends, a 0 before them; None of plain numbers."""
        frames = -(-self.count // FRAME)
        tail = b""
        if frames and size > (after := frames * SIZE_BYTES + len(MAGIC)):
            tail = os.pread(self.file.fileno(), after, size - after)
        if tail.endswith(MAGIC):
            ends = np.cumsum([0, *np.frombuffer(tail, SIZES, frames).tolist()])
            if ends[-1] == size - len(tail):
                return ends
        if size != self.count * self.dtype.itemsize:
            raise ValueError(f"{size} bytes for {self.count} numbers")
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.file.close()

    def read(self, start: int, stop: int) -> Integers:
        """Return the numbers [start, stop)."""
        first = start // FRAME
        pieces = list(self.frames(np.arange(first, -(-stop // FRAME))))
        joined = pieces[0] if len(pieces) == 1 else np.concatenate([self._none, *pieces])
        return joined[start - first * FRAME : stop - first * FRAME]

    @property
    def _none(self) -> Integers:
        return np.empty(0, self.dtype)

    def frames(self, places: NDArray[np.int64]) -> Iterator[Integers]:
        """Yield frames by their places, ascending; runs of them are read at once."""
        cuts = np.flatnonzero(np.diff(places) != 1) + 1
        for run in np.split(places, cuts) if len(places) else []:
            yield from self._run(int(run[0]), int(run[-1]) + 1)

    def _run(self, first: int, last: int) -> Iterator[Integers]:
        if self.ends is None:
            start, stop = first * FRAME, min(last * FRAME, self.count)
            data = self._bytes(start * self.dtype.itemsize, stop * self.dtype.itemsize)
            numbers = np.frombuffer(data, self.dtype)
            yield from (numbers[i : i + FRAME] for i in range(0, len(numbers), FRAME))
            return
        base = int(self.ends[first])
        data = memoryview(self._bytes(base, int(self.ends[last])))
        for place in range(first, last):
            low, high = (self.ends[place : place + 2] - base).tolist()
            numbers = np.frombuffer(self.zstd.decompress(data[low:high]), self.dtype)
            if len(numbers) != min(FRAME, self.count - place * FRAME):
                raise ValueError(f"a frame of {len(numbers)} numbers")
            yield numbers

    def _bytes(self, start: int, stop: int) -> bytes:
        data = os.pread(self.file.fileno(), stop - start, start)
        if len(data) != stop - start:
            raise ValueError(f"{len(data)} bytes where {stop - start} were")
        return data
