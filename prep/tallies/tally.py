"""Tally: documents and bytes of text by a value of each document, largest first, in a parquet.

`domains.parquet` counts by the registrable domain of a url, `licences.parquet` by a licence as it
is written; the value is SQL over the columns of documents.parquet. Memory is bounded, as DuckDB
spills. The seal beside it says what it was made from; it is made again where that changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Final, Literal

from crystalmix.prep.runtime import database, receipts
from crystalmix.prep.runtime.atomic_files import readable, replacing, temporary_name
from crystalmix.prep.runtime.database import brief
from crystalmix.prep.runtime.errors import DamageError, RecipeError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.records import read_sealed, write_sealed
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tallies.hosts import HOST_NAMES, domains_by, host_sql

with imported_later(__name__):
    import pyarrow as pa
    import pyarrow.parquet as pq

if TYPE_CHECKING:
    from crystalmix.prep.runtime.database import Connection

VERSION = 1
Kind = Literal["domains", "licences"]
KINDS: Final[tuple[Kind, ...]] = ("domains", "licences")
AS_WRITTEN = "value as it is written"
REMEDY = "remove it and run `crystalmix build` again, which makes it anew"
MEMORY = "256MB"
BATCH_ROWS = 1 << 16
COLUMNS = ("value", "documents", "bytes")
Row = tuple[str, int, int]  # value, documents, bytes


@dataclass(frozen=True)
class Tallying:
    """Work item: tally a source's documents into a folder.

    source: its name. documents: the parquet; origin: digest of its documents. sql: the value.
    """

    kind: Kind
    source: str
    sql: str
    documents: Path
    origin: str
    out: Path

    @property
    def seal(self) -> Path:
        """The file that says what the tally was made from."""
        return self.out / f"{self.kind}.json"

    @property
    def table(self) -> Path:
        """The file of the tally's rows."""
        return self.out / f"{self.kind}.parquet"


@dataclass(frozen=True)
class Tallied:
    """A tally as its seal has it.

    by: what counts as one value, in words. values: how many there are. missing_documents,
    missing_bytes: of documents without one. files: the table.
    """

    version: int
    kind: Kind
    source: str
    sql: str
    origin: str
    by: str
    values: int
    documents: int
    bytes: int
    missing_documents: int
    missing_bytes: int
    files: tuple[FileEntry, ...]


def due(items: list[Tallying]) -> list[Tallying]:
    """Return the tallies that are not there, or were made from something else."""
    return [item for item in items if not _is_fresh(item)]


def _is_fresh(item: Tallying) -> bool:
    if not (item.seal.exists() and item.table.exists()):
        return False
    try:
        content = read(item.seal)
    except DamageError:
        return False
    if (content.version, content.sql, content.origin) != (VERSION, item.sql, item.origin):
        return False
    by = domains_by()[0] if item.kind == "domains" else AS_WRITTEN
    return by in {content.by, HOST_NAMES}  # one by a list is better than one without


def write(item: Tallying) -> Json:
    """Do a Tallying; RecipeError where the SQL does not fit a document."""
    item.out.mkdir(parents=True, exist_ok=True)
    place = item.documents.resolve()
    work = temporary_name(item.table)
    try:
        with database.scratch(work, readable=[place.parent], memory=MEMORY) as connection:
            _group(connection, item, place)
            by = _name_domains(connection) if item.kind == "domains" else AS_WRITTEN
            counts = _write_table(connection, item.table)
    finally:
        rmtree(work, ignore_errors=True)
    tallied = Tallied(
        version=VERSION,
        kind=item.kind,
        source=item.source,
        sql=item.sql,
        origin=item.origin,
        by=by,
        values=counts[0],
        documents=counts[1],
        bytes=counts[2],
        missing_documents=counts[3],
        missing_bytes=counts[4],
        files=(FileEntry.of(item.table),),
    )
    write_sealed(item.seal, asdict(tallied))
    return {}


def _group(connection: Connection, item: Tallying, place: Path) -> None:
    """Group documents by their value; hosts stand for urls, of which there are fewer."""
    value = f"CAST((\n{item.sql}\n) AS VARCHAR)"
    value = host_sql(value) if item.kind == "domains" else f"nullif(trim({value}), '')"
    query = (
        f"CREATE TABLE grouped AS SELECT {value} AS value, count(*) AS documents, "
        "sum(bytes)::BIGINT AS bytes FROM read_parquet(?) GROUP BY 1"
    )
    try:
        connection.execute(query, [str(place)])
    except database.misfits() as error:
        raise RecipeError(
            f"source {item.source}: about.{item.kind}: {item.sql}: {brief(error)}; mend the SQL "
            "(TRY_CAST gives NULL for what does not fit)"
        ) from None


