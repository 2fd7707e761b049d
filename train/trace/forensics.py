"""Forensics: the documents of some steps, and which of their properties stand out.

What is compared are document pieces: those in the steps, against all others of the phase. Fisher's
exact test, one-sided, decides whether a value of a property is in the steps more often than chance
has it; over all values the share of false findings is held by Benjamini and Hochberg's rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.mixtures.laws.distributions import scipy_part
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.filters.opt_out import OptOut
from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record.views import Traced
from crystalmix.train.trace import located
from crystalmix.train.trace.answers import FIM, Table
from crystalmix.train.trace.questions import snippets
from crystalmix.train.trace.spikes import SpikeSettings, robust_z

STEPS = "SELECT step, loss FROM steps WHERE phase = ? AND NOT skipped ORDER BY step"
PROPERTIES = ("source", "part", "epoch", "fim", "document")
OVER_REPRESENTED = pa.schema(
    [
        ("property", pa.string()),
        ("value", pa.string()),
        ("inside", pa.int64()),
        ("every", pa.int64()),
        ("lift", pa.float64()),
        ("p", pa.float64()),
    ]
)
COUNTED = """
    SELECT {value} AS value, count(*) FILTER (step IN (SELECT step FROM looked_at)) AS inside,
           count(*) AS every
    FROM pieces WHERE phase = ? GROUP BY ALL HAVING inside > 0 ORDER BY value
