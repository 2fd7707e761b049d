"""Choosing among the documents of a source: duplicates, near-duplicates, then `limit`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.documents import key_lists
from crystalmix.prep.documents.key_lists import Kept
from crystalmix.prep.documents.merge import NEAR, Choice, Removed
from crystalmix.prep.documents.schema import side
from crystalmix.prep.filters import exact_duplicates, near_duplicates, near_pairs
from crystalmix.prep.filters.exact_duplicates import RECORDS, Duplicates
from crystalmix.prep.filters.near_pairs import Bands
from crystalmix.prep.filters.sorted_lists import Grouped

Places = NDArray[np.int64]
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Among:
    """The documents of one source, and those that they are compared with.

    folder: for passing files. parts: one file for each block. earlier: the folders of the sources
    before, by name, in order. kept: who makes the lists of what these kept, and runs all items.
    """

    folder: Path
    blocks: tuple[str, ...]
    parts: tuple[Path, ...]
    earlier: dict[str, Path]
    duplicates: Duplicates
    kept: Kept
    limit: int | None = None


def choice(among: Among) -> Choice:
    """Return the choice between a source's documents, as `merge.merge` takes it."""
    settings = among.duplicates
    width = 0 if settings.near is None else 4 * settings.near.permutations
    if settings.exact == "none" and settings.near is None:
        return Choice(lambda _: Removed(NOTHING, [], []), among.limit)
    digests, bands = key_lists.of_blocks(among.kept, among.parts, settings)
    exact = _Exact(among, digests)
    alike = _Alike(among, exact, bands)
    return Choice(
        lambda block: _joined(exact.removed(block), alike.removed(block)), among.limit, width
    )


class _Exact:
    """Exact duplicates among the documents of a source; lists: of the digests of its blocks."""

    def __init__(self, among: Among, lists: list[Path]) -> None:
        self.among = among
        self.found: Grouped | None = None
        if among.duplicates.exact != "none":
            across = among.duplicates.exact == "recipe"
            earlier = among.kept.digests([*among.earlier.values()] if across else [])
            self.found = exact_duplicates.find(among.kept.pool, among.folder, earlier, lists)

    def removed(self, block: int) -> Removed:
        """Return the documents of a block that repeat a text."""
        if self.found is None:
            return Removed(NOTHING, [], [])
        rows = self.found.between(block, block + 1)
        rows = rows[np.argsort(rows["place"])]
        names = list(self.among.earlier)
        details: list[str | None] = [
            f"source {names[first]}" if first < 0 else _place(self.among, *divmod(first, RECORDS))
            for first in rows["first"].tolist()
        ]
        records = rows["place"] - block * RECORDS
        return Removed(records, [exact_duplicates.REASON] * len(details), details)

    def rows(self, block: int) -> Places:
        """Return the rows of a block that repeat a text, ascending."""
        if self.found is None:
            return NOTHING
        return np.sort(self.found.between(block, block + 1)["row"].astype(np.int64))


class _Alike:
    """Near-duplicates of earlier texts, exact ones left out; lists: of the bands of its blocks."""

    def __init__(self, among: Among, exact: _Exact, lists: list[Path]) -> None:
        self.among, self.rows = among, NOTHING
        settings = among.duplicates.near
        if settings is None:
            return
        self.earlier = list(among.earlier) if settings.scope == "recipe" else []
        folders = [among.earlier[name] for name in self.earlier]
        files = [folder / NEAR for folder in folders] + [side(part, NEAR) for part in among.parts]
        self.starts = near_duplicates.Stored(files, settings).starts
        starts = self.starts.tolist()
        sets = among.kept.bands(folders, settings)
        bands = [Bands(b.path, n + b.first) for n, g in zip(starts, sets, strict=False) for b in g]
        own = starts[len(folders) : -1]
        bands += [Bands(path, first) for path, first in zip(lists, own, strict=True)]
        skipped = [first + exact.rows(block) for block, first in enumerate(own)]
        self.rows, firsts = near_pairs.alike(
            among.kept.pool,
            among.folder,
            bands,
            files,
            np.concatenate([NOTHING, *skipped]),
            settings,
        )
        self.owners = np.searchsorted(self.starts, firsts, side="right") - 1
        self.firsts = np.zeros(len(firsts), np.int64)  # records of the documents that stay
        for number in np.unique(self.owners).tolist():
            if number >= len(self.earlier):
                mask, records = self.owners == number, self._records(number - len(self.earlier))
                self.firsts[mask] = records[firsts[mask] - self.starts[number]]

    def removed(self, block: int) -> Removed:
        """Return the documents of a block that are near-duplicates."""
        if len(self.rows) == 0:
            return Removed(NOTHING, [], [])
        number = len(self.earlier) + block
        start, stop = self.starts[number : number + 2]
        low, high = np.searchsorted(self.rows, (start, stop)).tolist()
        if low == high:
            return Removed(NOTHING, [], [])
        records = self._records(block)[self.rows[low:high] - start]
        details = [self._detail(i) for i in range(low, high)]
        return Removed(records, [near_duplicates.REASON] * len(details), details)

    def _records(self, block: int) -> Places:
        return pq.read_table(self.among.parts[block], columns=["record"])["record"].to_numpy()

    def _detail(self, i: int) -> str | None:
        number = int(self.owners[i])
        if number < len(self.earlier):
            return f"source {self.earlier[number]}"
        return _place(self.among, number - len(self.earlier), int(self.firsts[i]))


def _joined(first: Removed, second: Removed) -> Removed:
    """Join what is left out for two reasons, in the order of records."""
    records = np.concatenate([first.records, second.records])
    order = np.argsort(records, kind="stable").tolist()
    reasons, details = [*first.reasons, *second.reasons], [*first.details, *second.details]
    return Removed(records[order], [reasons[i] for i in order], [details[i] for i in order])


def _place(among: Among, block: int, record: int) -> str:
    return f"{among.blocks[block]} record {record}"
