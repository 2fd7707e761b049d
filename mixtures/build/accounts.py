"""Accounts of folders, as receipts hold them: what came in, what went out, what was dropped.

Each stage fills in its own. Readers take them by `account_of`, or by the class that they want.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.mixtures.manifest.report import bar
from crystalmix.prep.chat.counts import ChatCounts
from crystalmix.prep.filters.counts import CopyCounts, IndexCounts
from crystalmix.prep.packing.fits import FittedCounts
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.records import quick_record
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Content, frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow.parquet as pq

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERCENT = (1, 10, 50, 90, 99)
WHAT = "its account"
Tallies = dict[str, int]


@frozen
class ListCounts:
    """Entries of an opt-out list. unmatched: those that match nothing."""

    file: str
    entries: int
    unmatched: int


@dataclass(frozen=True, kw_only=True)
class SourceAccount:
    """Account of a source: records = documents + dropped.

    dropped: documents by reason. places: the first records of each reason. broken_files: files by
    reason. lengths: quantiles of characters and bytes. evaluations: what is protected, None without
    decontamination.
    """

    records: int
    blank_lines: int
    documents: int
    characters: int
    bytes: int
    dropped: Tallies
    places: dict[str, list[str]]
    broken_files: Tallies
    lengths: dict[str, Tallies]
    opt_out: tuple[ListCounts, ...] = ()
    evaluations: IndexCounts | None = None

    @classmethod
    def of(cls, receipt: Receipt) -> SourceAccount:
        """Read the account of a source's documents."""
        return quick_record(receipt.account, cls, WHAT)

    def content(self) -> Content:
        """Return it as JSON, without what the source does not use."""
        unused = {key for key in ("opt_out", "evaluations") if not getattr(self, key)}
        return {key: value for key, value in asdict(self).items() if key not in unused}


@dataclass(frozen=True, kw_only=True)
class FolderAccount:
    """Account of any folder of rows. dropped: tokens by reason."""

    rows: int
    dropped: Tallies = field(default_factory=Tallies)

    def content(self) -> Content:
        """Return it as JSON, without what the folder does not have."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ImportAccount(FolderAccount):
    """Account of rows that were imported. tokens: of files of tokens, None of shards."""

    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class RowsAccount(FolderAccount):
    """Account of a folder of rows, in tokens: what came in and what went out.

    controls_out: control ids among the tokens out.
    """

    tokens_in: int
    tokens_out: int
    controls_out: int
    padding: int

    def padding_share(self, msl: int) -> float:
        """Return the share of padding among the tokens of the rows."""
        return self.padding / (self.rows * msl)


@dataclass(frozen=True, kw_only=True)
class RowFimAccount(RowsAccount):
    """Account of permuted rows: tokens_in + sentinels + recut = tokens_out + dropped."""

    permuted: int
    sentinels: int
    recut: int


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What a packed folder holds of one source.

    bytes: of the texts; text_tokens: control ids left out. lengths: quantiles of tokens per
    document. cut: documents that lie in more than one row. psm, spm: permuted by FIM, by form. A
    conversation that is written as several pieces is one document, which is cut.
    """

    documents: int
    bytes: int | None = None  # which older versions did not count
    tokens: int
    text_tokens: int
    bytes_per_token: float | None
    lengths: Tallies
    cut: int
    psm: int
    spm: int


@dataclass(frozen=True, kw_only=True)
class PackAccount(RowsAccount):
    """Account of packed rows: tokens_in = text_tokens + controls = tokens_out + dropped.

    documents, held_out: of this side and of the other side of a split. permuted: by FIM. literals:
    [documents, times] of each special token spelt in texts. fitted: of documents that were fitted
    into rows. chat: of conversations. spent: of an upsampled folder, documents without a further
    copy; upsampled: what its sources' copies come to.
    """

    documents: int
    held_out: int
    permuted: int
    text_tokens: int
    controls: int
    literals: dict[str, list[int]]
    sources: dict[str, SourceCounts]
    fitted: FittedCounts | None = None
    chat: ChatCounts | None = None
    spent: int | None = None
    upsampled: dict[str, CopyCounts] | None = None

    @classmethod
    def of(cls, receipt: Receipt) -> PackAccount:
        """Read the account of a folder of packed rows."""
        return quick_record(receipt.account, cls, WHAT)

    @property
    def documents_taken(self) -> int:
        """Documents that were packed or, of conversations, dropped."""
        return self.documents if self.chat is None else self.chat.conversations

    @property
    def cut_share(self) -> float:
        """The share of documents that lie in more than one row."""
        every = sum(source.documents for source in self.sources.values())
        return sum(source.cut for source in self.sources.values()) / max(1, every)

    @property
    def stream_cut_share(self) -> float:
        """The share of documents that rows which run on would cut, where documents were fitted.

        A stream has conversations as the pieces of `split_turns`.
        """
        return self.fitted.stream_cut / max(1, self.documents) if self.fitted else 0.0


STAGES: dict[str, type[SourceAccount | FolderAccount]] = {
    "documents": SourceAccount,
    "import": ImportAccount,
    "pack": PackAccount,
    "fim": RowFimAccount,
}


def account_of(receipt: Receipt) -> SourceAccount | FolderAccount:
    """Read the account of a receipt, by its stage; DamageError where it lacks something."""
    return quick_record(receipt.account, STAGES.get(receipt.stage, RowsAccount), WHAT)


def rows_of(receipt: Receipt) -> int:
    """Return the rows of a folder of rows, by its account."""
    return quick_record(receipt.account, FolderAccount, WHAT).rows


def rows_account(receipt: Receipt) -> RowsAccount:
    """Read what the accounts of all stages that make rows have."""
    return quick_record(receipt.account, RowsAccount, WHAT)


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
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(tallies))
            for name, tally in tallies.items():
                tally.add(table[name].to_numpy())
    return {name: tally.account() for name, tally in tallies.items()}


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


def upsampled_lines(sources: dict[str, CopyCounts]) -> list[str]:
    """Return a table of the copies of each source's documents, with a bar for each bucket."""
    rows: list[list[object]] = []
    most = max((b.asked for counts in sources.values() for b in counts.buckets), default=0)
    for name, counts in sources.items():
        before, every = 0, counts.documents - counts.missing
        for bucket in counts.buckets:
            first, last = (100 * n / every for n in (before, before + bucket.documents))
            before += bucket.documents
            got = bucket.copies / bucket.documents
            numbers = [f"{bucket.asked:.3f}", f"{got:.3f}", f"{bucket.copies:,}"]
            sizes = [f"{bucket.low:g}", f"{bucket.documents:,}", *numbers, f"{bucket.bytes:,}"]
            rows.append([f"  {name}", f"{first:.0f}-{last:.0f} %", *sizes, bar(got, most)])
        if counts.missing:
            rows.append([f"  {name}", "no number", "", f"{counts.missing:,}", *[""] * 5])
    head = ["  source", "percentile", "from", "documents", "asked", "got", "copies", "bytes", ""]
    return table(rows, head)
