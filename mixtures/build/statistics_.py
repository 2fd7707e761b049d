"""Statistics: exact quantiles and counts, the same for any number of workers."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.runtime.types import Json

PERCENT = (1, 10, 50, 90, 99)


class Lengths:
    """How often each length occurs; tallies of parts add up to that of the whole."""

    def __init__(self) -> None:
        self.values: NDArray[np.int64] = np.empty(0, np.int64)  # ascending
        self.counts: NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Count lengths: (n,) integers."""
        values, counts = np.unique(lengths, return_counts=True)
        every = np.concatenate([self.values, values])
        self.values, places = np.unique(every, return_inverse=True)
        weights = np.concatenate([self.counts, counts])
        self.counts = np.zeros(len(self.values), np.int64)
        np.add.at(self.counts, places, weights)

    def account(self) -> Json:
        """Return min, p1 ... p99, max: each a length that occurs (nearest rank); {} without any.

        >>> lengths = Lengths()
        >>> lengths.add(np.arange(1, 201))
        >>> lengths.account()
        {'min': 1, 'p1': 2, 'p10': 20, 'p50': 100, 'p90': 180, 'p99': 198, 'max': 200}
        """
        if not len(self.values):
            return {}
        ends = np.cumsum(self.counts)
        total = int(ends[-1])
        ranks = [max(1, -(-percent * total // 100)) for percent in PERCENT]
        found = self.values[np.searchsorted(ends, ranks)].tolist()
        names = [f"p{percent}" for percent in PERCENT]
        told = dict(zip(names, found, strict=True))
        return {"min": int(self.values[0]), **told, "max": int(self.values[-1])}


def of_documents(path: Path) -> dict[str, Json]:
    """Return the quantiles of `characters` and `bytes` of a documents.parquet."""
    tallies = {"characters": Lengths(), "bytes": Lengths()}
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(tallies))
            for name, tally in tallies.items():
                tally.add(table[name].to_numpy())
    return {name: tally.account() for name, tally in tallies.items()}


def cut_documents(lengths: NDArray[np.int64], first: int, stop: int, msl: int) -> int:
    """Count the documents that rows of msl tokens cut, those of a stream from position `first` on.

    lengths: tokens of each document, in order. stop: where the last row ends; what lies behind it
    was dropped, and a document that reaches over it is cut.

    >>> cut_documents(np.array([3, 2, 3, 4]), 0, 8, 4)
    1
    """
    ends = first + np.cumsum(lengths)
    starts = ends - lengths
    inside = (lengths > 0) & (starts < stop)
    return int((inside & ((starts // msl != (ends - 1) // msl) | (ends > stop))).sum())


def joined(parts: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Add up counts of literals: [documents, occurrences] of each.

    >>> joined([{"<s>": [1, 2]}, {"<s>": [1, 1], "</s>": [3, 3]}])
    {'</s>': [3, 3], '<s>': [2, 3]}
    """
    total: dict[str, list[int]] = {}
    for part in parts:
        for name, (documents, occurrences) in part.items():
            count = total.setdefault(name, [0, 0])
            count[0] += documents
            count[1] += occurrences
    return dict(sorted(total.items()))
