"""Trace: DuckDB views over a build and a run, from a step to its documents and back.

Views (`crystalmix sql` shows them): `parts`, `shards`, `documents`, `spans` (every document piece
of every shard, shuffled ones through their origin), and with a run `steps`, `rows` (the ledger),
`losses` (per step and part), `pieces` (which document piece stood in which slot of which step).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from mixtures import manifest as manifests
from mixtures.manifest import Manifest
from prep.documents import IDENTITY
from prep.errors import InputError, UsageError
from prep.spans import ORIGIN, SPANS

Json = dict[str, Any]
PLAN_STEPS = 4096

LOCATED = """
    CREATE VIEW spans AS
    SELECT shard, "row", start, stop, source, document, "offset", fim, cut1, cut2 FROM packed
    UNION ALL BY NAME
    SELECT o.shard, o."row", p.start, p.stop, p.source, p.document, p."offset",
           p.fim, p.cut1, p.cut2
    FROM origins o JOIN packed p
      ON p.shard = o.domain || '/' || o.origin AND p."row" = o.origin_row
"""
RUN_VIEWS = """
    CREATE VIEW losses AS
      SELECT phase, step, p.part AS part, p.rows AS "rows", p.tokens AS tokens, p.loss AS loss
      FROM (SELECT phase, step, unnest(parts) AS p FROM steps);
    CREATE VIEW pieces AS
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
RATIOS = """
    SELECT p.phase, p.part, p.asked, count(r.step) AS "rows",
           count(r.step) / sum(count(r.step)) OVER (PARTITION BY p.phase) AS got
    FROM parts p LEFT JOIN (SELECT * FROM "rows" WHERE step BETWEEN ? AND ?) r
      ON r.phase = p.phase AND r.part = p.part
    GROUP BY p.phase, p.part, p.asked, p.place ORDER BY p.phase, p.place
"""


@dataclass(frozen=True)
class Traced:
    """A connection with its views, and what they were made from."""

    connection: duckdb.DuckDBPyConnection
    build: Path
    run: Path | None
    manifests: dict[str, Manifest]

    def table(self, query: str, parameters: list[Any] | None = None) -> pa.Table:
        """Run a query; UsageError tells what DuckDB found wrong with it."""
        try:
            return self.connection.sql(query, params=parameters or []).to_arrow_table()
        except duckdb.Error as error:
            brief = " ".join(str(error).split("LINE")[0].split())
            raise UsageError(f"sql: {brief}") from None

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[Json]:
        """Run a query and return its rows as dicts."""
        return self.table(query, parameters).to_pylist()


def connect(build: Path, run: Path | None = None) -> Traced:
    """Open a build, and a run if given, as DuckDB views; InputError if there is neither."""
    read = {
        path.parent.name: manifests.read(path)
        for path in sorted(build.glob(f"phases/*/{manifests.NAME}"))
    }
    if not read:
        raise InputError(f"{build}: holds no sealed phase; give the --out of `crystalmix build`")
    connection = duckdb.connect()
    connection.register("parts", _parts(read))
    connection.register("shards", _shards(read))
    _documents(connection, build)
    _spans(connection, build)
    if run is not None:
        _run(connection, run)
    return Traced(connection, build, run, read)


def documents(traced: Traced, phase: str, step: int) -> list[Json]:
    """Return the document pieces of a step, slot by slot; InputError if it is not recorded."""
    found = traced.rows(DOCUMENTS, [phase, step])
    if not found:
        known = traced.rows("SELECT max(step) AS last FROM steps WHERE phase = ?", [phase])
        raise InputError(
            f"{traced.run}: phase {phase} has no step {step} "
            f"(recorded: 0 to {known[0]['last']}; phases: {', '.join(traced.manifests)})"
        )
    return found


def find_documents(traced: Traced, name: str) -> list[Json]:
    """Return the documents called `name`: a name, `file#record`, or part of a name."""
    query = """
        SELECT source, document, coalesce(name, file || '#' || record) AS name, file, record,
               characters FROM documents
        WHERE coalesce(name, file || '#' || record) {} ? ORDER BY source, document LIMIT 100
    """
    exact = traced.rows(query.format("="), [name])
    return exact or traced.rows(query.format("LIKE"), [f"%{name}%"])


