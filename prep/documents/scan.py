"""Documents: the texts of a source that are kept, each with an identity, and what was dropped.

`scan` reads one block of a source (a raw file), drops what is no document, fails the source's SQL
`where` or is not selected, and counts every drop under a reason; `scan_together` does so for
several sources in one reading. `Texts` finds a block's kept documents as it is read again, for
tokenising, and refuses a file that changed in between. Between the two, `merge` joins the blocks to
`documents.parquet`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from crystalmix.prep.documents import dropped, expressions, source_sql
from crystalmix.prep.documents.dropped import DropList, growing
from crystalmix.prep.documents.schema import BlockAccount, Broken, Tally, schema, side
from crystalmix.prep.documents.source import Document, Source, label, read
from crystalmix.prep.documents.source_sql import NAME
from crystalmix.prep.filters.screen import Screen
from crystalmix.prep.readers.batch import (
    RECORD,
    TEXT,
    Batch,
    Drops,
    Steps,
    is_blank,
    value_name,
)
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import BrokenFile, InputError
from crystalmix.prep.runtime.types import Column


def scan(
    source: Source,
    root: Path,
    block: str,
    out: Path,
    screen: Screen | None = None,
) -> BlockAccount:
    """Write one block's documents (unnumbered) to `out` and return its account.

    What is dropped, and signatures where the screen asks for them, go beside it. Raises BrokenFile,
    or with `on_error: skip` leaves the file out.
    """
    expressions.check(source)
    try:
        with _Scan(source, block, out, screen) as work:
            for batch in read(source, root, block, expressions.paths(source)):
                work.add(batch)
                del batch  # while the next one is read
    except BrokenFile as error:
        if source.on_error == "stop":
            raise
        with _Scan(source, block, out, screen) as work:
            work.leave_out(error)
    return work.account()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one source wants of a block: its documents at `out`, as judged by `screen`."""

    source: Source
    out: Path
    screen: Screen | None = None


class _ApartError(Exception):
    """Sources of one file are to be scanned one by one: what is bad in it has a source's name."""


def scan_together(wanted: Sequence[Wanted], root: Path, block: str) -> list[BlockAccount]:
    """Scan a block for several sources in one reading; return their accounts, as `scan` does.

    The sources must read alike (`Source.reading`). Each source's files and account are those that
    `scan` makes for it alone.
    """
    if len(wanted) > 1:
        try:
            return _scan_once(wanted, root, block)
        except (BrokenFile, _ApartError):
            pass  # each by itself, so that messages and counts are its own
    return [scan(item.source, root, block, item.out, item.screen) for item in wanted]


def _scan_once(wanted: Sequence[Wanted], root: Path, block: str) -> list[BlockAccount]:
    named = [expressions.paths(item.source) for item in wanted]
    every = tuple(dict.fromkeys(path for paths in named for path in paths))
    with ExitStack() as stack:
        works: list[_Scan] = []
        for item in wanted:
            expressions.check(item.source)
            works.append(stack.enter_context(_Scan(item.source, block, item.out, item.screen)))
        for batch in read(wanted[0].source, root, block, every):
            if batch.fault is not None or any(bad.reason == "too_deep" for bad in batch.bad):
                raise _ApartError
            for work, paths in zip(works, named, strict=True):
                work.add(_narrowed(batch, every, paths))
            del batch  # while the next one is read
    return [work.account() for work in works]


def _narrowed(batch: Batch, every: tuple[Steps, ...], paths: tuple[Steps, ...]) -> Batch:
    """Return a batch with the values of some of its paths alone, numbered anew."""
    places = {value_name(new): value_name(every.index(path)) for new, path in enumerate(paths)}
    names = {RECORD: RECORD, TEXT: TEXT, **places}
    columns = batch.columns
    if isinstance(columns, pa.Table):
        chosen: Any = pa.table([columns[old] for old in names.values()], list(names))
    else:
        chosen = {new: columns[old] for new, old in names.items()}
    return replace(batch, columns=chosen, absent=batch.absent & set(paths))


