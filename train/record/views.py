"""DuckDB views over a build and a run, from a step to its documents and back.

Views (`crystalmix sql` shows them): `parts`, `shards`, `documents`, `spans` (every document piece
of every shard, shuffled ones through their origin), and with a run `steps`, `rows` (the ledger),
`losses` (per step and part), `pieces` (which document piece stood in which slot of which step).
A build of conversations has `turns` too: which message of which record each piece of a row is of.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from crystalmix.mixtures.manifest import opened
from crystalmix.mixtures.manifest.build_folder import ALL_DOCUMENTS, DOMAINS, BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.documents.schema import identity
from crystalmix.prep.rows import turns
from crystalmix.prep.rows.spans import ORIGIN, SPANS
from crystalmix.prep.runtime.atomic_files import settle
from crystalmix.prep.runtime.database import connect as open_database
from crystalmix.prep.runtime.database import explained, quoted, unglobbed
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record.run_folder import PhaseFolder

if TYPE_CHECKING:
    from crystalmix.prep.runtime.database import Connection

Parameters = list[Any] | Json | None
Record = TypeVar("Record")

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


class Manifests(Mapping[str, Manifest]):
    """The manifests of a build by phase, sorted by name; each is read when it is asked for."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = {path.parent.name: path for path in paths}
        self._read: dict[str, Manifest] = {}

    def __getitem__(self, phase: str) -> Manifest:
        if phase not in self._read:
            self._read[phase] = opened.manifest(self._paths[phase])
        return self._read[phase]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@dataclass(frozen=True, eq=False)
class Traced:
    """A build, a run of it if given, and a connection with their views that is opened for SQL."""

    build: Path
    run: Path | None
    manifests: Mapping[str, Manifest]
    opened: Callable[[], "Connection"]

    @cached_property
    def connection(self) -> "Connection":
        """The views."""
        return self.opened()

    def ledger(self, phase: str) -> Path:
        """Return the ledger of a phase of the run."""
        assert self.run is not None
        return PhaseFolder(self.run / phase).ledger

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
    """Open a build, and a run if given, to ask; InputError if there is neither.

    What SQL needs (all manifests, a list of all files) is read when SQL is asked for.
    """
    build = build.resolve()  # DuckDB names files by their pattern
    manifests = Manifests(BuildFolder(build).manifests())
    if not manifests:
        raise InputError(f"{build}: holds no sealed phase; give the --out of `crystalmix build`")
    if run is not None and not any(run.glob("*/ledger/rows-*.parquet")):
        raise InputError(f"{run}: holds no sealed ledger; give the --out of `crystalmix train`")
    return Traced(build, run, manifests, partial(_views, build, run, manifests))


def _views(build: Path, run: Path | None, manifests: Mapping[str, Manifest]) -> "Connection":
    for place in (build, *([run] if run else [])):
        settle(place)
    connection = open_database(readable=[*BuildFolder(build).places(), *([run] if run else [])])
    connection.register("parts", _parts(manifests))
    connection.register("shards", _shards(manifests))
    with explained():
        _documents(connection, build)
        _spans(connection, build)
        if run is not None:
            _run(connection, run.resolve())
    return connection


def _parts(manifests: Mapping[str, Manifest]) -> pa.Table:
    names = ("domain", "asked", "weight", "rows", "tokens", "got", "available", "epochs")
    entries = [
        {"phase": phase, "place": i, "part": part.name, **{n: getattr(part, n) for n in names}}
        for phase, manifest in manifests.items()
        for i, part in enumerate(manifest.parts)
    ]
    return pa.Table.from_pylist(entries)


def _shards(manifests: Mapping[str, Manifest]) -> pa.Table:
    every = [
        (phase, part.name, shard)
        for phase, manifest in manifests.items()
        for part in manifest.parts
        for shard in part.shards
    ]
    columns: dict[str, list[Any]] = {
        "phase": [phase for phase, _, _ in every],
        "part": [part for _, part, _ in every],
        "shard": [shard.path for _, _, shard in every],
        **{
            name: [getattr(shard, name) for _, _, shard in every]
            for name in ("rows", "first", "last", "digest")
        },
    }
    return pa.table(columns)


def _documents(connection: "Connection", build: Path) -> None:
    source = "split_part(filename, '/', -2) AS source"
    if not any(build.glob(ALL_DOCUMENTS)):
        empty = identity().append(pa.field("source", pa.string())).empty_table()
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
    has_turns = any(build.glob(f"{DOMAINS}/*/*/*.{turns.KIND}.parquet"))
    for view, kind, schema in [*sides, *([("packed_turns", turns.KIND, turns.TURNS)] * has_turns)]:
        shard = f"replace(filename[{start}:], '.{kind}.parquet', '.h5') AS shard"
        domain = f"array_to_string(string_split(filename[{start}:], '/')[:2], '/') AS domain"
        if not any(build.glob(f"{DOMAINS}/*/*/*.{kind}.parquet")):
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