"""
VALUES = {"document": "source || ':' || document", "fim": "CAST(fim AS VARCHAR)"}


@dataclass(frozen=True)
class StandingOut:
    """The losses of a phase, and the steps whose loss stands out, one at least."""

    steps: NDArray[np.float64]  # (steps,)
    losses: NDArray[np.float64]  # (steps,) nats per token
    spikes: list[int]


def standing_out(traced: Traced, phase: str, settings: SpikeSettings | None = None) -> StandingOut:
    """Return the losses of a phase and the steps whose loss stands out.

    Where none stands out as `trace --spikes` has it, the highest of the later ones is returned.
    """
    settings = settings or SpikeSettings()
    rows = traced.rows(STEPS, [phase])
    if not rows:
        raise InputError(f"{traced.run}: holds no step of phase {phase}; train it first")
    steps = np.array([row["step"] for row in rows], np.float64)
    losses = np.array([row["loss"] for row in rows], np.float64)
    z, _ = robust_z(losses, settings.window)
    later = len(losses) // 5  # the loss falls fast before
    spikes = steps[np.nan_to_num(z, nan=0.0) >= settings.threshold]
    if not len(spikes):
        spikes = steps[[later + int(np.argmax(losses[later:]))]]
    return StandingOut(steps, losses, [int(step) for step in spikes])


def replayed(traced: Traced, phase: str, steps: Sequence[int]) -> Table:
    """Return step, rows, same: whether its rows read again are those that were trained on."""
    from crystalmix.train.trainer.batches import Batches

    batches = Batches(traced.manifests[phase], traced.build)
    query = "SELECT digest FROM steps WHERE phase = ? AND step = ?"
    rows: list[tuple[int, int, bool]] = []
    for step in steps:
        [recorded] = traced.rows(query, [phase, step])
        batch = batches[step]
        rows.append((step, len(batch.refs.row), batch.digest == recorded["digest"]))
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return Table(pa.table(dict(zip(("step", "rows", "same"), map(list, columns), strict=True))))


def over_represented(
    traced: Traced, phase: str, steps: Sequence[int], share: float = 0.05
) -> Table:
    """Return values of properties that are in some steps more often than chance has it.

    property, value, inside (pieces in the steps), every (in the phase), lift, and p. share: of
    false findings among those returned.
    """
    _look_at(traced, steps)
    rows: list[Json] = []
    [total] = traced.rows(
        "SELECT count(*) AS every, count(*) FILTER (step IN (SELECT step FROM looked_at)) AS inside"
        " FROM pieces WHERE phase = ?",
        [phase],
    )
    for name in PROPERTIES:
        value = VALUES.get(name, f"CAST({name} AS VARCHAR)")
        for row in traced.rows(COUNTED.format(value=value), [phase]):
            expected = total["inside"] * row["every"] / total["every"]
            rows.append({"property": name, **row, "lift": row["inside"] / expected})
    inside, every = (np.array([row[key] for row in rows]) for key in ("inside", "every"))
    hypergeometric = scipy_part("stats").hypergeom
    p = hypergeometric.sf(inside - 1, total["every"], every, total["inside"])
    for row, value in zip(rows, p.tolist(), strict=True):
        row["p"] = float(value)
    rows.sort(key=lambda row: (row["p"], row["property"]))
    # Benjamini and Hochberg: up to the last whose p is at most share * rank / rows
    ranks = [i for i, row in enumerate(rows, start=1) if row["p"] <= share * i / len(rows)]
    return Table(pa.Table.from_pylist(rows[: max(ranks, default=0)], OVER_REPRESENTED))


def pieces(traced: Traced, phase: str, steps: Sequence[int], most: int = 12) -> Table:
    """Return the longest document pieces of some steps, with the beginnings of their texts."""
    longest = [(step, piece) for step in steps for piece in located.documents(traced, phase, step)]
    longest.sort(key=lambda place: (place[1].start - place[1].stop, place[0], place[1].slot))
    longest = longest[:most]
    texts = snippets(traced, [piece for _, piece in longest])
    rows = [
        {
            "step": step,
            "part": piece.part,
            "epoch": piece.epoch,
            "fim": FIM[piece.fim],
            "tokens": piece.stop - piece.start,
            "document": piece.name,
            "text": text,
        }
        for (step, piece), text in zip(longest, texts, strict=True)
    ]
    return Table(pa.Table.from_pylist(rows))


def documents_of(traced: Traced, phase: str, steps: Sequence[int]) -> list[str]:
    """Return the documents of some steps as keys `source:document`, by their tokens there."""
    _look_at(traced, steps)
    query = """
        SELECT source || ':' || document AS key FROM pieces
        WHERE phase = ? AND step IN (SELECT step FROM looked_at)
        GROUP BY ALL ORDER BY sum(stop - start) DESC, key
    """
    return [row["key"] for row in traced.rows(query, [phase])]


def suspects(traced: Traced, phase: str, steps: Sequence[int], share: float = 0.05) -> list[str]:
    """Return the documents (keys) that are in some steps more often than chance has it."""
    rows = over_represented(traced, phase, steps, share).content()
    return [row["value"] for row in rows if row["property"] == "document"]


def drop_list(traced: Traced, keys: Sequence[str], out: Path) -> int:
    """Write the digests of documents (keys `source:document`), one a line; return how many."""
    digests: set[str] = set()
    for key in keys:
        source, _, document = key.rpartition(":")
        query = "SELECT digest FROM documents WHERE source = ? AND document = ?"
        digests |= {row["digest"].hex() for row in traced.rows(query, [source, int(document)])}
    write_atomic(out, "".join(f"{digest}\n" for digest in sorted(digests)).encode())
    return len(digests)


def without(recipe: Recipe, listed: Path) -> Recipe:
    """Return a recipe that leaves out the texts whose digests a list holds, in all its sources."""
    opt_out = OptOut(str(listed.resolve()), match="digest")
    sources = {
        name: replace(
            source, select=replace(source.select, opt_out=(*source.select.opt_out, opt_out))
        )
        for name, source in recipe.sources.items()
    }
    reduced = replace(recipe, sources=sources)
    object.__setattr__(reduced, "file", recipe.file)
    return reduced


def _look_at(traced: Traced, steps: Sequence[int]) -> None:
    listed = ", ".join(f"({int(step)})" for step in steps) or "(-1)"
    traced.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE looked_at AS SELECT * FROM (VALUES {listed}) AS t(step)"
    )
