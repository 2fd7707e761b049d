"""Statistics of a build's documents and rows: exact quantiles and counts, for any worker count."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.build.context import TokenBlock
from crystalmix.prep.fim import document_fim
from crystalmix.prep.packing import pieces
from crystalmix.prep.rows import pack, spans
from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.rows.token_blocks import Stream

PERCENT = (1, 10, 50, 90, 99)


@dataclass(frozen=True)
class SourceCounts:
    """What a packed folder holds of one source.

    bytes: of the texts; text_tokens: control ids left out. lengths: quantiles of tokens per
    document. cut: documents that lie in more than one row. psm, spm: permuted by FIM, by form. A
    conversation that is written as several pieces is one document, which is cut.
    """

    documents: int
    bytes: int
    tokens: int
    text_tokens: int
    bytes_per_token: float | None
    lengths: dict[str, int]
    cut: int
    psm: int
    spm: int


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

    def account(self) -> dict[str, int]:
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
        lengths = self.values[np.searchsorted(ends, ranks)].tolist()
        names = [f"p{percent}" for percent in PERCENT]
        return {
            "min": int(self.values[0]),
            **dict(zip(names, lengths, strict=True)),
            "max": int(self.values[-1]),
        }


def of_documents(path: Path) -> dict[str, dict[str, int]]:
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


def summed_literals(parts: Sequence[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Add up counts of literals: [documents, occurrences] of each.

    >>> summed_literals([{"<s>": [1, 2]}, {"<s>": [1, 1], "</s>": [3, 3]}])
    {'</s>': [3, 3], '<s>': [2, 3]}
    """
    total: dict[str, list[int]] = {}
    for part in parts:
        for name, (documents, occurrences) in part.items():
            count = total.setdefault(name, [0, 0])
            count[0] += documents
            count[1] += occurrences
    return dict(sorted(total.items()))


class _Tally:
    """The documents of one source in one folder."""

    def __init__(self) -> None:
        self.lengths = Lengths()
        self.documents = self.tokens = self.controls = self.cut = 0
        self.psm = self.spm = 0

    def add(self, block: TokenBlock, first: int, stop: int | None, most: int) -> None:
        """Count a block whose first token stands at `first`.

        stop: where the rows end, None where they don't run on over documents. most: tokens of a
        row.
        """
        columns = ["document", "tokens", "fim"]
        index = spans.read(block.block.path.with_suffix(".parquet"), columns)
        numbers, lengths, forms = (index[name].to_numpy() for name in columns)
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))  # pieces of one follow each other
        whole = np.add.reduceat(lengths, begins) if len(lengths) else lengths
        split = np.diff(np.append(begins, len(lengths))) > 1
        self.lengths.add(whole)
        self.documents += len(whole)
        self.tokens += block.block.tokens
        self.controls += block.controls
        self.psm += int((forms == document_fim.PSM).sum())
        self.spm += int((forms == document_fim.SPM).sum())
        if stop is None:  # none is cut but those longer than a row
            self.cut += int((split | (whole > most)).sum())
        else:
            self.cut += cut_documents(whole, first, stop, most)

    def counts(self, size: int) -> SourceCounts:
        """Return the counts; size: bytes of the source's texts."""
        text = self.tokens - self.controls
        return SourceCounts(
            documents=self.documents,
            bytes=size,
            tokens=self.tokens,
            text_tokens=text,
            bytes_per_token=round(size / text, 4) if text else None,
            lengths=self.lengths.account(),
            cut=self.cut,
            psm=self.psm,
            spm=self.spm,
        )


def by_source(
    streams: Sequence[Stream],
    blocks: Sequence[TokenBlock],
    sizes: dict[str, int],
    settings: PackSettings,
) -> dict[str, SourceCounts]:
    """Return the counts of each source in a folder, in the order of its stream.

    blocks: those of the streams, in order. sizes: bytes of each source's texts.
    """
    tallies = {name: _Tally() for name in sizes}
    rest = iter(blocks)
    for stream in streams:
        rows, most = pack.all_rows(stream.tokens, settings), settings.stride
        runs_on = settings.joined and settings.pack == "stream"
        stop = rows * most if runs_on else None
        if not runs_on:
            most = settings.msl + 1 if not settings.joined else pieces.capacity(settings)
        for _, first in zip(stream.blocks, np.asarray(stream.starts).tolist(), strict=False):
            block = next(rest)
            tallies[block.block.source].add(block, first, stop, most)
    return {name: tally.counts(sizes[name]) for name, tally in tallies.items()}
