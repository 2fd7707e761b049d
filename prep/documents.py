"""Documents: the texts of a source that are kept, each with an identity, and what was dropped.

`scan` reads one block of a source (a raw file), drops what is no document, fails the source's SQL
`where` or is not selected, and counts every drop under a reason. `texts` reads a block's kept
documents again, for tokenising, and refuses a file that changed in between. Between the two,
`numbering` joins the blocks to `documents.parquet`.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from prep import dropped as drops
from prep import query
from prep.dropped import Drops, growing
from prep.errors import InputError, RecipeError
from prep.jsonlines import RECORD, TEXT
from prep.query import NAME, label
from prep.receipts import replacing
from prep.selection import Screen
from prep.sources import Batch, Document, Source, is_json, read

VERSION = 2
IDENTITY = [
    ("document", pa.int64()),  # dense number within the source
    ("file", pa.dictionary(pa.int32(), pa.string())),
    ("record", pa.int64()),  # line or row number in the file, from 0
    ("name", pa.string()),
    ("digest", pa.binary(16)),  # xxh3-128 of the text's UTF-8
    ("characters", pa.int64()),
    ("bytes", pa.int64()),
]
EMPTY_ROWS = pa.schema([("record", pa.int64()), ("digest", pa.binary(16))]).empty_table()


def schema(source: Source) -> pa.Schema:
    """Return the columns of a source's documents.parquet: identity, then what it keeps.

    Raises RecipeError where two of them have one name.
    """
    columns = [*IDENTITY, *((label(column), pa.string()) for column in source.keep)]
    names = Counter(name.lower() for name, _ in columns)  # SQL knows no case
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise RecipeError(
            f"source {source.name}: keep: two columns of its documents would be called "
            f"{twice[0]!r}; leave one out"
        )
    return pa.schema(columns)


class Tally:
    """Counts over documents, as they come: documents, characters, bytes, digest of the texts."""

    def __init__(self) -> None:
        self.counts = {"documents": 0, "characters": 0, "bytes": 0}
        self.state = xxhash.xxh3_128()

    def add(self, table: pa.Table) -> None:
        """Count more documents."""
        self.counts["documents"] += table.num_rows
        for key in ("characters", "bytes"):
            self.counts[key] += int(table[key].to_numpy().sum())
        self.state.update(b"".join(table["digest"].to_pylist()))

    def told(self) -> dict[str, Any]:
        """Return the counts, and `text_digest` over the documents in order."""
        return {**self.counts, "text_digest": self.state.hexdigest()}


def side(part: Path, kind: str) -> Path:
    """Return what lies beside a block's documents: `dropped` records, `near` signatures."""
    return part.with_suffix(".dropped.parquet" if kind == "dropped" else f".{kind}")


def scan(
    source: Source, root: Path, block: str, shape: str | None, out: Path, screen: Screen | None
) -> dict[str, Any]:
    """Write one block's documents (unnumbered) to `out` and return its account.

    What is dropped, and signatures where the screen asks for them, go beside it. The account:
    records, documents, characters, bytes, dropped (reason -> records), text_digest (over the
    documents in order), opt_out (for each list the entries that matched). Raises InputError when
    more than `max_bad_records` are broken.
    """
    tally, records, bad = Tally(), 0, Counter[str]()
    matched: list[set[int]] = [set() for _ in source.select.opt_out]
    shape = shape if is_json(source, block) else None
    with (
        growing(out, schema(source)) as write,
        growing(side(out, "dropped"), drops.SCHEMA) as drop,
        _signing(out, screen) as sign,
    ):
        told = Drops(block, drop)
        for batch in read(source, root, block, lines=shape is not None):
            records += len(batch.table) + len(batch.bad)
            _count_bad(source, root / block, batch, bad)
            table, texts = _taken(source, batch, shape, told)
            if screen is not None and not screen.idle:
                table, texts = _screened(screen, table, texts, told, matched)
                sign(texts[TEXT].to_pylist())
            write(table.select(schema(source).names))
            tally.add(table)
    return {
        "block": block,
        "records": records,
        **tally.told(),
        "dropped": dict(sorted(told.counts.items())),
        "opt_out": [sorted(entries) for entries in matched],
    }


@contextmanager
def _signing(out: Path, screen: Screen | None) -> Generator[Any]:
    """Give a function that adds the signatures of texts to the file beside a block."""
    if screen is None or screen.near is None:
        yield lambda _: None
        return
    with replacing(side(out, "near")) as temporary, temporary.open("wb") as file:
        yield lambda texts: file.write(screen.signatures(texts).astype("<u4").tobytes())


def _taken(
    source: Source, batch: Batch, shape: str | None, told: Drops
) -> tuple[pa.Table, pa.Table]:
    """Return a batch's documents and their records, row by row; drop what is no document."""
    faults = [reason.partition(": ") for _, reason in batch.bad]
    told.add(
        [record for record, _ in batch.bad],
        [kind for kind, _, _ in faults],
        detail=[detail or None for _, _, detail in faults],
    )
    kept = query.select(source, batch.table, shape)
    gone = _without(batch.table, kept[RECORD])
    told.add(gone[RECORD], ["where"] * len(gone), digest=drops.digests(gone[TEXT]))
    counted: Counter[str] = Counter()
    table = _documents(source, told.file, kept, counted)
    gone = _without(kept, table["record"])
    told.add(
        gone[RECORD], _textless(gone, counted), digest=drops.digests(gone[TEXT]), name=gone[NAME]
    )
    return table, kept.filter(np.isin(kept[RECORD].to_numpy(), table["record"].to_numpy()))


