"""Documents: the texts of a source that are kept, each with an identity, and what was dropped.

`scan` reads one block of a source (a raw file), drops what is no document, fails the source's SQL
`where` or is not selected, and counts every drop under a reason. `texts` reads a block's kept
documents again, for tokenising, and refuses a file that changed in between. Between the two,
`numbering` joins the blocks to `documents.parquet`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from crystalmix.prep.documents import dropped
from crystalmix.prep.documents import source_sql as query
from crystalmix.prep.documents.dropped import DropList, growing
from crystalmix.prep.documents.schema import Tally, schema, side
from crystalmix.prep.documents.source import Document, Source, read
from crystalmix.prep.documents.source_sql import NAME, label
from crystalmix.prep.filters.screen import Screen
from crystalmix.prep.readers.batch import RECORD, TEXT, Batch, Drops, is_blank
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import BrokenFile, InputError

VERSION = 3


def scan(
    source: Source,
    root: Path,
    block: str,
    out: Path,
    screen: Screen | None = None,
) -> dict[str, Any]:
    """Write one block's documents (unnumbered) to `out` and return its account.

    What is dropped, and signatures where the screen asks for them, go beside it. The account:
    records, documents, characters, bytes, text_digest (over the documents in order), what Drops
    tells, and opt_out (for each list the entries that matched). Raises BrokenFile, or with
    `on_error: skip` leaves the file out.
    """
    query.check(source)
    try:
        with _Scan(source, block, out, screen) as work:
            for batch in read(source, root, block, query.paths(source)):
                work.add(batch)
                del batch  # while the next one is read
    except BrokenFile as error:
        if source.on_error == "stop":
            raise
        with _Scan(source, block, out, screen) as work:
            work.leave_out(error)
    return work.told()


class _Scan:
    """One block on its way to its files; they are there when it ends well."""

    def __init__(self, source: Source, block: str, out: Path, screen: Screen | None) -> None:
        self.source, self.out = source, out
        self.screen = screen if screen is not None and not screen.idle else None
        self.records, self.tally, self.counts = 0, Tally(), Drops(block)
        self.matched: list[set[int]] = [set() for _ in source.select.opt_out]
        self.absent: frozenset[tuple[str, ...]] | None = None
        self.asked, self.misfit = 0, ""  # records that the SQL was asked of; why one does not fit
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

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401  as contextlib's
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
        self.asked += len(batch)
        self.absent = batch.absent if self.absent is None else self.absent & batch.absent
        table, records = self._taken(batch)
        if self.screen is not None:
            table, records = self._screened(self.screen, table, records)
            if self.screen.near is not None:
                texts: list[Any] = records[TEXT].to_pylist()
                made = self.screen.signatures(texts)
                self.signatures.write(made.astype("<u4").tobytes())
        self.write(table)
        self.tally.add(table)

    def leave_out(self, error: BrokenFile) -> None:
        """Leave out the block for an error."""
        self.counts = Drops(self.counts.block, error)
        self.list.add_file(error)

    def told(self) -> dict[str, Any]:
        """Return the account."""
        return {
            "block": self.counts.block,
            "records": self.records,
            **self.tally.told(),
            **self.counts.account(),
            "opt_out": [sorted(entries) for entries in self.matched],
            "absent": None if self.absent is None else sorted(map(".".join, self.absent)),
            "asked": self.asked,
            "misfit": self.misfit,
        }

    def _taken(self, batch: Batch) -> tuple[pa.Table, pa.Table]:
        """Return a batch's documents and their records; drop what is no document.

        Where there is a screen the records are those of the documents, row by row.
        """
        kept, misfits = query.select(self.source, batch)
        others = self._without_misfits(batch, misfits) if misfits else batch.table
        gone = _without(others, kept[RECORD])
        if len(gone):
            self.counts["where"] += len(gone)
            reasons = ["where"] * len(gone)
            self.list.add(gone[RECORD], reasons, digest=dropped.digests(gone[TEXT]))
        texts = batch.texts if len(kept) == len(batch) else kept[TEXT].to_pylist()
        table = _documents(self.source, kept, texts, self.counts)
        gone = _without(kept, table["record"])
        self.list.add(
            gone[RECORD],
            ["no_text" if text is None else "blank" for text in gone[TEXT].to_pylist()],
            digest=dropped.digests(gone[TEXT]),
            name=gone[NAME],
        )
        if len(gone) == 0 or self.screen is None:
            return table, kept
        return table, kept.filter(np.isin(kept[RECORD].to_numpy(), table["record"].to_numpy()))

    def _without_misfits(self, batch: Batch, misfits: list[query.Misfit]) -> pa.Table:
        """Drop the records that the SQL does not fit; return the others of the batch."""
        records = batch.table.take(pa.array([misfit.row for misfit in misfits], pa.int64()))
        for record in records[RECORD].to_numpy().tolist():
            self.counts.at(query.MISFIT, record)
        count, self.misfit = self.counts[query.MISFIT], self.misfit or misfits[0].detail
        if count > self.source.max_bad_records:
            place = self.counts.places[query.MISFIT][0]
            raise query.misfit_error(self.source, place, misfits[0].detail, count)
        self.list.add(
            records[RECORD],
            [query.MISFIT] * len(misfits),
            digest=dropped.digests(records[TEXT]),
            detail=[misfit.detail for misfit in misfits],
        )
        return _without(batch.table, records[RECORD])

    def _screened(
        self, screen: Screen, table: pa.Table, records: pa.Table
    ) -> tuple[pa.Table, pa.Table]:
        """Return the documents that are selected, and their records; drop the others."""
        asked = table.select(["name", "digest"])
        for name in screen.selection.columns:
            asked = asked.append_column(name, records[name])
        texts: list[Any] = records[TEXT].to_pylist()
        judged = screen.judge(asked, texts)
        for entries, found in zip(self.matched, judged.matched, strict=True):
            entries.update(found[found >= 0].tolist())
        gone = np.array([reason is not None for reason in judged.reasons], np.bool_)
        reasons = [reason for reason in judged.reasons if reason is not None]
        self.counts.update(reasons)
        self.list.add(
            table["record"].filter(gone),
            reasons,
            digest=table["digest"].filter(gone),
            name=table["name"].filter(gone),
            detail=[judged.details[i] for i in np.flatnonzero(gone).tolist()],
        )
        return table.filter(~gone), records.filter(~gone)


def _without(table: pa.Table, records: Any) -> pa.Table:  # noqa: ANN401  a column
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
    if rows[0] == rows[1]:
        return  # of a file that was left out, too
    named = [column for _, column in source.metadata_entries if column]
    table = _rows(documents, rows, named)
    wanted = table["record"].to_numpy()
    digests = table["digest"].to_pylist()
    columns = [tuple(row.values()) for row in table.select(named).to_pylist()]
    done = 0
    for batch in read(source, root, block):
        if done == len(wanted):
            return
        for place in _places(batch.records, wanted[done:]).tolist():
            text = batch.texts[place] or ""
            digest = xxhash.xxh3_128_digest(text.encode())
            if digest != digests[done]:
                raise _changed(root / block, wanted[done])
            draw = int.from_bytes(digest[8:], "big")
            yield Document(rows[0] + done, draw, text, columns[done] if named else ())
            done += 1
        del batch  # while the next one is read
    if done != len(wanted):
        raise _changed(root / block, wanted[done])


def _changed(path: Path, record: int) -> InputError:
    return InputError(
        f"{path}: record {record} is not the text that was scanned; "
        "the file changed during the build: build again into another --out"
    )


def _places(records: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the next wanted records stand in a batch's ascending record numbers."""
    if len(records) == 0:
        return np.empty(0, np.int64)
    here = wanted[: np.searchsorted(wanted, records[-1], side="right")]
    return np.searchsorted(records, here).clip(0, len(records) - 1)


