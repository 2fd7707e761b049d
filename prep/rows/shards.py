"""Shards: HDF5 files of rows that Cerebras Model Zoo and plain h5py read as they are.

One dataset `data`, int32, (rows, 3, msl): [0] input ids, [1] loss mask, [2] labels; one chunk per
row, or for several short ones (`hdf5_layout.rows_together`, the last filled with zeros), standard
deflate; attribute `n_examples`. Chunks are deflated and inflated here by libdeflate, whose output
depends on its input alone, and given to HDF5 whole: equal rows make equal files.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import deflate
import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from crystalmix.prep.rows.hdf5_layout import CHANNELS, rows_together
from crystalmix.prep.rows.open_shards import POOL, Buffer, Rows, inflated, reading
from crystalmix.prep.rows.scattered_rows import gather, packed
from crystalmix.prep.runtime.atomic_files import file_digest, replacing
from crystalmix.prep.runtime.receipts import Shard

LEVEL = 1
BLOCK_ROWS, BLOCK_BYTES = 256, 256 * 2048 * CHANNELS * 4
SMALL_BYTES = 16 << 20  # of a shard's rows
AHEAD = 2  # blocks that wait, deflated or to be
ROW_TOKEN_BYTES = CHANNELS * 4  # of a row, for each token
Deflated = tuple[Buffer, int, list[Buffer]]  # plain bytes of rows, how many, their chunks
Packed = tuple[Buffer, Buffer | None]  # plain bytes of a row, its chunk if it has one of its own


def name(number: int) -> str:
    """Return the file name of a shard: `data-00007.h5`."""
    return f"data-{number:05d}.h5"


def write(path: Path, rows: int, blocks: Iterable[Rows]) -> Shard:
    """Write a shard from blocks of rows, under a temporary name that is renamed at the end.

    blocks: (n, 3, msl) int32 arrays whose n add up to `rows`, at least one; not to be changed
    afterwards, since they are deflated in a thread where there is a second core.
    """
    return _write(path, rows, deflated(rows, _together(rows, blocks)))


def deflated(rows: int, blocks: Iterable[tuple[Rows, int]]) -> Iterator[Deflated]:
    """Deflate blocks of `rows` rows as `write` does; with each, how many share a chunk."""
    beside = rows > BLOCK_ROWS and len(os.sched_getaffinity(0)) > 1
    return filter(None, _ahead(blocks) if beside else map(_deflated, blocks))


def alone(blocks: Iterable[Rows]) -> Iterator[tuple[Rows, int]]:
    """Yield blocks for `deflated` whose rows have a chunk each."""
    return ((block, 1) for block in blocks)


def _together(rows: int, blocks: Iterable[Rows]) -> Iterator[tuple[Rows, int]]:
    """Yield blocks of whole chunks, and the last rows; what is left of one goes into the next."""
    held, together = None, 1
    for given in blocks:
        block = np.ascontiguousarray(given, dtype="<i4")
        if held is not None and held.shape[1:] == block.shape[1:]:
            block = np.concatenate([held, block])
        elif held is not None:
            yield held, together  # `_write` refuses rows of two lengths
        together = rows_together(rows, block.shape[2])
        whole = len(block) - len(block) % together
        yield block[:whole], together
        held = block[whole:] if whole < len(block) else None
    if held is not None:
        yield held, together


def chunks(path: Path, rows: int, msl: int) -> Iterator[Buffer]:
    """Yield the first rows of a shard, deflated as they lie there, or else as `write` does it.

    The file is read in large pieces. Rows are not inflated, and so not checked. Raises DamageError
    for what is no shard of so many rows of msl.
    """
    with reading(path):
        handle = POOL.get(path, whole=True)
        handle.check(np.array([0, rows - 1]))
        if handle.msl != msl:
            raise ValueError(f"has rows of {handle.msl} tokens, the others of {msl}")
        if (lying := handle.chunks(rows)) is None:
            size = block_rows(msl)
            plain = (read(path, i, min(i + size, rows)) for i in range(0, rows, size))
            for _, _, own in deflated(rows, alone(plain)):
                yield from own
            return
        for chunk, skipped in lying:
            bare = inflated(chunk, skipped, handle.row_bytes) if skipped else None
            yield chunk if bare is None else deflate.zlib_compress(bare, LEVEL)


def copy(
    path: Path, sources: Sequence[Path], which: NDArray[np.integer], rows: NDArray[np.integer]
) -> Shard:
    """Write rows of other shards, row rows[i] of sources[which[i]], as one shard.

    Deflated rows are copied as they are, and inflated to be digested and checked; short ones are
    deflated anew, with their neighbours. Raises DamageError for a source that is broken, lacks a
    row, or is replaced meanwhile.
    """
    return write_packed(path, len(rows), packed(sources, which, rows))


def count(path: Path, rows: int, blocks: Iterable[Rows]) -> Shard:
    """Return the shard that `write` would write of blocks of rows, without writing it."""
    content: _Content | None = None
    for block in blocks:
        content = content or _Content(block.shape[2])
        content.add(np.ascontiguousarray(block, dtype="<i4").reshape(-1).data.cast("B"), len(block))
    if content is None or content.rows != rows:
        raise ValueError(f"{path}: got {content and content.rows} rows, expected {rows or 'some'}")
    return content.shard(path.name, None, None)


class _Content:
    """Digest, sum and labels of rows of msl tokens, added up as they come."""

    def __init__(self, msl: int) -> None:
        self.msl, self.content = msl, sha256()
        self.row_bytes = msl * ROW_TOKEN_BYTES
        self.rows = self.rows_sum = self.loss_tokens = 0

    def add(self, plain: Buffer, rows: int) -> None:
        """Add the plain bytes of rows."""
        size = self.row_bytes
        self.content.update(plain)
        starts = range(0, len(plain), size)
        self.rows_sum += sum(xxhash.xxh3_64_intdigest(plain[i : i + size]) for i in starts)
        values = np.frombuffer(plain, "<i4").reshape(rows, CHANNELS, -1)
        self.loss_tokens += int(np.count_nonzero(values[:, 1]))
        self.rows += rows

    def shard(self, name: str, size: int | None, xxh3: str | None) -> Shard:
        """Return the shard that holds them; size, xxh3: of its file."""
        digest, rows_sum = self.content.hexdigest(), self.rows_sum % 2**64
        return Shard(name, self.rows, self.msl, digest, rows_sum, self.loss_tokens, size, xxh3)


def write_packed(path: Path, rows: int, given: Iterable[Packed]) -> Shard:
    """Write a shard from its rows one by one, plain and, if they have a chunk each, deflated."""
    every = iter(given)
    first = next(every, None)
    every = every if first is None else chain([first], every)
    msl = 0 if first is None else len(first[0]) // ROW_TOKEN_BYTES
    if rows_together(rows, msl) == 1:
        return _write(path, rows, map(_repacked, every))
    blocks = iter(lambda: [plain for plain, _ in islice(every, BLOCK_ROWS)], [])
    shape = -1, CHANNELS, msl
    arrays = (np.frombuffer(b"".join(some), "<i4").reshape(shape) for some in blocks)
    return write(path, rows, arrays)


def _write(path: Path, rows: int, deflated: Iterable[Deflated]) -> Shard:
    every = iter(deflated)
    with replacing(path) as temporary:
        if (first := next(every, None)) is None:
            raise ValueError(f"{path}: got 0 rows, expected {rows or 'some'}")
        content = _Content(len(first[0]) // first[1] // ROW_TOKEN_BYTES)
        together = rows_together(rows, content.msl)
        with _created(temporary, rows * content.row_bytes) as file:
            dataset: Any = _create(file, rows, CHANNELS, content.msl, together)
            for plain, count, chunks in chain([first], every):
                if (size := len(plain) // count) != content.row_bytes:
                    raise ValueError(f"{path}: rows of {content.row_bytes} and of {size} bytes")
                for row, chunk in zip(range(content.rows, rows, together), chunks, strict=False):
                    dataset.id.write_direct_chunk((row, 0, 0), chunk, 0)
                content.add(plain, count)
            if content.rows != rows:
                raise ValueError(f"{path}: got {content.rows} rows, expected {rows}")
        return content.shard(path.name, temporary.stat().st_size, file_digest(temporary))


@contextmanager
def _created(path: Path, size: int) -> Generator[h5py.File]:
    """Open a new file for rows of so many bytes; a small one is made in memory and written at once.

    The bytes are the same: HDF5 asks the system for each chunk, which costs as much as a third of
    a shard of few tokens.
    """
    if size > SMALL_BYTES:
        with h5py.File(path, "w") as file:
            yield file
        return
    with h5py.File(path, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        path.write_bytes(file.id.get_file_image())


def _deflated(given: tuple[Rows, int]) -> Deflated | None:
    rows, together = given
    block = np.ascontiguousarray(rows, dtype="<i4")
    if not len(block):
        return None
    flat, size = block.reshape(-1).data.cast("B"), together * ROW_TOKEN_BYTES * block.shape[2]
    pieces: list[Buffer] = [flat[i : i + size] for i in range(0, len(flat), size)]
    if missing := size - len(pieces[-1]):
        pieces[-1] = bytes(pieces[-1]) + bytes(missing)
    return flat, len(block), [deflate.zlib_compress(piece, LEVEL) for piece in pieces]


def _ahead(blocks: Iterable[tuple[Rows, int]]) -> Iterator[Deflated | None]:
    """Deflate blocks in a thread, a few ahead, while this one makes, digests and writes them."""
    with ThreadPoolExecutor(1, thread_name_prefix="deflate") as pool:
        waiting: deque[Future[Deflated | None]] = deque()
        for block in blocks:
            waiting.append(pool.submit(_deflated, block))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _repacked(row: Packed) -> Deflated:
    plain, chunk = row
    return plain, 1, [deflate.zlib_compress(plain, LEVEL) if chunk is None else chunk]


@contextmanager
def writing(
    path: Path, rows: int, features: int, msl: int
) -> Generator[Callable[[NDArray[np.int32]], None]]:
    """Open a file of `rows` rows of any number of features, written as shards are.

    What is given takes one row, (features, msl), after the other.
    """
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        data: Any = _create(file, rows, features, msl, 1)
        written = 0

        def put(row: NDArray[np.int32]) -> None:
            nonlocal written
            plain = np.ascontiguousarray(row, "<i4").data.cast("B")
            chunk = deflate.zlib_compress(plain, LEVEL)
            data.id.write_direct_chunk((written, 0, 0), chunk, filter_mask=0)
            written += 1

        yield put


def _create(file: h5py.File, rows: int, features: int, msl: int, together: int) -> h5py.Dataset:
    dataset = file.create_dataset(
        "data",
        shape=(rows, features, msl),
        dtype="<i4",
        chunks=(together, features, msl),
        compression="gzip",
        compression_opts=LEVEL,
    )
    file.attrs["n_examples"] = rows
    return dataset


def read(path: Path, start: int = 0, stop: int | None = None) -> Rows:
    """Read the rows [start, stop) of a shard: (n, 3, msl) int32."""
    total = shape(path)[0]
    return take(path, np.arange(start, total if stop is None else min(stop, total)))


def blocks(path: Path, size: int | None = None) -> Iterator[Rows]:
    """Yield a shard's rows in order, `size` rows at a time (by default `block_rows`)."""
    total, msl = shape(path)
    size = block_rows(msl) if size is None else size
    for start in range(0, total, size):
        yield read(path, start, start + size)


def block_rows(msl: int) -> int:
    """Return how many rows to hold at once: BLOCK_ROWS, or fewer where they are long.

    >>> block_rows(2048), block_rows(32_768), block_rows(10_000_000)
    (256, 16, 1)
    """
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (ROW_TOKEN_BYTES * msl)))


def take(path: Path, rows: NDArray[np.integer]) -> Rows:
    """Read rows by number, in this order: (len(rows), 3, msl) int32."""
    if len(rows):
        return gather([path], np.zeros(len(rows), np.int64), rows)
    return np.empty((0, CHANNELS, shape(path)[1]), dtype=np.int32)


def shape(path: Path) -> tuple[int, int]:
    """Return (rows, msl) of a shard."""
    with reading(path):
        handle = POOL.get(path)
    return handle.rows, handle.msl


def folder(path: Path) -> list[Path]:
    """Return the shards of a folder, sorted by name."""
    return sorted(path.glob("*.h5"))