class _Scan:
    """Scan of one block; its files are there only when it ends without an error."""

    def __init__(self, source: Source, block: str, out: Path, screen: Screen | None) -> None:
        self.source, self.out = source, out
        self.screen = screen if screen is not None and not screen.idle else None
        self.records, self.tally, self.counts = 0, Tally(), Drops(block)
        self.matched: list[set[int]] = [set() for _ in source.select.opt_out]
        self.absent: frozenset[tuple[str, ...]] | None = None
        self.queried, self.misfit = 0, ""  # records that the SQL was run on; why one does not fit
        self.stack = ExitStack()

    def __enter__(self) -> "_Scan":
        enter = self.stack.enter_context
        self.write = enter(growing(self.out, schema(self.source)))
        drop = enter(growing(side(self.out, "dropped"), dropped.SCHEMA))
        self.list = DropList(self.counts.block, drop)
        if self.screen is not None and self.screen.near is not None:
            near = enter(replacing(side(self.out, "near")))
            self.signatures = enter(near.open("wb"))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def add(self, batch: Batch) -> None:
        """Add the documents of a batch, and what of it is dropped."""
        self.records += len(batch) + len(batch.bad)
        self.counts.take(batch)
        self.list.add(
            [bad.record for bad in batch.bad],
            [bad.reason for bad in batch.bad],
            detail=[f"{bad.place}: {bad.detail}" if bad.place else bad.detail for bad in batch.bad],
        )
        if batch.fault is not None:
            self.list.add_file(batch.fault)
        if len(batch) == 0:
            return
        self.queried += len(batch)
        self.absent = batch.absent if self.absent is None else self.absent & batch.absent
        table, records = self._taken(batch)
        if self.screen is not None:
            table, records = self._screened(self.screen, table, records)
            if self.screen.near is not None:
                texts: list[Any] = records[TEXT].to_pylist()
                signatures = self.screen.signatures(texts)
                self.signatures.write(signatures.astype("<u4").tobytes())
        self.write(table)
        self.tally.add(table)

    def leave_out(self, error: BrokenFile) -> None:
        """Leave out the block for an error."""
        self.counts = Drops(self.counts.block, error)
        self.list.add_file(error)

    def account(self) -> BlockAccount:
        """Return the account."""
        broken = self.counts.broken
        return BlockAccount(
            **asdict(self.tally.kept(self.counts)),
            block=self.counts.block,
            records=self.records,
            blank_lines=self.counts.blank_lines,
            places=dict(sorted(self.counts.places.items())),
            broken=None if broken is None else Broken(broken.reason, str(broken)),
            opt_out=[sorted(entries) for entries in self.matched],
            absent=None if self.absent is None else sorted(map(".".join, self.absent)),
            asked=self.queried,
            misfit=self.misfit,
        )

    def _taken(self, batch: Batch) -> tuple[pa.Table, pa.Table]:
        """Return a batch's documents and their records; drop what is no document.

        Where there is a screen the records are those of the documents, row by row.
        """
        kept, misfits = source_sql.select(self.source, batch, texts=self.screen is not None)
        others = self._without_misfits(batch, misfits) if misfits else None
        if len(kept) < len(batch) - len(misfits):
            failed = _without(batch.table if others is None else others, kept[RECORD])
            self.counts["where"] += len(failed)
            reasons = ["where"] * len(failed)
            self.list.add(failed[RECORD], reasons, digest=dropped.digests(failed[TEXT]))
        texts = batch.texts
        if len(kept) < len(batch):
            places = np.searchsorted(batch.records, kept[RECORD].to_numpy()).tolist()
            texts = [texts[place] for place in places]
        table, empty = _documents(self.source, kept, texts, self.counts)
        if empty:
            lost = pa.array([texts[i] for i in empty], pa.large_string())
            dropped_rows = kept.select([RECORD, NAME]).take(pa.array(empty, pa.int64()))
            self.list.add(
                dropped_rows[RECORD],
                ["no_text" if texts[i] is None else "blank" for i in empty],
                digest=dropped.digests(lost),
                name=dropped_rows[NAME],
            )
        if not empty or self.screen is None:
            return table, kept
        return table, kept.filter(np.isin(kept[RECORD].to_numpy(), table["record"].to_numpy()))

    def _without_misfits(self, batch: Batch, misfits: list[source_sql.Misfit]) -> pa.Table:
        """Drop the records that the SQL does not fit; return the others of the batch."""
        records = batch.table.take(pa.array([misfit.row for misfit in misfits], pa.int64()))
        for record in records[RECORD].to_numpy().tolist():
            self.counts.at(source_sql.MISFIT, record)
        count, self.misfit = self.counts[source_sql.MISFIT], self.misfit or misfits[0].detail
        if count > self.source.max_bad_records:
            place = self.counts.places[source_sql.MISFIT][0]
            raise source_sql.misfit_error(self.source, place, misfits[0].detail, count)
        self.list.add(
            records[RECORD],
            [source_sql.MISFIT] * len(misfits),
            digest=dropped.digests(records[TEXT]),
            detail=[misfit.detail for misfit in misfits],
        )
        return _without(batch.table, records[RECORD])

    def _screened(
        self, screen: Screen, table: pa.Table, records: pa.Table
    ) -> tuple[pa.Table, pa.Table]:
        """Return the documents that are selected, and their records; drop the others."""
        columns = table.select(["name", "digest"])
        for name in screen.selection.columns:
            columns = columns.append_column(name, records[name])
        texts: list[Any] = records[TEXT].to_pylist()
        judged = screen.judge(columns, texts)
        for entries, numbers in zip(self.matched, judged.matched, strict=True):
            entries.update(numbers[numbers >= 0].tolist())
        mask = np.array([reason is not None for reason in judged.reasons], np.bool_)
        reasons = [reason for reason in judged.reasons if reason is not None]
        self.counts.update(reasons)
        self.list.add(
            table["record"].filter(mask),
            reasons,
            digest=table["digest"].filter(mask),
            name=table["name"].filter(mask),
            detail=[judged.details[i] for i in np.flatnonzero(mask).tolist()],
        )
        return table.filter(~mask), records.filter(~mask)