def _rows(path: Path, rows: tuple[int, int], named: list[str]) -> pa.Table:
    stat = path.stat()
    file, starts = _row_groups(path, (stat.st_ino, stat.st_mtime_ns))
    groups = list(range(*np.searchsorted(starts, rows, side="left").tolist()))
    return file.read_row_groups(groups, columns=["record", "digest", *named])


@lru_cache(maxsize=8)
def _row_groups(path: Path, _version: tuple[int, int]) -> tuple[pq.ParquetFile, NDArray[np.int64]]:
    """Open a documents.parquet once per process: the file, and where each row group begins."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, np.cumsum([0, *sizes])


def _documents(source: Source, table: pa.Table, texts: list[Any], dropped: Drops) -> pa.Table:
    """Turn kept records into documents; one without a visible character is dropped and counted."""
    wanted = schema(source)
    good: list[int] = []
    for i, text in enumerate(texts):
        if text and (source.blank == "keep" or not is_blank(text)):
            good.append(i)
        else:
            dropped.at("no_text" if text is None else "blank", table[RECORD][i].as_py())
    data = [texts[i].encode() for i in good]
    kept = table.take(pa.array(good, pa.int64()))
    columns: dict[str, Any] = {
        "document": pa.nulls(len(good), pa.int64()),
        "file": pa.array([dropped.block] * len(good), pa.string()).dictionary_encode(),
        "record": kept[RECORD],
        "name": kept[NAME],
        "digest": pa.array([xxhash.xxh3_128_digest(text) for text in data], pa.binary(16)),
        "characters": pa.array([len(texts[i]) for i in good], pa.int64()),
        "bytes": pa.array([len(text) for text in data], pa.int64()),
    }
    columns |= {label(column): kept[label(column)] for column in source.keep}
    return pa.table(columns).cast(wanted)
