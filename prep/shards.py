"""Shards: HDF5 files of rows that Cerebras Model Zoo and plain h5py read as they are.

One dataset `data`, int32, (rows, 3, msl): [0] input ids, [1] loss mask, [2] labels; one chunk per
row, standard deflate; attribute `n_examples`. Chunks are deflated here (ISA-L) and handed to HDF5
whole, and read back whole: the file stays standard, the copying goes away.

This is the only module that touches h5py.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from os import stat_result
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from isal import isal_zlib
from numpy.typing import NDArray

from prep.errors import DamageError
from prep.receipts import file_digest, replacing

Rows = NDArray[np.int32]  # (rows, 3, msl)
CHANNELS = 3
LEVEL = 1
BLOCK_ROWS = 256
# What h5py and ISA-L raise on a broken file (the stubs type ISA-L's error as an instance).
UNREADABLE: Any = (OSError, KeyError, RuntimeError, ValueError, isal_zlib.error)


@dataclass(frozen=True)
class Shard:
    """What is known of one written shard.

    digest: sha256 over the decoded array (little-endian int32), independent of compression.
    rows_sum: sum of the xxh3-64 of each row, modulo 2**64: equal for equal multisets of rows.
    """

    name: str
    rows: int
    msl: int
    digest: str
    rows_sum: int
    bytes: int
    xxh3: str

    def entry(self) -> dict[str, str | int]:
        """Return the shard as a receipt's file entry."""
        return asdict(self)


def name(number: int) -> str:
    """Return the file name of a shard: `data-00007.h5`."""
    return f"data-{number:05d}.h5"


def write(path: Path, rows: int, blocks: Iterable[Rows]) -> Shard:
    """Write a shard from blocks of rows, under a temporary name that is renamed at the end.

    blocks: (n, 3, msl) int32 arrays whose n add up to `rows`, one at least.
    """
    with replacing(path) as temporary:
        content, total, msl = _fill(temporary, rows, blocks)
        return Shard(
            name=path.name,
            rows=rows,
            msl=msl,
            digest=content,
            rows_sum=total,
            bytes=temporary.stat().st_size,
            xxh3=file_digest(temporary),
        )


def _fill(path: Path, rows: int, blocks: Iterable[Rows]) -> tuple[str, int, int]:
    """Write the file of a shard; return its digest, rows_sum and msl."""
    content, total, written, msl = sha256(), 0, 0, 0
    with h5py.File(path, "w") as file:
        dataset = None
        for given in blocks:
            block = np.ascontiguousarray(given, dtype="<i4")
            if dataset is None:
                msl = block.shape[2]
                dataset = _create(file, rows, msl)
            content.update(block.data)
            for row in block:
                data = row.tobytes()
                total += xxhash.xxh3_64_intdigest(data)
                dataset.id.write_direct_chunk(
                    (written, 0, 0), isal_zlib.compress(data, LEVEL), filter_mask=0
                )
                written += 1
        if written != rows or not rows:
            raise ValueError(f"{path}: got {written} rows, expected {rows or 'some'}")
    return content.hexdigest(), total % 2**64, msl


def _create(file: h5py.File, rows: int, msl: int) -> h5py.Dataset:
    dataset = file.create_dataset(
        "data",
        shape=(rows, CHANNELS, msl),
        dtype="<i4",
        chunks=(1, CHANNELS, msl),
        compression="gzip",
        compression_opts=LEVEL,
    )
    file.attrs["n_examples"] = rows
    return dataset


def read(path: Path, start: int = 0, stop: int | None = None) -> Rows:
    """Read the rows [start, stop) of a shard: (n, 3, msl) int32."""
    total = shape(path)[0]
    return take(path, np.arange(start, total if stop is None else min(stop, total)))


def blocks(path: Path, size: int = BLOCK_ROWS) -> Iterator[Rows]:
    """Yield a shard's rows in order, `size` rows at a time, so that memory stays bounded."""
    total = shape(path)[0]
    for start in range(0, total, size):
        yield read(path, start, start + size)


def take(path: Path, rows: NDArray[np.integer]) -> Rows:
    """Read rows by number, in the order given: (len(rows), 3, msl) int32."""
    with _reading(path):
        dataset, direct = _open(path, _identity(path.stat()))
        total, _, msl = dataset.shape
        if len(rows) and not 0 <= rows.min() <= rows.max() < total:
            raise DamageError(
                f"{path}: has {total} rows, but rows {rows.min()} to {rows.max()} are asked; "
                "build again or restore it"
            )
        out = np.empty((len(rows), CHANNELS, msl), dtype=np.int32)
        size = CHANNELS * msl * out.itemsize  # of a row, so that inflating never has to grow
        for i, row in enumerate(rows.tolist()):
            if direct:
                skipped, packed = dataset.id.read_direct_chunk((row, 0, 0))
                plain = packed if skipped else isal_zlib.decompress(packed, bufsize=size)
                out[i] = np.frombuffer(plain, dtype="<i4").reshape(CHANNELS, msl)
            else:
                out[i] = dataset[row]
    return out


def shape(path: Path) -> tuple[int, int]:
    """Return (rows, msl) of a shard."""
    with _reading(path):
        rows, _, msl = _open(path, _identity(path.stat()))[0].shape
    return int(rows), int(msl)


def content_digest(path: Path) -> str:
    """Return the sha256 over the decoded array, read again from the file."""
    content = sha256()
    for block in blocks(path):
        content.update(np.ascontiguousarray(block, dtype="<i4").data)
    return content.hexdigest()


def folder(path: Path) -> list[Path]:
    """Return the shards of a folder, sorted by name."""
    return sorted(path.glob("*.h5"))


@lru_cache(maxsize=128)
def _open(path: Path, _version: tuple[int, ...]) -> tuple[h5py.Dataset, bool]:
    """Open a shard and tell whether its chunks can be read whole: ours, and Model Zoo's.

    It is kept open: opening costs more than reading a row.
    """
    dataset: Any = h5py.File(path, "r")["data"]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 3 or dataset.shape[1] != CHANNELS:
        raise ValueError(f"`data` is not of shape (rows, {CHANNELS}, msl)")
    deflated = dataset.compression == "gzip" and dataset.id.get_create_plist().get_nfilters() == 1
    whole = dataset.chunks == (1, CHANNELS, dataset.shape[2]) and dataset.dtype == np.dtype("<i4")
    return dataset, deflated and whole


def _identity(stat: stat_result) -> tuple[int, ...]:
    # A file that replaced another under its name has another inode, even within one tick.
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


@contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DamageError(f"{path}: is missing; build again or restore it") from None
    except UNREADABLE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamageError(
            f"{path}: is not a readable shard ({first}); build again or restore it"
        ) from None
