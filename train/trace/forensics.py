"""Forensics: the documents of some steps, and which of their properties stand out.

What is compared are document pieces: those in the steps, against all others of the phase. Fisher's
exact test, one-sided, tells whether a value of a property is in the steps more often than chance
has it; over all values the share of false findings is held by Benjamini and Hochberg's rule.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crystalmix.mixtures.laws.distributions import scipy_part
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.filters.opt_out import OptOut
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.record import views as trace
from crystalmix.train.record.views import Traced
from crystalmix.train.trace.answers import FIM, snippet
from crystalmix.train.trace.spikes import STEPS, SpikeSettings, robust_z

Json = dict[str, Any]
PROPERTIES = ("source", "part", "epoch", "fim", "document")
COUNTED = """
    SELECT {value} AS value, count(*) FILTER (step IN (SELECT step FROM looked_at)) AS inside,
           count(*) AS every
    FROM pieces WHERE phase = ? GROUP BY ALL HAVING inside > 0 ORDER BY value
"""
VALUES = {"document": "source || ':' || document", "fim": "CAST(fim AS VARCHAR)"}


def standing_out(
    traced: Traced, phase: str, settings: SpikeSettings | None = None
) -> tuple[Json, list[int]]:
    """Return steps and losses of a phase, and the steps whose loss stands out, one at least.

    Where none stands out as `trace --spikes` has it, the highest of the later ones is told.
    """
    settings = settings or SpikeSettings()
    rows = traced.rows(STEPS, [phase])
    if not rows:
        raise InputError(f"{traced.run}: holds no step of phase {phase}; train it first")
    steps = np.array([row["step"] for row in rows], np.float64)
    losses = np.array([row["loss"] for row in rows], np.float64)
    z, _ = robust_z(losses, settings.window)
    later = len(losses) // 5  # the loss falls fast before
    found = steps[np.nan_to_num(z, nan=0.0) >= settings.threshold]
    if not len(found):
        found = steps[[later + int(np.argmax(losses[later:]))]]
    return {"steps": steps, "losses": losses}, [int(step) for step in found]


def replayed(traced: Traced, phase: str, steps: Sequence[int]) -> list[Json]:
    """Read the rows of steps again, and tell whether they are those that were trained on."""
    from crystalmix.train.trainer.batches import Batches

    batches = Batches(traced.manifests[phase], traced.build)
    told: list[Json] = []
    for step in steps:
        query = "SELECT digest FROM steps WHERE phase = ? AND step = ?"
        [row] = traced.rows(query, [phase, step])
        batch = batches[step]
        told.append(
            {"step": step, "rows": len(batch.refs.row), "same": batch.digest == row["digest"]}
        )
    return told


def over_represented(
    traced: Traced, phase: str, steps: Sequence[int], share: float = 0.05
) -> list[Json]:
    """Return values of properties that are in some steps more often than chance has it.

    share: of false findings among those returned. Each has property, value, inside (pieces in the
    steps), every (in the phase), lift, and p.
    """
    _look_at(traced, steps)
    told: list[Json] = []
    [total] = traced.rows(
        "SELECT count(*) AS every, count(*) FILTER (step IN (SELECT step FROM looked_at)) AS inside"
        " FROM pieces WHERE phase = ?",
        [phase],
    )
    for name in PROPERTIES:
        value = VALUES.get(name, f"CAST({name} AS VARCHAR)")
        for row in traced.rows(COUNTED.format(value=value), [phase]):
            expected = total["inside"] * row["every"] / total["every"]
            told.append({"property": name, **row, "lift": row["inside"] / expected})
    if not told:
        return []
    inside, every = (np.array([row[key] for row in told]) for key in ("inside", "every"))
    chance = scipy_part("stats").hypergeom
    p = chance.sf(inside - 1, total["every"], every, total["inside"])
    for row, one in zip(told, p.tolist(), strict=True):
        row["p"] = float(one)
    return _false_share(sorted(told, key=lambda row: (row["p"], row["property"])), share)


def pieces(traced: Traced, phase: str, steps: Sequence[int], most: int = 12) -> list[Json]:
    """Return the longest document pieces of some steps, with the beginnings of their texts."""
    told = [
        {"step": step, **piece} for step in steps for piece in trace.documents(traced, phase, step)
    ]
    told.sort(key=lambda piece: (piece["start"] - piece["stop"], piece["step"], piece["slot"]))
    return [
        {
            "step": piece["step"],
            "part": piece["part"],
            "epoch": piece["epoch"],
            "fim": FIM[piece["fim"]],
            "tokens": piece["stop"] - piece["start"],
            "document": piece["name"],
            "text": snippet(traced, piece),
        }
        for piece in told[:most]
    ]


def documents_of(traced: Traced, phase: str, steps: Sequence[int]) -> list[str]:
    """Return the documents of some steps as keys `source:document`, by their tokens there."""
    _look_at(traced, steps)
    query = """
        SELECT source || ':' || document AS key FROM pieces
        WHERE phase = ? AND step IN (SELECT step FROM looked_at)
        GROUP BY ALL ORDER BY sum(stop - start) DESC, key
    """
    return [row["key"] for row in traced.rows(query, [phase])]


def drop_list(traced: Traced, keys: Sequence[str], out: Path) -> int:
    """Write the digests of documents (keys `source:document`), one a line; return how many."""
    found: set[str] = set()
    for key in keys:
        source, _, document = key.rpartition(":")
        query = "SELECT digest FROM documents WHERE source = ? AND document = ?"
        found |= {row["digest"].hex() for row in traced.rows(query, [source, int(document)])}
    receipts.write_atomic(out, "".join(f"{digest}\n" for digest in sorted(found)).encode())
    return len(found)


def without(recipe: Recipe, listed: Path) -> Recipe:
    """Return a recipe that leaves out the texts whose digests a list holds, in all its sources."""
    opt_out = OptOut(str(listed.resolve()), match="digest")
    sources = {
        name: replace(one, select=replace(one.select, opt_out=(*one.select.opt_out, opt_out)))
        for name, one in recipe.sources.items()
    }
    made = replace(recipe, sources=sources)
    object.__setattr__(made, "file", recipe.file)
    return made


def _look_at(traced: Traced, steps: Sequence[int]) -> None:
    listed = ", ".join(f"({int(step)})" for step in steps) or "(-1)"
    traced.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE looked_at AS SELECT * FROM (VALUES {listed}) AS t(step)"
    )


def _false_share(rows: list[Json], share: float) -> list[Json]:
    """Keep rows, ascending by p, up to the last whose p is at most share * rank / rows."""
    kept = [i for i, row in enumerate(rows, start=1) if row["p"] <= share * i / len(rows)]
    return rows[: max(kept, default=0)]
