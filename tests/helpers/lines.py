"""Files of JSON lines, read batch by batch."""

from pathlib import Path
from typing import Any

from crystalmix.prep.readers.batch import RECORD, TEXT, Batch, Request
from crystalmix.prep.readers.decompress import pieces
from crystalmix.prep.readers.jsonlines import batches
from crystalmix.prep.readers.listing import PACKINGS

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".jsonl.xz")
Found = tuple[list[tuple[int, str | None]], list[tuple[int, str]]]


def found(path: Path, text: str = "text") -> Found:
    """Return (record, text) of every record, and what is broken."""
    good: list[tuple[int, str | None]] = []
    bad: list[tuple[int, str]] = []
    for batch in read(path, text):
        good += zip(batch.table[RECORD].to_pylist(), batch.table[TEXT].to_pylist(), strict=True)
        bad += [(number, f"{reason}: {detail}") for number, reason, detail, _ in batch.bad]
    return good, bad


def read(path: Path, text: str = "text", **fields: Any) -> list[Batch]:
    """Return the batches of a file."""
    packing = PACKINGS.get(path.suffix, "")
    request = Request("s", str(path), text, hidden="" if "." in text else text, **fields)
    given = pieces(path.parent, path.name, packing, None, 28)
    return list(batches(given, request))
