"""Where a phase's parts begin, from what earlier phases take: as sealed, or by the recipe."""

from collections.abc import Mapping

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.recipes import continuing
from crystalmix.mixtures.recipes.continuing import Reading
from crystalmix.mixtures.recipes.phase import Phase
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.runtime.errors import RefusalError


def starts(recipe: Recipe, phase: Phase, sealed: Mapping[str, Manifest]) -> list[int]:
    """Return the draw at which each part of a phase begins; sealed: manifests that are there.

    Raises RefusalError, with file and line, where the phases before say how much only by data that
    are not built.
    """
    before: list[Reading] = []
    for name, earlier in recipe.phases.items():
        if name == phase.name:
            break
        before += (
            _sealed(earlier, sealed[name]) if name in sealed else _asked(recipe, earlier, before)
        )
    return [_start(recipe, phase, place, before) for place in range(len(phase.parts))]


def _start(recipe: Recipe, phase: Phase, place: int, before: list[Reading]) -> int:
    part = phase.parts[place]
    try:
        return continuing.begin(phase, part, recipe.format, before)
    except RefusalError as error:
        steps = ("phases", phase.name, "parts", place)
        raise RefusalError(str(recipe.fault(f"{part.name} {error}", *steps))) from None


def _sealed(phase: Phase, manifest: Manifest) -> list[Reading]:
    parts = {part.name: part for part in manifest.parts}
    return [
        Reading(phase, part, parts[part.name].start, parts[part.name].rows)
        for part in phase.parts
        if part.name in parts
    ]


def _asked(recipe: Recipe, phase: Phase, before: list[Reading]) -> list[Reading]:
    """Return what a phase that is not built takes by its weights or budgets, without any data."""
    if phase.kind == "epochs" or phase.cerebras is not None:
        return [Reading(phase, part, 0, None) for part in phase.parts]
    nothing = [0] * len(phase.parts)
    counts = phase.counts(phase.weights(nothing), phase.steps_of(nothing, recipe.msl_of(phase)))
    readings: list[Reading] = []
    for part, rows in zip(phase.parts, counts, strict=True):
        try:
            start = continuing.begin(phase, part, recipe.format, before)
        except RefusalError:
            readings.append(Reading(phase, part, 0, None))
        else:
            readings.append(Reading(phase, part, start, rows))
    return readings
