"""DuckDB views over a build and a run, from a step to its documents and back.

Views (`crystalmix sql` shows them): `parts`, `shards`, `documents`, `spans` (every document piece
of every shard, shuffled ones through their origin), and with a run `steps`, `rows` (the ledger),
`losses` (per step and part), `pieces` (which document piece stood in which slot of which step).
A build of conversations has `turns` too: which message of which record each piece of a row is of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from crystalmix.mixtures.manifest.build_folder import ALL_DOCUMENTS, DOMAINS, BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.manifest import read as read_manifest
from crystalmix.mixtures.manifest.rows_of_steps import StepRow, step_rows
from crystalmix.prep.documents.schema import IDENTITY
from crystalmix.prep.rows import turns
from crystalmix.prep.rows.spans import ORIGIN, SPANS
from crystalmix.prep.runtime.database import connect as open_database
from crystalmix.prep.runtime.database import explained, quoted, unglobbed
from crystalmix.prep.runtime.errors import DamageError, InputError, UsageError
from crystalmix.prep.runtime.types import Json

if TYPE_CHECKING:
    from crystalmix.prep.runtime.database import Connection

Parameters = list[Any] | Json | None
Record = TypeVar("Record")
MOST_DOCUMENTS = 100
IS_A_NAME = "coalesce(name, '') = $name OR file || '#' || record = $name"
HAS_THE_NAME = "contains(coalesce(name, file || '#' || record), $name)"

LOCATED = """
    CREATE VIEW spans AS
    SELECT shard, "row", start, stop, source, document, "offset", fim, cut1, cut2 FROM packed
    UNION ALL BY NAME
    SELECT o.shard, o."row", p.start, p.stop, p.source, p.document, p."offset",
           p.fim, p.cut1, p.cut2
    FROM origins o JOIN packed p
      ON p.shard = o.domain || '/' || o.origin AND p."row" = o.origin_row
"""
TURNS = """
    CREATE VIEW turns AS
    SELECT shard, "row", start, stop, source, document, message, role FROM packed_turns
    UNION ALL BY NAME
    SELECT o.shard, o."row", p.start, p.stop, p.source, p.document, p.message, p.role
    FROM origins o JOIN packed_turns p
      ON p.shard = o.domain || '/' || o.origin AND p."row" = o.origin_row
"""
RUN_VIEWS = """
    CREATE VIEW losses AS
      SELECT phase, step, p.part AS part, p.rows AS "rows", p.tokens AS tokens, p.loss AS loss
      FROM (SELECT phase, step, unnest(parts) AS p FROM steps);
"""
PIECES = """
    CREATE OR REPLACE VIEW pieces AS
      SELECT r.phase, r.step, r.slot, r.part, r.epoch, r.shard, r."row", s.start, s.stop,
             s.source, s.document, s."offset", s.fim
      FROM "rows" r JOIN spans s USING (shard, "row");
"""
DOCUMENTS = """
    SELECT p.slot, p.part, p.epoch, p.source, p.document, p.start, p.stop, p.fim,
           p.shard, p."row", coalesce(d.name, d.file || '#' || d.record) AS name, d.file, d.record
    FROM pieces p LEFT JOIN documents d USING (source, document)
    WHERE p.phase = ? AND p.step = ? ORDER BY p.slot, p.start
"""
ROWS = """
    SELECT slot, part, epoch, shard, "row" FROM "rows" WHERE phase = ? AND step = ? ORDER BY slot
"""
RATIOS = """
    SELECT p.phase, p.part, p.asked, count(r.step) AS "rows",
           count(r.step) / nullif(sum(count(r.step)) OVER (PARTITION BY p.phase), 0) AS got
    FROM parts p LEFT JOIN (SELECT * FROM "rows" WHERE step BETWEEN ? AND ?) r
      ON r.phase = p.phase AND r.part = p.part
    GROUP BY p.phase, p.part, p.asked, p.place ORDER BY p.phase, p.place
