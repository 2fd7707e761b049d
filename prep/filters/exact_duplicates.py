"""Exact duplicates: of documents with one text digest the first stays, in bounded memory.

Digests go to a scratch DuckDB, which finds the repeated ones and spills to disk as it must. The
first is the one that comes first by source (in the recipe's order), block and record.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.runtime.types import Column

if TYPE_CHECKING:
    from crystalmix.prep.runtime.database import Connection

RECORDS = 1 << 40  # a document's place is its block's number times this, and its record
BATCH_ROWS = 1 << 17
REASON = "duplicate"


@dataclass(frozen=True)
class Duplicates:
    """Which repeated documents a recipe drops.

    exact: none, equal texts within each source, or also across sources: the source that stands
    first in the recipe keeps it. near: texts that are nearly equal.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    exact: Literal["none", "source", "recipe"] = "none"
    near: Near | None = None

    @property
    def across(self) -> bool:
        """Whether what a source keeps depends on the sources before it."""
        return self.exact == "recipe" or (self.near is not None and self.near.scope == "recipe")


def halves(digests: Column) -> NDArray[np.uint64]:
    """Return digests, binary(16), as (n, 2) uint64, the high half first."""
    array = digests.combine_chunks() if isinstance(digests, pa.ChunkedArray) else digests
    if len(array) == 0:
        return np.empty((0, 2), np.uint64)
    values: Any = array.buffers()[1]
    raw = np.frombuffer(values, ">u8").reshape(-1, 2)
    return raw[array.offset : array.offset + len(array)].astype(np.uint64)


def find(connection: "Connection", earlier: Sequence[Path], parts: Sequence[Path]) -> None:
    """Fill the connection's table `repeated` (place, first): own documents with a text seen before.

    earlier: the documents.parquet of the sources before, in order. parts: this source's blocks.
    A place is block * RECORDS + record; `first` is the place of the document that stays, or
    i - len(earlier), which is below 0, where source i of the earlier ones holds it.
    """
    connection.execute("CREATE OR REPLACE TABLE digests (high UBIGINT, low UBIGINT, place BIGINT)")
    for number, path in enumerate(earlier):
        for batch in _batches(path, ["digest"]):
            place = np.full(len(batch), number - len(earlier), np.int64)
            _insert(connection, batch, place)
    for number, path in enumerate(parts):
        for batch in _batches(path, ["digest", "record"]):
            _insert(connection, batch, number * RECORDS + batch["record"].to_numpy())
    connection.execute(
        "CREATE OR REPLACE TABLE repeated AS SELECT place, first FROM digests JOIN ("
        "SELECT high, low, min(place) AS first FROM digests GROUP BY high, low "
        "HAVING count(*) > 1) USING (high, low) WHERE place > first AND place >= 0"
    )
    connection.execute("DROP TABLE digests")


def repeated(connection: "Connection", block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the records of a block that repeat a text, ascending, and where each stood first."""
    low = block * RECORDS
    rows = connection.execute(
        "SELECT place, first FROM repeated WHERE place >= ? AND place < ? ORDER BY place",
        [low, low + RECORDS],
    ).fetchnumpy()
    return np.asarray(rows["place"], np.int64) - low, np.asarray(rows["first"], np.int64)


def owners(connection: "Connection", files: Sequence[Path]) -> dict[tuple[int, ...], int]:
    """Return how many distinct texts there are by the documents.parquet files that have them.

    The keys are numbers of files, ascending: {(0,): 70, (0, 2): 3} is 70 texts that only the first
    file has, and 3 that the first and the third have.
    """
    marks = " UNION ALL ".join(
        f"SELECT digest, set_bit(bitstring('0', {len(files)}), {i}, 1) AS owner "
        f"FROM read_parquet($file{i})"
        for i in range(len(files))
    )
    query = (
        "SELECT owners::VARCHAR, count(*) FROM "
        f"(SELECT bit_or(owner) AS owners FROM ({marks}) GROUP BY digest) GROUP BY ALL ORDER BY ALL"
    )
    places = {f"file{i}": str(path) for i, path in enumerate(files)}
    rows = connection.execute(query, places).fetchall()
    return {
        tuple(i for i, mark in enumerate(marked) if mark == "1"): int(count)
        for marked, count in rows
    }


def shared(
    connection: "Connection",
    one: Sequence[Path],
    other: Sequence[Path],
) -> Iterator[NDArray[np.uint64]]:
    """Yield the low 64 bits of the digests of texts that the files of both sides have, in runs."""
    query = (
        "SELECT digest FROM read_parquet($one) INTERSECT SELECT digest FROM read_parquet($other)"
    )
    sides = {"one": [str(path) for path in one], "other": [str(path) for path in other]}
    for batch in connection.sql(query, params=sides).to_arrow_reader(BATCH_ROWS):
        yield halves(batch.column("digest").cast(pa.binary(16)))[:, 1]


def _insert(connection: "Connection", batch: pa.RecordBatch, place: NDArray[np.int64]) -> None:
    both = halves(batch.column("digest"))
    columns: list[Any] = [both[:, 0], both[:, 1], place]
    connection.register("more", pa.table(columns, ["high", "low", "place"]))
    connection.execute("INSERT INTO digests SELECT * FROM more")
    connection.unregister("more")


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns)
