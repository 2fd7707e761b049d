"""Zoo shuffle: that of Model Zoo's h5_dataset_shuffle, replayed from its draws alone.

Worker w draws from numpy's legacy generator seeded `seed + w` and reads every workers-th file from
the w-th on. For each file it draws an output shard for each row, then, shard by shard, a 48-bit
number that names the temporary file of those rows. Later it joins the temporary files of each
workers-th shard in the order of their names (read as sorted by them) and shuffles the rows with
the same generator. The rows themselves are not needed to know where they go: 8 bytes a row are.

The outcome depends on the number of workers and on how rows lie in files; our own shuffle does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.constraints import AtLeastOne, enforce
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Strict, frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
NAME_BITS = 48


@frozen
class ZooShuffleSettings(Strict):
    """Settings of the original's shuffle: its output shards (chunks), workers and seed."""

    chunks: AtLeastOne
    workers: AtLeastOne = 1
    seed: int = 115

    def __post_init__(self) -> None:
        enforce(self)
        if not 0 <= self.seed <= 2**32 - self.workers:
            raise ValueError(f"seed: must lie in [0, 2**32 - workers], got {self.seed}")


def order(rows: Sequence[int], settings: ZooShuffleSettings) -> list[NDArray[np.int64]]:
    """Return, for each output shard, the numbers of its rows in order.

    rows: the rows of each input file, in the order of the files' paths. A row's number counts the
    rows of all files before it. A shard may be empty: shards differ in size by chance.
    """
    starts = np.cumsum([0, *rows])
    pieces: list[list[tuple[int, NDArray[np.int64]]]] = [[] for _ in range(settings.chunks)]
    # The generator of the original is numpy's legacy one; it is our own instance, not the global.
    workers = [np.random.RandomState(settings.seed + w) for w in range(settings.workers)]
    for number, count in enumerate(rows):
        draws = workers[number % settings.workers]
        targets = draws.choice(settings.chunks, size=count)
        for chunk in np.unique(targets).tolist():
            name = int(draws.randint(2**NAME_BITS, dtype=np.int64))
            pieces[chunk].append((name, starts[number] + np.flatnonzero(targets == chunk)))
    orders: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * settings.chunks
    for worker, draws in enumerate(workers):
        for chunk in range(worker, settings.chunks, settings.workers):
            parts = [numbers for _, numbers in sorted(pieces[chunk], key=lambda piece: piece[0])]
            joined = np.concatenate([np.empty(0, np.int64), *parts])
            draws.shuffle(joined)
            orders[chunk] = joined
    return orders
