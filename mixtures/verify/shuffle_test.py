"""Shuffle test: are the rows of a shuffled folder in random order, and do rows occur twice?

A shuffle that did nothing leaves every digest right. So the ascents of the rows' origins are
counted: of n rows in random order (n - 1) / 2 follow a row that stood before them, with variance
(n + 1) / 12 (the runs-up test; Knuth, The Art of Computer Programming 2, 3.3.2 G).
"""

from collections.abc import Iterable, Iterator, Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.build_folder import rows_files, shards_of
from crystalmix.prep.rows import spans
from crystalmix.prep.runtime.receipts import Receipt

FEWEST = 40  # rows that the test needs
DEVIATIONS = 6.0  # one in 500 million correct shuffles exceeds it
MOST_HASHES = 1 << 24  # kept at once to find equal rows; of more rows a share is looked at


def unshuffled(folder: Path, receipt: Receipt, sealed: Mapping[Path, Receipt]) -> Iterator[str]:
    """Yield a line if a shuffled folder's rows are not in random order.

    sealed: the receipts of a build, those of the folders that were shuffled among them.
    """
    if receipt.stage != "shuffle":
        return
    inputs = [folder.parent / name for name in receipt.inputs]
    if any(path not in sealed for path in inputs):
        return  # reported by the check of a folder's inputs
    files = [(path.name, shard.name) for path in inputs for shard in shards_of(sealed[path])]
    rank = {f"{epoch}/{name}": i for i, (epoch, name) in enumerate(files)}
    try:
        rows, up = ascents(_origins(folder, receipt, rank))
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError):
        return  # a side file is damaged: the check of its digest fails
    if rows < FEWEST:
        return
    strays = (up - (rows - 1) / 2) / sqrt((rows + 1) / 12)
    if abs(strays) > DEVIATIONS:
        yield (
            f"is hardly shuffled: {up} of {rows - 1} rows follow a row that stood before them, "
            f"about {(rows - 1) / 2:.0f} would in random order; build it again"
        )


def ascents(parts: Iterable[NDArray[np.int64]]) -> tuple[int, int]:
    """Return how many numbers there are, and how many are greater than the one before."""
    count = up = 0
    last = np.empty(0, np.int64)
    for part in parts:
        joined = np.concatenate([last, part])
        up += int((joined[1:] > joined[:-1]).sum())
        count += len(part)
        last = joined[-1:]
    return count, up


def _origins(
    folder: Path, receipt: Receipt, rank: Mapping[str, int]
) -> Iterator[NDArray[np.int64]]:
    """Yield the origins of each shard's rows: numbers in the order of shards and rows."""
    for shard in rows_files(receipt):
        table = spans.read(spans.path_of(folder / shard.name, "origin"))
        column: Any = table["origin"].combine_chunks()
        ranks = np.array([rank[name] for name in column.dictionary.to_pylist()], dtype=np.int64)
        which = column.indices.to_numpy(zero_copy_only=False)
        yield (ranks[which] << 32) + table["origin_row"].to_numpy()


def sampled(hashes: NDArray[np.uint64], rows: int) -> NDArray[np.uint64]:
    """Return the hashes to look at of a folder of so many rows: all, or every k-th by value.

    Equal rows have equal hashes, so all of them are looked at or none.
    """
    step = -(-rows // MOST_HASHES)
    return hashes if step < 2 else hashes[hashes % np.uint64(step) == 0]


def repeated(hashes: Iterable[NDArray[np.uint64]]) -> tuple[int, int]:
    """Return how many hashes there are, and how many of them are equal to an earlier one."""
    joined = np.concatenate([np.empty(0, np.uint64), *hashes])
    return len(joined), len(joined) - len(np.unique(joined))
