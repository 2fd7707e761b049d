"""Choosing among the documents of a source: duplicates, near-duplicates, then `limit`."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.documents.merge import NEAR, Choice, Removed
from crystalmix.prep.documents.schema import side
from crystalmix.prep.filters import exact_duplicates, near_duplicates
from crystalmix.prep.filters.exact_duplicates import RECORDS, Duplicates
from crystalmix.prep.filters.near_duplicates import Stored
from crystalmix.prep.runtime.database import scratch

if TYPE_CHECKING:
    from crystalmix.prep.runtime.database import Connection

Places = NDArray[np.int64]
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Among:
    """The documents of one source, and those that they are compared with.

    parts: one file for each block. earlier: the documents of the sources before, by name, in order.
    """

    folder: Path
    blocks: tuple[str, ...]
    parts: tuple[Path, ...]
    earlier: dict[str, Path]
    duplicates: Duplicates
    limit: int | None = None


@contextmanager
def chosen(among: Among) -> Generator[Choice]:
    """Give the choice between a source's documents, as `merge.merge` takes it."""
    settings = among.duplicates
    width = 0 if settings.near is None else 4 * settings.near.permutations
    if settings.exact == "none" and settings.near is None:
        yield Choice(lambda _: Removed(NOTHING, [], []), among.limit)
        return
    with scratch(among.folder) as connection:
        exact = _Exact(among, connection)
        alike = _Alike(among, exact, connection)

        def removed(block: int) -> Removed:
            return _joined(exact.removed(block), alike.removed(block))

        yield Choice(removed, among.limit, width)


class _Exact:
    """Exact duplicates among the documents of a source."""

    def __init__(self, among: Among, connection: "Connection") -> None:
        self.among, self.connection = among, connection
        across = among.duplicates.exact == "recipe"
        earlier = [*among.earlier.values()]
        if among.duplicates.exact != "none":
            exact_duplicates.find(connection, earlier if across else [], among.parts)

    def removed(self, block: int) -> Removed:
        """Return the documents of a block that repeat a text."""
        records, firsts = self._repeated(block)
        names = list(self.among.earlier)
        details: list[str | None] = [
            f"source {names[first]}" if first < 0 else _place(self.among, *divmod(first, RECORDS))
            for first in firsts.tolist()
        ]
        return Removed(records, [exact_duplicates.REASON] * len(details), details)

    def records(self, block: int) -> Places:
        """Return the records of a block that repeat a text."""
        return self._repeated(block)[0]

    def _repeated(self, block: int) -> tuple[Places, Places]:
        if self.among.duplicates.exact == "none":
            return NOTHING, NOTHING
        return exact_duplicates.repeated(self.connection, block)


class _Alike:
    """Near-duplicates of earlier texts, exact duplicates left out."""

    def __init__(self, among: Among, exact: _Exact, connection: "Connection") -> None:
        self.among, self.rows = among, NOTHING
        settings = among.duplicates.near
        if settings is None:
            return
        self.earlier = list(among.earlier) if settings.scope == "recipe" else []
        stored = Stored(self._files(), settings)
        skipped = [NOTHING for _ in self.earlier]
        skipped += [self._rows(block, exact) for block in range(len(among.parts))]
        self.starts = stored.starts
        self.rows, firsts = near_duplicates.alike(connection, stored, skipped, settings)
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

    def _files(self) -> list[Path]:
        before = [self.among.earlier[name].with_name(NEAR) for name in self.earlier]
        return before + [side(part, NEAR) for part in self.among.parts]

    def _rows(self, block: int, exact: _Exact) -> Places:
        """Return the rows of a block that repeat a text exactly."""
        repeats = exact.records(block)
        return np.flatnonzero(np.isin(self._records(block), repeats)) if len(repeats) else NOTHING

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
