"""Repeats: what a phase consumed that earlier phases had consumed already, rows and documents.

From the ledgers, that is what happened. Two rows are the same where they stand in the same place of
the same shard, or of shards with equal rows; two documents where their texts are equal, so that a
document is known again in another source, domain or FIM variant.
"""

from typing import Any

from crystalmix.mixtures.manifest.report import read_manifests, table
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.train.record.views import Traced

Json = dict[str, Any]
ROWS = """
    WITH keyed AS (
      SELECT r.phase, r.part, s.digest, r."row" FROM "rows" r
      JOIN (SELECT DISTINCT phase, shard, digest FROM shards) s USING (phase, shard)),
    now AS (SELECT part, digest, "row", count(*) AS times FROM keyed WHERE phase = $phase
      GROUP BY ALL),
    before AS (SELECT DISTINCT phase, digest, "row" FROM keyed WHERE list_contains($before, phase))
"""
CONSUMED = f"""{ROWS}
    SELECT part, sum(times)::BIGINT AS "rows", count(*) AS "distinct",
           coalesce(sum(times) FILTER (seen), 0)::BIGINT AS seen
    FROM (SELECT *, (digest, "row") IN (SELECT (digest, "row") FROM before) AS seen FROM now)
    GROUP BY part
"""
WHERE_SEEN = f"""{ROWS}
    SELECT part, b.phase, sum(times)::BIGINT AS "rows"
    FROM now JOIN before b USING (digest, "row") GROUP BY part, b.phase
"""
DOCUMENTS = """
    WITH told AS (SELECT DISTINCT p.phase, p.part, d.digest
      FROM pieces p JOIN documents d USING (source, document)
      WHERE p.phase = $phase OR list_contains($before, p.phase))
    SELECT part, count(*) AS documents,
           count(*) FILTER (digest IN (SELECT digest FROM told WHERE phase <> $phase)) AS seen
    FROM told WHERE phase = $phase GROUP BY part
"""


def repeats(traced: Traced, phase: str) -> list[Json]:
    """Return, for each part of a phase, what of it earlier phases consumed.

    rows: consumed; distinct: of them; seen: consumed rows that an earlier phase consumed too, and
    in which (`phases`; a row of two phases counts in both); documents: of which something was
    consumed; documents_seen: those that something was consumed of before; both None without spans.
    """
    earlier = _earlier(traced, phase)
    asked = {"phase": phase, "before": earlier}
    rows = {entry["part"]: entry for entry in traced.rows(CONSUMED, asked)}
    documents = {entry["part"]: entry for entry in traced.rows(DOCUMENTS, asked)}
    where: dict[str, Json] = {}
    for entry in traced.rows(WHERE_SEEN, asked):
        where.setdefault(entry["part"], {})[entry["phase"]] = entry["rows"]
    manifest = traced.manifests[phase]
    nothing = {"rows": 0, "distinct": 0, "seen": 0}
    no_documents = {"documents": 0, "seen": 0}
    told: list[Json] = []
    for part in manifest.parts:
        counted = documents.get(part.name, no_documents) if manifest.imported is None else {}
        told.append(
            {
                **nothing,
                **rows.get(part.name, {}),
                "part": part.name,
                "phases": {name: where.get(part.name, {}).get(name, 0) for name in earlier},
                "documents": counted.get("documents"),
                "documents_seen": counted.get("seen"),
            }
        )
    return told


def _earlier(traced: Traced, phase: str) -> list[str]:
    """Return the recorded phases before one; UsageError or InputError where that is not there."""
    order = [manifest.phase for manifest in read_manifests(traced.build)]
    if phase not in order:
        raise UsageError(f"--repeats: no phase is called {phase!r} (there are {', '.join(order)})")
    recorded = {entry["phase"] for entry in traced.rows("SELECT DISTINCT phase FROM steps")}
    if phase not in recorded:
        raise InputError(f"{traced.run}: phase {phase} is not in the ledger; train it first")
    return [name for name in order[: order.index(phase)] if name in recorded]


def repeat_lines(told: list[Json], phase: str) -> list[str]:
    """Return what was repeated as a table, with a line for the whole phase."""
    earlier = list(told[0]["phases"])
    if not earlier:
        return [f"{phase}: no earlier phase is in the ledger: it repeats nothing"]
    head = ["part", "rows", "distinct", "seen before", *(f"in {name}" for name in earlier)]
    cells = [_cells(part) for part in told]
    cells.append(_cells(_total(told)))
    return table(cells, [*head, "documents", "seen before"])


def _cells(part: Json) -> list[str]:
    counts = [part["rows"], part["distinct"], part["seen"], *part["phases"].values()]
    counts += [part["documents"], part["documents_seen"]]
    return [part["part"], *("-" if count is None else f"{count:,}" for count in counts)]


def _total(told: list[Json]) -> Json:
    """Add up the rows of all parts; a document may stand in several, so those are not added."""
    keys = ("rows", "distinct", "seen")
    phases = {name: sum(part["phases"][name] for part in told) for name in told[0]["phases"]}
    total = {key: sum(part[key] for part in told) for key in keys}
    return {**total, "part": "all", "phases": phases, "documents": None, "documents_seen": None}