def _without(table: pa.Table, records: Any) -> pa.Table:  # noqa: ANN401  a column
    """Return the rows of a batch that are not among some records."""
    if len(records) == len(table):
        return table.slice(0, 0)
    return table.filter(~np.isin(table[RECORD].to_numpy(), records.to_numpy()))


def _textless(gone: pa.Table, counted: Counter[str]) -> list[str]:
    """Return why `_documents` left these out: what it counted, record by record."""
    known = {None: "no_text", "": "empty"}
    other = next((reason for reason in counted if reason not in known.values()), "empty")
    return [known.get(text, other) for text in gone[TEXT].to_pylist()]


def _screened(
    screen: Screen, table: pa.Table, records: pa.Table, told: Drops, matched: list[set[int]]
) -> tuple[pa.Table, pa.Table]:
    """Return the documents that are selected, and their records; drop the others."""
    columns = {name: records[name] for name in screen.selection.columns}
    asked = pa.table({"name": table["name"], "digest": table["digest"], **columns})
    judged = screen.judge(asked, records[TEXT].to_pylist())
    for entries, found in zip(matched, judged.matched, strict=True):
        entries.update(found[found >= 0].tolist())
    gone = np.array([reason is not None for reason in judged.reasons], np.bool_)
    told.add(
        table["record"].filter(gone),
        [reason for reason in judged.reasons if reason is not None],
        digest=table["digest"].filter(gone),
        name=table["name"].filter(gone),
        detail=[judged.details[i] for i in np.flatnonzero(gone).tolist()],
    )
    return table.filter(~gone), records.filter(~gone)


def texts(
    source: Source, root: Path, block: str, documents: Path, rows: tuple[int, int]
) -> Iterator[Document]:
    """Yield a block's documents in order; rows = [first, stop) in documents.parquet.

    Raises InputError where the raw file no longer holds the text that was scanned.
    """
    table = _rows(documents, rows)
    wanted = table["record"].to_numpy()
    digests = table["digest"].to_pylist()
    done = 0
    for batch in read(source, root, block):
        if done == len(wanted):
            return
        records = batch.table[RECORD].to_numpy()
        places = _places(records, wanted[done:])
        column: Any = batch.table[TEXT]
        for place in places.tolist():
            text = column[place].as_py()
            digest = xxhash.xxh3_128_digest((text or "").encode())
            if digest != digests[done]:
                raise _changed(root / block, wanted[done])
            yield Document(rows[0] + done, int.from_bytes(digest[8:], "big"), text)
            done += 1
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


def _rows(path: Path, rows: tuple[int, int]) -> pa.Table:
    stat = path.stat()
    file, starts = _row_groups(path, (stat.st_ino, stat.st_mtime_ns))
    first, last = np.searchsorted(starts, rows, side="left").tolist()
    if first == last:
        return EMPTY_ROWS
    return file.read_row_groups(list(range(first, last)), columns=["record", "digest"])


@lru_cache(maxsize=8)
def _row_groups(path: Path, _version: tuple[int, int]) -> tuple[pq.ParquetFile, NDArray[np.int64]]:
    """Open a documents.parquet once per process: the file, and where each row group begins."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, np.cumsum([0, *sizes])


def _count_bad(source: Source, path: Path, batch: Batch, dropped: Counter[str]) -> None:
    for record, reason in batch.bad:
        dropped[reason.split(":")[0]] += 1
        if sum(dropped[kind] for kind in ("bad_json",)) > source.max_bad_records:
            raise InputError(
                f"{path}:{record + 1}: {reason.replace(': ', ' (', 1)}); mend the line or set "
                f"max_bad_records above {source.max_bad_records} in source {source.name}"
            )


def _documents(source: Source, block: str, table: pa.Table, dropped: Counter[str]) -> pa.Table:
    """Turn kept records into documents; a null or empty text is dropped and counted."""
    wanted = schema(source)
    texts: list[Any] = table[TEXT].to_pylist()
    good = [i for i, text in enumerate(texts) if text]
    missing = sum(text is None for text in texts)
    for reason, count in (("no_text", missing), ("empty", len(texts) - len(good) - missing)):
        if count:
            dropped[reason] += count
    data = [texts[i].encode() for i in good]
    kept = table.take(pa.array(good, pa.int64()))
    columns: dict[str, Any] = {
        "document": pa.nulls(len(good), pa.int64()),
        "file": pa.array([block] * len(good), pa.string()).dictionary_encode(),
        "record": kept[RECORD],
        "name": kept[NAME],
        "digest": pa.array([xxhash.xxh3_128_digest(text) for text in data], pa.binary(16)),
        "characters": pa.array([len(texts[i]) for i in good], pa.int64()),
        "bytes": pa.array([len(text) for text in data], pa.int64()),
    }
    columns |= {label(column): kept[label(column)] for column in source.keep}
    return pa.table(columns).cast(wanted)