def _without(table: pa.Table, records: Column) -> pa.Table:
    """Return the rows of a batch that are not among some records."""
    if len(records) == len(table):
        return table.slice(0, 0)
    return table.filter(~np.isin(table[RECORD].to_numpy(), records.to_numpy()))


def texts(
    source: Source, root: Path, block: str, documents: Path, rows: tuple[int, int]
) -> Iterator[Document]:
    """Yield a block's documents in order; rows = [first, stop) in documents.parquet.

    Raises InputError where the raw file no longer holds the text that was scanned.
    """
    work = Texts(source, root / block, documents, rows)
    if not work.done:
        for batch in read(source, root, block):
            yield from work.of(batch)
            if work.done:
                break
            del batch  # while the next one is read
    work.close()


class Texts:
    """The kept documents of a block, found in its batches as they are read.

    path: the raw file, for messages. rows: [first, stop) in the documents file.
    """

    def __init__(self, source: Source, path: Path, documents: Path, rows: tuple[int, int]) -> None:
        self.path, self.first, self.count = path, rows[0], 0
        named = [column for _, column in source.metadata_entries if column]
        if rows[0] == rows[1]:  # of a file that was left out, too
            self.numbers: NDArray[np.int64] = np.empty(0, np.int64)
            return
        table = _rows(documents, rows, named)
        self.numbers = table["record"].to_numpy()
        self.digests: list[Any] = table["digest"].to_pylist()
        values = [tuple(row.values()) for row in table.select(named).to_pylist()]
        self.columns: list[tuple[Any, ...]] = values if named else []

    @property
    def done(self) -> bool:
        """Whether all documents were found."""
        return self.count == len(self.numbers)

    def of(self, batch: Batch) -> Iterator[Document]:
        """Yield the documents of the next batch; InputError for a text that was not scanned."""
        if self.done:
            return
        for place in _places(batch.records, self.numbers[self.count :]).tolist():
            text, done = batch.texts[place] or "", self.count
            digest = xxhash.xxh3_128_digest(text.encode())
            if digest != self.digests[done]:
                raise _changed(self.path, self.numbers[done])
            self.count += 1
            draw = int.from_bytes(digest[8:], "big")
            columns = self.columns[done] if self.columns else ()
            yield Document(self.first + done, draw, text, columns)

    def close(self) -> None:
        """Raise InputError for documents that were not found."""
        if not self.done:
            raise _changed(self.path, self.numbers[self.count])