def _name_domains(connection: Connection) -> str:
    """Replace hosts by their domains, a batch at a time; return by what they are counted."""
    by, domain = domains_by()
    connection.execute("ALTER TABLE grouped RENAME TO hosts")
    connection.execute("CREATE TABLE named (value VARCHAR, documents BIGINT, bytes BIGINT)")
    reader = connection.cursor().sql("SELECT * FROM hosts").to_arrow_reader(BATCH_ROWS)
    for batch in reader:
        names = [domain(host or "") for host in batch.column(0).to_pylist()]
        table = pa.table([pa.array(names, pa.string()), *batch.columns[1:]], [*COLUMNS])
        connection.register("batch", table)
        connection.execute("INSERT INTO named SELECT * FROM batch")
        connection.unregister("batch")
    connection.execute(
        "CREATE TABLE grouped AS SELECT value, sum(documents)::BIGINT AS documents, "
        "sum(bytes)::BIGINT AS bytes FROM named GROUP BY value"
    )
    return by


def _write_table(connection: Connection, out: Path) -> list[int]:
    """Write the values, largest first.

    Return their number, documents and bytes, then documents and bytes of documents without a value.
    """
    count = "count(*) FILTER (value IS NOT NULL)"
    sums = [
        f"coalesce(sum({column}) FILTER (value IS {state}), 0)::BIGINT"
        for state in ("NOT NULL", "NULL")
        for column in ("documents", "bytes")
    ]
    select = f"SELECT {', '.join([count, *sums])} FROM grouped"
    [counts] = connection.execute(select).fetchall()
    query = "SELECT * FROM grouped WHERE value IS NOT NULL ORDER BY bytes DESC, value"
    reader = connection.sql(query).to_arrow_reader(BATCH_ROWS)
    schema = pa.schema(list(zip(COLUMNS, (pa.string(), pa.int64(), pa.int64()), strict=True)))
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
    return list(counts)


def read(seal: Path) -> Tallied:
    """Read the seal of a tally; DamageError where it was edited."""
    return read_sealed(seal, Tallied, REMEDY)


@dataclass(frozen=True)
class Tally:
    """A tally that is there: its folder, and its seal."""

    folder: Path
    sealed: Tallied

    def rows(self) -> Iterator[Row]:
        """Yield its rows, largest first; DamageError where the table is not as sealed."""
        for line in _damages(self.folder, self.sealed):
            raise DamageError(line)
        with pq.ParquetFile(
            readable(self.folder / f"{self.sealed.kind}.parquet"), pre_buffer=False
        ) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def largest(self, share: float, most: int | None = None) -> list[Row]:
        """Return the largest values, that share of all, with those equal to the last of them.

        most: that many at most, where ties don't add more.
        """
        count = ceil(share * self.sealed.values - 1e-9)
        count = count if most is None else min(count, most)
        rows: list[Row] = []
        for row in self.rows():
            if len(rows) >= count and (not rows or row[2] != rows[-1][2]):
                break
            rows.append(row)
        return rows


def found(folder: Path, kind: Kind, origin: str | None = None) -> Tally | None:
    """Return a source's tally; None where there is none, or it is of other documents."""
    seal = folder / f"{kind}.json"
    sealed = read(seal) if seal.exists() else None
    if sealed is None or origin not in {None, sealed.origin}:
        return None
    return Tally(folder, sealed)


def faults(sources: Path, documents: Mapping[str, Counted]) -> Iterator[str]:
    """Yield where tallies below the folder of all sources' lookups are damaged, or miscounted.

    documents: of each source. The SQL that gave the values is not read.
    """
    for kind in KINDS:
        for seal in sorted(sources.glob(f"*/{kind}.json")):
            try:
                tallied = read(seal)
                every = documents.get(seal.parent.name)
                if tallied.kind != kind:
                    yield f"{seal}: is of {tallied.kind}; {REMEDY}"
                elif every is None:
                    yield from _damages(seal.parent, tallied)
                elif _recounted(seal, tallied, every) != tallied:
                    yield f"{seal}: is not of its table and these documents; {REMEDY}"
            except (DamageError, pa.ArrowException, OSError) as error:
                yield " ".join(str(error).split())


@dataclass(frozen=True)
class Counted:
    """The documents of a source: the digest of all, how many they are, bytes of their texts."""

    origin: str
    documents: int
    bytes: int


def _recounted(seal: Path, tallied: Tallied, every: Counted) -> Tallied:
    """Return a seal with all that can be counted again; every: the documents of its source."""
    values = documents = size = 0
    for _, count, bytes_ in Tally(seal.parent, tallied).rows():
        values, documents, size = values + 1, documents + count, size + bytes_
    return replace(
        tallied,
        version=VERSION,
        source=seal.parent.name,
        origin=every.origin,
        values=values,
        documents=documents,
        bytes=size,
        missing_documents=every.documents - documents,
        missing_bytes=every.bytes - size,
        files=(FileEntry.of(seal.with_name(f"{seal.stem}.parquet")),),
    )


def _damages(folder: Path, tallied: Tallied) -> Iterator[str]:
    for line in receipts.damages(folder, tallied.files):
        yield f"{line.partition(';')[0]}; {REMEDY}"