"""


@dataclass(frozen=True)
class Piece:
    """A document piece in a row of a step: tokens [start, stop) of the row.

    document: its number in its source; name, file, record: None where documents are not known. fim:
    whether and how it was permuted.
    """

    slot: int
    part: str
    epoch: int
    source: str
    document: int
    start: int
    stop: int
    fim: int
    shard: str
    row: int
    name: str | None
    file: str | None
    record: int | None


@dataclass(frozen=True)
class NamedDocument:
    """A document, and where its record was read."""

    source: str
    document: int
    name: str
    file: str
    record: int
    characters: int

    @property
    def place(self) -> str:
        """Its file and record, which no other document has."""
        return f"{self.file}#{self.record}"


@dataclass(frozen=True)
class Position:
    """A planned position that consumes a row of a document; recorded: whether a ledger has it."""

    source: str
    phase: str
    step: int
    slot: int
    shard: str
    row: int
    recorded: bool
    skipped: bool


@dataclass(frozen=True)
class Traced:
    """A connection with its views, and what they were made from."""

    connection: "Connection"
    build: Path
    run: Path | None
    manifests: dict[str, Manifest]

    def table(self, query: str, parameters: Parameters = None) -> pa.Table:
        """Run a query; UsageError with DuckDB's message if it is wrong.

        Raises DamageError where it can't read a file of the build or the run.
        """
        with explained():
            # None, whatever its stub says, for a statement that gives no rows
            result: Any = self.connection.sql(query, params=parameters or None)
            return pa.table({}) if result is None else _distinct(result.to_arrow_table())

    def rows(self, query: str, parameters: Parameters = None) -> list[Json]:
        """Run a query and return its rows as dicts."""
        return self.table(query, parameters).to_pylist()

    def records(
        self, shape: Callable[..., Record], query: str, parameters: Parameters = None
    ) -> list[Record]:
        """Run a query and return its rows as records, whose fields are its columns."""
        return [shape(**row) for row in self.rows(query, parameters)]


def connect(build: Path, run: Path | None = None) -> Traced:
    """Open a build, and a run if given, as DuckDB views; InputError if there is neither."""
    build = build.resolve()  # DuckDB names files by their pattern
    manifests = {path.parent.name: read_manifest(path) for path in BuildFolder(build).manifests()}
    if not manifests:
        raise InputError(f"{build}: holds no sealed phase; give the --out of `crystalmix build`")
    connection = open_database(readable=[*BuildFolder(build).places(), *([run] if run else [])])
    connection.register("parts", _parts(manifests))
    connection.register("shards", _shards(manifests))
    with explained():
        _documents(connection, build)
        _spans(connection, build)
        if run is not None:
            _run(connection, run.resolve())
    return Traced(connection, build, run, manifests)


def documents(traced: Traced, phase: str, step: int) -> list[Piece]:
    """Return the document pieces of a step, slot by slot; errors as of `rows`."""
    if traced.run is None:
        planned = [{"phase": phase, "step": step, **vars(r)} for r in rows(traced, phase, step)]
        traced.connection.register("rows", pa.Table.from_pylist(planned))
        traced.connection.execute(PIECES)
        return traced.records(Piece, DOCUMENTS, [phase, step])
    return _of_step(traced, Piece, DOCUMENTS, phase, step)


def rows(traced: Traced, phase: str, step: int) -> list[StepRow]:
    """Return the rows of a step as recorded, slot by slot; without a run, as planned.

    Raises UsageError for a step that the phase does not have, InputError for one that is not
    recorded, DamageError where it is, but its rows are gone.
    """
    if traced.run is None:
        manifest = _phase(traced, phase)
        if step >= manifest.steps:
            raise _beyond(phase, step, manifest)
        return step_rows(manifest, step)
    return _of_step(traced, StepRow, ROWS, phase, step)


def _phase(traced: Traced, phase: str) -> Manifest:
    if phase not in traced.manifests:
        known = ", ".join(traced.manifests)
        raise UsageError(f"no phase is called {phase!r} in {traced.build} (there are {known})")
    return traced.manifests[phase]


def _beyond(phase: str, step: int, manifest: Manifest) -> UsageError:
    return UsageError(f"--step: phase {phase} has the steps 0 to {manifest.steps - 1}, got {step}")


def _of_step(
    traced: Traced, shape: type[Record], query: str, phase: str, step: int
) -> list[Record]:
    manifest = _phase(traced, phase)
    if records := traced.records(shape, query, [phase, step]):
        return records
    if step >= manifest.steps:
        raise _beyond(phase, step, manifest)
    entries = traced.rows("SELECT step, skipped FROM steps WHERE phase = ?", [phase])
    skipped = {entry["step"]: entry["skipped"] for entry in entries}
    if step not in skipped:
        recorded = f"0 to {max(skipped)}" if skipped else "none"
        raise InputError(f"{traced.run}: phase {phase} has no step {step} (recorded: {recorded})")
    if skipped[step]:
        raise InputError(f"{traced.run}: step {step} of phase {phase} was skipped as asked")
    raise DamageError(
        f"{traced.run}: the ledger's rows of step {step} of phase {phase} are missing; "
        f"`crystalmix verify {traced.build} --run {traced.run}` tells which file to restore"
    )


def find_documents(traced: Traced, name: str) -> list[NamedDocument]:
    """Return the documents called `name` (or `file#record`), else those with it in their name.

    One text that stands in two sources is two documents. At most MOST_DOCUMENTS + 1 are returned.
    """
    query = f"""
        SELECT source, document, coalesce(name, file || '#' || record) AS name, file, record,
               characters
        FROM documents WHERE {IS_A_NAME} OR {HAS_THE_NAME}
        ORDER BY {IS_A_NAME} DESC, source, document LIMIT {MOST_DOCUMENTS + 1}
    """
    matches = traced.records(NamedDocument, query, {"name": name})
    return [match for match in matches if name in {match.name, match.place}] or matches


def steps(traced: Traced, source: str, document: int) -> list[Position]:
    """Return every position of every phase that consumes a row of a document.

    One for each (phase, step, slot) as planned.
    """
    rows = traced.rows(
        'SELECT DISTINCT shard, "row" FROM spans WHERE source = ? AND document = ?',
        [source, document],
    )
    recorded, skipped = _recorded(traced, source, document), _skipped(traced)
    positions: list[Position] = []
    for phase, manifest in traced.manifests.items():
        used = set(manifest.paths)
        for row in rows:
            if row["shard"] not in used:
                continue
            for position in manifest.positions(row["shard"], row["row"]):
                step, slot = divmod(position, manifest.batch)
                key = (phase, step, slot)
                flags = key in recorded, (phase, step) in skipped
                positions.append(Position(source, *key, row["shard"], row["row"], *flags))
    return sorted(positions, key=lambda place: (place.phase, place.step, place.slot))


def _recorded(traced: Traced, source: str, document: int) -> set[tuple[str, int, int]]:
    if traced.run is None:
        return set()
    query = "SELECT phase, step, slot FROM pieces WHERE source = ? AND document = ?"
    return {
        (entry["phase"], entry["step"], entry["slot"])
        for entry in traced.rows(query, [source, document])
    }


def _skipped(traced: Traced) -> set[tuple[str, int]]:
    if traced.run is None:
        return set()
    entries = traced.rows("SELECT phase, step FROM steps WHERE skipped")
    return {(entry["phase"], entry["step"]) for entry in entries}


def _parts(manifests: dict[str, Manifest]) -> pa.Table:
    names = ("domain", "asked", "weight", "rows", "tokens", "got", "available", "epochs")
    entries = [
        {"phase": phase, "place": i, "part": part.name, **{n: getattr(part, n) for n in names}}
        for phase, manifest in manifests.items()
        for i, part in enumerate(manifest.parts)
    ]
    return pa.Table.from_pylist(entries)


def _shards(manifests: dict[str, Manifest]) -> pa.Table:
    entries = [
        {"phase": phase, "part": part.name, "shard": shard.path, "rows": shard.rows}
        | {"first": shard.first, "last": shard.last, "digest": shard.digest}
        for phase, manifest in manifests.items()
        for part in manifest.parts
        for shard in part.shards
    ]
    return pa.Table.from_pylist(entries)


def _documents(connection: "Connection", build: Path) -> None:
    source = "split_part(filename, '/', -2) AS source"
    if not list(build.glob(ALL_DOCUMENTS)):
        empty = pa.schema([*IDENTITY, ("source", pa.string())]).empty_table()
        connection.register("documents", empty)
        return
    connection.execute(
        f"CREATE VIEW documents AS SELECT {source}, * EXCLUDE (filename) FROM "
        f"read_parquet({_quoted(build, ALL_DOCUMENTS)}, filename=true, "
        "union_by_name=true)"
    )


def _spans(connection: "Connection", build: Path) -> None:
    """Make `spans` of the spans of packed shards and the origins of shuffled ones."""
    start = len(build.as_posix()) + 2  # SQL counts from 1; past the slash
    sides = [("packed", "spans", SPANS), ("origins", "origin", ORIGIN)]
    has_turns = bool(list(build.glob(f"{DOMAINS}/*/*/*.{turns.KIND}.parquet")))
    for view, kind, schema in [*sides, *([("packed_turns", turns.KIND, turns.TURNS)] * has_turns)]:
        shard = f"replace(filename[{start}:], '.{kind}.parquet', '.h5') AS shard"
        domain = f"array_to_string(string_split(filename[{start}:], '/')[:2], '/') AS domain"
        if not list(build.glob(f"{DOMAINS}/*/*/*.{kind}.parquet")):
            fields = [*schema, pa.field("shard", pa.string()), pa.field("domain", pa.string())]
            connection.register(view, pa.schema(fields).empty_table())
            continue
        pattern = _quoted(build, f"{DOMAINS}/*/*/*.{kind}.parquet")
        connection.execute(
            f"CREATE VIEW {view} AS SELECT {shard}, {domain}, * EXCLUDE (filename) "
            f"FROM read_parquet({pattern}, filename=true)"
        )
    connection.execute(LOCATED)
    if has_turns:
        connection.execute(TURNS)


def _run(connection: "Connection", run: Path) -> None:
    if not list(run.glob("*/ledger/rows-*.parquet")):
        raise InputError(f"{run}: holds no sealed ledger; give the --out of `crystalmix train`")
    for view in ("rows", "steps"):
        pattern = _quoted(run, f"*/ledger/{view}-*.parquet")
        connection.execute(
            f"CREATE VIEW \"{view}\" AS SELECT split_part(filename, '/', -3) AS phase, "
            f"* EXCLUDE (filename) FROM read_parquet({pattern}, filename=true)"
        )
    connection.execute(RUN_VIEWS + PIECES)


def _quoted(path: Path, pattern: str) -> str:
    """Return a path and a pattern below it as an SQL string; in the path nothing is a wildcard."""
    return quoted(f"{unglobbed(path)}/{pattern}")


def _distinct(table: pa.Table) -> pa.Table:
    """Give columns of one name a number, so that no row loses one."""
    names: list[str] = []
    for name in table.column_names:
        number, unique = 0, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return table.rename_columns(names)
