"""Schema of documents: the columns that identify each one, and the counts over documents."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from crystalmix.prep.documents.source import Source, label
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.runtime.types import Content

IDENTITY = [
    ("document", pa.int64()),  # dense number within the source
    ("file", pa.dictionary(pa.int32(), pa.string())),
    ("record", pa.int64()),  # line or row number in the file, from 0
    ("name", pa.string()),
    ("digest", pa.binary(16)),  # xxh3-128 of the text's UTF-8
    ("characters", pa.int64()),
    ("bytes", pa.int64()),
]


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
        digests: list[Any] = table["digest"].to_pylist()
        self.state.update(b"".join(digests))

    def account(self) -> Content:
        """Return the counts, and `text_digest` over the documents in order."""
        return {**self.counts, "text_digest": self.state.hexdigest()}


def side(part: Path, kind: str) -> Path:
    """Return what lies beside a block's documents: `dropped` records, `near` signatures."""
    return part.with_suffix(".dropped.parquet" if kind == "dropped" else f".{kind}")
