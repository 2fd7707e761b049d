"""Tombstones: pieces of documents that are taken out of the rows of a shard, which is not touched.

In a redacted build `data-00007.tombstones.parquet` stands in the place of `data-00007.h5`: for each
row the tokens [start, stop) that are gone, and where the shard is that it was. Who reads rows reads
padding there, mask 0, and no label that predicts a token that is gone: labels and mask of
[start - 1, stop) are cleared. start = stop = msl clears the last label of a row alone, whose token
begins the row that was packed after it. A program that knows no tombstones finds no shard.
"""

from dataclasses import dataclass
from functools import cached_property
from os.path import relpath
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import replacing

COLUMNS = ("row", "start", "stop")
SCHEMA = pa.schema([(name, pa.int32()) for name in COLUMNS])
ORIGIN, PAD = b"origin", b"pad"
Numbers = NDArray[np.int64]


def path_of(shard: Path) -> Path:
    """Return the file of a shard's tombstones."""
    return shard.with_suffix(".tombstones.parquet")


@dataclass(frozen=True)
class Tombstones:
    """The tombstones of a shard: row, start, stop (n,), by row; pad: the id in their place."""

    row: Numbers
    start: Numbers
    stop: Numbers
    pad: int

    @classmethod
    def of(cls, row: Numbers, start: Numbers, stop: Numbers, pad: int) -> "Tombstones":
        """Return tombstones in order, each once."""
        lines = np.unique(np.stack([row, start, stop], axis=1).astype(np.int64), axis=0)
        return cls(lines[:, 0], lines[:, 1], lines[:, 2], pad)

    @property
    def tokens(self) -> int:
        """How many tokens are gone."""
        return int((self.stop - self.start).sum())

    @property
    def digest(self) -> str:
        """Digest of what is gone and what stands in its place."""
        return receipts.digest([self.pad, *(c.tolist() for c in (self.row, self.start, self.stop))])

    @cached_property
    def rows(self) -> Numbers:
        """The rows that have tombstones, ascending."""
        return np.unique(self.row)

    def bury(self, data: NDArray[np.int32], row: int) -> None:
        """Clear the tombstones of a row in its ids, mask and labels: (3, msl)."""
        low, high = np.searchsorted(self.row, (row, row + 1)).tolist()
        for start, stop in zip(self.start[low:high], self.stop[low:high], strict=True):
            before = max(0, int(start) - 1)
            data[0, start:stop] = self.pad
            data[1, before:stop] = 0
            data[2, before:stop] = self.pad


def write(shard: Path, tombstones: Tombstones, origin: Path, place: Path | None = None) -> None:
    """Write the tombstones of a shard in its place; origin: the shard that it was.

    place: where the shard will be, if it is written elsewhere first.
    """
    columns = [getattr(tombstones, name) for name in COLUMNS]
    table = pa.table([pa.array(column, pa.int32()) for column in columns], schema=SCHEMA)
    where = relpath(origin.resolve(), (place or shard).parent.resolve())
    metadata = {ORIGIN: where.encode(), PAD: str(tombstones.pad).encode()}
    with replacing(path_of(shard)) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def read(shard: Path) -> tuple[Tombstones, Path]:
    """Read the tombstones of a shard, and the path of the shard that it was; ValueError if bad."""
    path = path_of(shard)
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        origin, pad = metadata[ORIGIN].decode(), int(metadata[PAD])
        columns = [table[name].to_numpy().astype(np.int64) for name in COLUMNS]
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"its tombstones can't be read ({type(error).__name__})") from None
    row, start, stop = columns
    return Tombstones(row, start, stop, pad), path.parent / origin
