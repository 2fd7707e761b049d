"""Plans: what a recipe asks of its data, from counts alone, before a byte is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixtures.order import Interleave
from mixtures.recipe import Domain, Part, Phase, Recipe
from prep import receipts
from prep.errors import RefusalError

Json = dict[str, Any]


@dataclass(frozen=True)
class PartPlan:
    """What a phase takes of one part, and how often that repeats what there is.

    available: rows of the part, None where nobody knows yet. known: where that number is from.
    """

    name: str
    asked: float
    rows: int
    tokens: int
    got: float
    available: int | None
    epochs: float | None
    known: Literal["built", "declared", "unknown"]


@dataclass(frozen=True)
class PhasePlan:
    """What a phase takes."""

    name: str
    steps: int
    batch: int
    msl: int
    rows: int
    tokens: int
    weight_sum: float
    parts: tuple[PartPlan, ...]
    refusals: tuple[str, ...]


def plan(recipe: Recipe, out: Path | None = None) -> list[PhasePlan]:
    """Plan every phase; `out`: a build whose sealed domains give the rows there are."""
    return [_phase(recipe, phase, out) for phase in recipe.phases.values()]


def _phase(recipe: Recipe, phase: Phase, out: Path | None) -> PhasePlan:
    msl = recipe.rows.msl
    # The order ranks parts by weight and name; counts need the same ranking.
    pairs = sorted(
        zip(phase.integer_weights(), phase.parts, strict=True), key=lambda p: (p[0], p[1].name)
    )
    counts = Interleave([weight for weight, _ in pairs]).counts(phase.rows)
    count_of = {part.name: count for (_, part), count in zip(pairs, counts, strict=True)}
    parts = tuple(_part(recipe, part, count_of[part.name], phase, out) for part in phase.parts)
    refusals = [
        line
        for part, asked in zip(parts, phase.parts, strict=True)
        for line in _refusals(part, asked)
    ]
    return PhasePlan(
        name=phase.name,
        steps=phase.steps,
        batch=phase.batch,
        msl=msl,
        rows=phase.rows,
        tokens=phase.rows * msl,
        weight_sum=sum(part.weight for part in phase.parts),
        parts=parts,
        refusals=tuple(refusals),
    )


def _part(recipe: Recipe, part: Part, rows: int, phase: Phase, out: Path | None) -> PartPlan:
    msl = recipe.rows.msl
    available, known = _available(recipe, part, out)
    return PartPlan(
        name=part.name,
        asked=part.weight,
        rows=rows,
        tokens=rows * msl,
        got=rows / phase.rows,
        available=available,
        epochs=rows / available if available else None,
        known=known,
    )


def _available(
    recipe: Recipe, part: Part, out: Path | None
) -> tuple[int | None, Literal["built", "declared", "unknown"]]:
    """Return the rows a part can draw from, and how that is known."""
    built = None if out is None else _built(recipe.domains[part.domain], out, part.domain)
    if built is not None:
        from mixtures.build import choose

        try:
            shards = choose(part, built, Path())
        except RefusalError:
            return 0, "built"
        return sum(shard.last - shard.first for shard in shards), "built"
    tokens = recipe.domains[part.domain].tokens
    if tokens is None:
        return None, "unknown"
    low, high = part.subset or (0.0, 1.0)
    share = (high - low) / (2 if part.half else 1)
    return int(tokens * share / recipe.rows.msl), "declared"


def _built(domain: Domain, out: Path, name: str) -> Json | None:
    """Return the receipt of the folder that a build draws from, once it is sealed."""
    row_fim = domain.fim is not None and domain.fim.level == "row"
    last = "epoch-0-fim" if row_fim else "epoch-0"
    if domain.shuffle or domain.epochs > 1:
        last = "shuffled" if domain.shuffle else "joined"
    folder = out / "domains" / name / last
    return receipts.read(folder) if (folder / receipts.NAME).exists() else None


def _refusals(part: PartPlan, asked: Part) -> list[str]:
    told: list[str] = []
    if part.rows == 0:
        told.append(f"part {part.name} gets no row: raise its weight or the steps")
    if part.available == 0:
        told.append(f"part {part.name} has no row to draw from: add data or widen its subset")
    if part.epochs is not None and part.epochs > asked.max_epochs:
        told.append(
            f"part {part.name} would be repeated {part.epochs:.2f} times, over max_epochs "
            f"{asked.max_epochs:g}: lower its weight, add data or raise max_epochs"
        )
    return told
