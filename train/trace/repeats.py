"""Repeats: what a phase consumed that earlier phases had consumed already, rows and documents.

From the ledgers, that is what happened. Two rows are the same where they stand in the same place of
the same shard, or of shards with equal rows; two documents where their texts are equal, so that a
document is known again in another source, domain or FIM variant.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

from crystalmix.mixtures.manifest import coverage
from crystalmix.mixtures.manifest.manifest import in_order
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.train.record.ledger import rows_of_parts, segments, span_of
from crystalmix.train.record.views import Traced
from crystalmix.train.trace.answers import Answer, Grid

MOST_ROWS: Final = 20_000_000  # recorded, that are joined
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
    WITH consumed AS (SELECT DISTINCT p.phase, p.part, d.digest
      FROM pieces p JOIN documents d USING (source, document)
      WHERE p.phase = $phase OR list_contains($before, p.phase))
    SELECT part, count(*) AS documents,
           count(*) FILTER (digest IN (SELECT digest FROM consumed WHERE phase <> $phase)) AS seen
    FROM consumed WHERE phase = $phase GROUP BY part
"""


@dataclass(frozen=True)
class PartRepeats:
    """What earlier phases had consumed of what a part consumes."""

    part: str
    rows: int  # consumed
    distinct: int  # of them
    seen: int  # consumed rows that an earlier phase consumed too
    phases: dict[str, int]  # by the earlier phase; a row of two phases counts in both
    documents: int | None  # of which something was consumed; None without spans
    documents_seen: int | None  # of them those of which something was consumed before


@dataclass(frozen=True)
class Repeats(Answer):
    """What a phase repeats of the recorded phases before it, part by part."""

    phase: str
    parts: tuple[PartRepeats, ...]
    by_formula: bool = False

    def content(self) -> list[dict[str, object]]:
        """The parts as JSON."""
        return [asdict(part) for part in self.parts]

    def shown(self) -> Iterator[str | Grid]:
        """Yield the parts as a table, with a line for the whole phase."""
        earlier = list(self.parts[0].phases)
        if not earlier:
            yield f"{self.phase}: no earlier phase is in the ledger: it repeats nothing"
            return
        head = ["part", "rows", "distinct", "seen before", *(f"in {name}" for name in earlier)]
        cells = [_cells(part) for part in (*self.parts, self.total)]
        yield Grid(cells, [*head, "documents", "seen before"])
        if self.by_formula:
            yield (
                f"over {MOST_ROWS:,} rows: counts follow from the order, expected ones where parts "
                "share some of their rows; documents are not counted"
            )

    @property
    def total(self) -> PartRepeats:
        """The rows of all parts; a document may stand in several, so those are not added."""
        first, parts = self.parts[0], self.parts
        return replace(
            first,
            part="all",
            rows=sum(part.rows for part in parts),
            distinct=sum(part.distinct for part in parts),
            seen=sum(part.seen for part in parts),
            phases={name: sum(part.phases[name] for part in parts) for name in first.phases},
            documents=None,
            documents_seen=None,
        )


def repeats(traced: Traced, phase: str) -> Repeats:
    """Return what a phase repeats; UsageError or InputError where it is unknown or not trained."""
    earlier = _earlier(traced, phase)
    recorded = sum(
        _steps(traced, name) * traced.manifests[name].batch for name in (*earlier, phase)
    )
    if recorded > MOST_ROWS:
        return _by_formula(traced, phase, earlier)
    names = {"phase": phase, "before": earlier}
    rows = {entry["part"]: entry for entry in traced.rows(CONSUMED, names)}
    documents = {entry["part"]: entry for entry in traced.rows(DOCUMENTS, names)}
    where: dict[str, dict[str, int]] = {}
    for entry in traced.rows(WHERE_SEEN, names):
        where.setdefault(entry["part"], {})[entry["phase"]] = entry["rows"]
    manifest = traced.manifests[phase]
    parts: list[PartRepeats] = []
    for name in (part.name for part in manifest.parts):
        counts = rows.get(name, {"rows": 0, "distinct": 0, "seen": 0})
        texts = documents.get(name, {"documents": 0, "seen": 0})
        known = manifest.imported is None
        parts.append(
            PartRepeats(
                name,
                counts["rows"],
                counts["distinct"],
                counts["seen"],
                {before: where.get(name, {}).get(before, 0) for before in earlier},
                texts["documents"] if known else None,
                texts["seen"] if known else None,
            )
        )
    return Repeats(phase, tuple(parts))


def _by_formula(traced: Traced, phase: str, earlier: list[str]) -> Repeats:
    """Return what a phase repeats by the draws of its parts, of the steps that are recorded."""
    before, now = _draws(traced, earlier, phase)
    counts = rows_of_parts(traced.ledger(phase), 0, _steps(traced, phase) - 1)
    parts: list[PartRepeats] = []
    for part, own in zip(traced.manifests[phase].parts, now, strict=True):
        same = [draws for draws in before if draws.domain == own.domain]
        by_phase = {
            name: coverage.seen(own, [draws for draws in same if draws.phase == name])
            for name in earlier
        }
        numbers = (counts[part.name], coverage.distinct(own), coverage.seen(own, same))
        parts.append(PartRepeats(part.name, *numbers, by_phase, None, None))
    return Repeats(phase, tuple(parts), by_formula=True)


def _draws(
    traced: Traced, earlier: list[str], phase: str
) -> tuple[list[coverage.Draws], list[coverage.Draws]]:
    """Return what the recorded steps of earlier phases and of a phase draw, part by part."""
    phases = [traced.manifests[name] for name in (*earlier, phase)]
    counts = [count for m in phases for count in m.order.counts(_steps(traced, m.phase) * m.batch)]
    every = zip(coverage.of_manifests(phases), counts, strict=True)
    draws = [replace(draw, count=count) for draw, count in every]
    return draws[: -len(phases[-1].parts)], draws[-len(phases[-1].parts) :]


def _steps(traced: Traced, phase: str) -> int:
    """Return how many steps of a phase are recorded."""
    return max((span_of(path)[1] + 1 for path in segments(traced.ledger(phase))), default=0)


def _earlier(traced: Traced, phase: str) -> list[str]:
    """Return the recorded phases before one; UsageError or InputError where that is not there."""
    order = [manifest.phase for manifest in in_order([*traced.manifests.values()])]
    if phase not in order:
        raise UsageError(f"--repeats: no phase is called {phase!r} (there are {', '.join(order)})")
    if not _steps(traced, phase):
        raise InputError(f"{traced.run}: phase {phase} is not in the ledger; train it first")
    return [name for name in order[: order.index(phase)] if _steps(traced, name)]


def _cells(part: PartRepeats) -> list[str]:
    counts = [part.rows, part.distinct, part.seen, *part.phases.values()]
    counts += [part.documents, part.documents_seen]
    return [part.part, *("-" if count is None else f"{count:,}" for count in counts)]