def _changed(path: Path, record: int) -> InputError:
    return InputError(
        f"{path}: record {record} is not the text that was scanned; "
        "the file changed during the build: build again into another --out"
    )


def _places(records: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the next of some records stand in a batch's ascending record numbers."""
    if len(records) == 0:
        return np.empty(0, np.int64)
    part = numbers[: np.searchsorted(numbers, records[-1], side="right")]
    return np.searchsorted(records, part).clip(0, len(records) - 1)


def _rows(path: Path, rows: tuple[int, int], named: list[str]) -> pa.Table:
    """Read record, digest and named columns of the lines [first, stop), which are some.

    A row group that other blocks share is held for the next of them.
    """
    (first, stop), columns = rows, ("record", "digest", *named)
    file, starts = row_groups(path)
    low = int(np.searchsorted(starts, first, side="right")) - 1
    high = int(np.searchsorted(starts, stop, side="left"))
    before = int(starts[low])
    if before == first and starts[high] == stop:
        return file.read_row_groups([*range(low, high)], columns=[*columns])
    tables = [_shared_group(file, group, columns) for group in range(low, high)]
    return pa.concat_tables(tables).slice(first - before, stop - first)


@lru_cache(maxsize=8)
def _shared_group(file: pq.ParquetFile, group: int, columns: tuple[str, ...]) -> pa.Table:
    return file.read_row_group(group, columns=[*columns])


def row_groups(path: Path) -> tuple[pq.ParquetFile, NDArray[np.int64]]:
    """Open a documents.parquet once a process: the file, and where each row group begins."""
    stat = path.stat()
    return _opened(path, (stat.st_ino, stat.st_mtime_ns))


@lru_cache(maxsize=8)
def _opened(path: Path, _version: tuple[int, int]) -> tuple[pq.ParquetFile, NDArray[np.int64]]:
    file = pq.ParquetFile(path, pre_buffer=False)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, np.cumsum([0, *sizes])


def _documents(
    source: Source, table: pa.Table, texts: list[Any], drops: Drops
) -> tuple[pa.Table, list[int]]:
    """Turn kept records into documents; one without a visible character is dropped and counted.

    Return the documents, and the places of the dropped records among the kept ones.
    """
    target = schema(source)
    good: list[int] = []
    empty: list[int] = []
    for i, text in enumerate(texts):
        if text and (source.blank == "keep" or not is_blank(text)):
            good.append(i)
        else:
            drops.at("no_text" if text is None else "blank", table[RECORD][i].as_py())
            empty.append(i)
    data = [texts[i].encode() for i in good]
    kept = table.take(pa.array(good, pa.int64())) if empty else table
    columns: dict[str, Any] = {
        "document": pa.nulls(len(good), pa.int64()),
        "file": pa.array([drops.block] * len(good), pa.string()).dictionary_encode(),
        "record": kept[RECORD],
        "name": kept[NAME],
        "digest": pa.array([xxhash.xxh3_128_digest(text) for text in data], pa.binary(16)),
        "characters": pa.array([len(texts[i]) for i in good], pa.int64()),
        "bytes": pa.array([len(text) for text in data], pa.int64()),
    }
    columns |= {label(column): kept[label(column)] for column in source.keep}
    return pa.table(columns).cast(target), empty
