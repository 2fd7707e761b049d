"""Which rows Model Zoo's loader reads: `data_subset` and CBSampler, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from crystalmix.mixtures.manifest.cerebras_order import beyond

if TYPE_CHECKING:
    from crystalmix.mixtures.manifest.cerebras_order import Int64s


def subset_rows(
    rows: int, ranges: Sequence[tuple[float, float]], version: Literal["1.9.1", "2.0.3"]
) -> Int64s:
    """Return the rows that `data_subset` takes, in order.

    2.0.3 takes the rows [int(n * a), int(n * b)) of each range. 1.9.1 swaps the ends of the ranges
    in the subset with their offsets in the data: `0.0-0.1` gives the second tenth, `0.0-0.5` and
    `0.5-1.0` the same rows, `0.0-1.0` rows that are not there (IndexError; a RefusalError here).
    """
    bounds = [(int(rows * low), int(rows * high)) for low, high in ranges]
    ends = np.cumsum([high - low for low, high in bounds])
    offsets = np.array([low for low, _ in bounds]) - np.concatenate([[0], ends[:-1]])
    taken = np.arange(int(ends[-1]), dtype=np.int64)
    edges, shifts = (ends, offsets) if version == "2.0.3" else (offsets, ends)
    found = taken + shifts[np.searchsorted(edges[:-1], taken, side="right")]
    if len(found) and int(found.max()) >= rows:
        raise beyond(rows, ranges, int(found.max()))
    return found


def batches(
    length: int, batch: int, *, csx: int = 1, worker: int = 0, epochs: int = 1
) -> list[list[list[int]]]:
    """Return the row numbers of each batch of one worker, epoch by epoch (CBSampler of Model Zoo).

    The index stream runs over the epochs; micro-batches of batch / csx go to the workers in turn,
    and each worker joins csx of its own to a batch. What does not fill a batch is carried on.
    """
    micro, told = batch // csx, []
    carried: list[int] = []
    pending: list[int] = []
    number = 0
    for _ in range(epochs):
        stream = [*carried, *range(length)]
        whole = len(stream) // micro * micro
        carried = stream[whole:]
        made: list[list[int]] = []
        for first in range(0, whole, micro):
            if number % csx == worker:
                pending += stream[first : first + micro]
                if len(pending) == batch:
                    made.append(pending)
                    pending = []
            number += 1
        told.append(made)
    return told