def steps(traced: Traced, source: str, document: int) -> list[Json]:
    """Return every position of every phase that consumes a row of a document.

    One entry per (phase, step, slot) as planned, with `recorded`: whether the ledger has it too.
    """
    rows = traced.rows(
        'SELECT DISTINCT shard, "row" FROM spans WHERE source = ? AND document = ?',
        [source, document],
    )
    recorded = _recorded(traced, source, document)
    found: list[Json] = []
    for phase, manifest in traced.manifests.items():
        used = set(manifest.paths)
        for row in rows:
            if row["shard"] not in used:
                continue
            for position in manifest.positions(row["shard"], row["row"]):
                step, slot = divmod(position, manifest.batch)
                key = (phase, step, slot)
                found.append(
                    {"phase": phase, "step": step, "slot": slot, **row, "recorded": key in recorded}
                )
    return sorted(found, key=lambda entry: (entry["phase"], entry["step"], entry["slot"]))


def ratios(traced: Traced, first: int = 0, last: int = 2**31 - 1) -> list[Json]:
    """Return asked and got shares of each part over the recorded steps [first, last]."""
    return traced.rows(RATIOS, [first, last])


def _recorded(traced: Traced, source: str, document: int) -> set[tuple[str, int, int]]:
    if traced.run is None:
        return set()
    query = "SELECT phase, step, slot FROM pieces WHERE source = ? AND document = ?"
    return {
        (entry["phase"], entry["step"], entry["slot"])
        for entry in traced.rows(query, [source, document])
    }


def _parts(read: dict[str, Manifest]) -> pa.Table:
    names = ("domain", "asked", "weight", "rows", "tokens", "got", "available", "epochs")
    entries = [
        {"phase": phase, "place": i, "part": part.name, **{n: getattr(part, n) for n in names}}
        for phase, manifest in read.items()
        for i, part in enumerate(manifest.parts)
    ]
    return pa.Table.from_pylist(entries)


def _shards(read: dict[str, Manifest]) -> pa.Table:
    entries = [
        {"phase": phase, "part": part.name, "shard": shard.path, "rows": shard.rows}
        | {"first": shard.first, "last": shard.last, "digest": shard.digest}
        for phase, manifest in read.items()
        for part in manifest.parts
        for shard in part.shards
    ]
    return pa.Table.from_pylist(entries)


def _documents(connection: duckdb.DuckDBPyConnection, build: Path) -> None:
    pattern = build / "sources" / "*" / "documents.parquet"
    source = "split_part(filename, '/', -2) AS source"
    if not list(build.glob("sources/*/documents.parquet")):
        empty = pa.schema([*IDENTITY, ("source", pa.string())]).empty_table()
        connection.register("documents", empty)
        return
    connection.execute(
        f"CREATE VIEW documents AS SELECT {source}, * EXCLUDE (filename) FROM "
        f"read_parquet({_quoted(pattern)}, filename=true, union_by_name=true)"
    )


def _spans(connection: duckdb.DuckDBPyConnection, build: Path) -> None:
    """Make `spans` of the spans of packed shards and the origins of shuffled ones."""
    start = len(build.as_posix()) + 2  # SQL counts from 1; past the slash
    for view, kind, schema in (("packed", "spans", SPANS), ("origins", "origin", ORIGIN)):
        shard = f"replace(filename[{start}:], '.{kind}.parquet', '.h5') AS shard"
        domain = f"array_to_string(string_split(filename[{start}:], '/')[:2], '/') AS domain"
        if not list(build.glob(f"domains/*/*/*.{kind}.parquet")):
            fields = [*schema, pa.field("shard", pa.string()), pa.field("domain", pa.string())]
            connection.register(view, pa.schema(fields).empty_table())
            continue
        pattern = build / "domains" / "*" / "*" / f"*.{kind}.parquet"
        connection.execute(
            f"CREATE VIEW {view} AS SELECT {shard}, {domain}, * EXCLUDE (filename) "
            f"FROM read_parquet({_quoted(pattern)}, filename=true)"
        )
    connection.execute(LOCATED)


def _run(connection: duckdb.DuckDBPyConnection, run: Path) -> None:
    if not list(run.glob("*/ledger/rows-*.parquet")):
        raise InputError(f"{run}: holds no sealed ledger; give the --out of `crystalmix train`")
    for view in ("rows", "steps"):
        pattern = run / "*" / "ledger" / f"{view}-*.parquet"
        connection.execute(
            f"CREATE VIEW \"{view}\" AS SELECT split_part(filename, '/', -3) AS phase, "
            f"* EXCLUDE (filename) FROM read_parquet({_quoted(pattern)}, filename=true)"
        )
    connection.execute(RUN_VIEWS)


def _quoted(path: Path) -> str:
    return "'" + path.as_posix().replace("'", "''") + "'"
