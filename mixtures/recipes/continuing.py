"""Where parts begin: in the sequence of rows that earlier phases of the recipe began to read.

What a part holds, the seed and the kind of order fix a part's sequence of draws: one permutation of
its rows after another. A part begins at its `start`, draw 0, or behind the draws that earlier
phases took of the same sequence (`continue`, `{after: PHASE}`). So all phases together have always
read a prefix of it, and no row comes a second time before each came once. Two parts that share
some rows only (another half or subset, or Model Zoo's order) walk through them in sequences that
have nothing to do with each other: there `continue` is refused.
"""

from collections.abc import Iterator, Mapping, Sequence

from crystalmix.mixtures.recipes.phase import After, Begins, Part, Phase, common, same_rows
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import frozen


@frozen
class Reading:
    """The draws [start, start + rows) that a phase takes of a part; rows: None if not known."""

    phase: Phase
    part: Part
    start: int
    rows: int | None

    @property
    def stop(self) -> int:
        """The draw behind the last one; RefusalError where the data have to say it."""
        if self.rows is None:
            raise RefusalError(
                f"goes on behind phase {self.phase.name}, whose rows follow from {self.phase.kind} "
                f"of domains that are not built; build that phase first or too"
            )
        return self.start + self.rows


@frozen
class Fault:
    """A part that can't begin as it says; steps: the place in the recipe."""

    steps: tuple[str | int, ...]
    message: str


def begins(phase: Phase, part: Part, version: int) -> Begins:
    """Return where a part begins, by what it says or by the recipe's format."""
    if part.begins is not None:
        return part.begins
    return "continue" if version == 2 and phase.cerebras is None else "start"


def begin(phase: Phase, part: Part, version: int, before: Sequence[Reading]) -> int:
    """Return the draw of its sequence at which a part begins.

    version: the recipe's format. before: what earlier phases take. Raises RefusalError where the
    earlier phases' rows are not known.
    """
    where = begins(phase, part, version)
    if where == "start":
        return 0
    same = [reading for reading in before if _same(reading, part)]
    if isinstance(where, After):
        same = [reading for reading in same if reading.phase.name == where.after]
    return max((reading.stop for reading in same), default=0)


def faults(phases: Mapping[str, Phase], version: int) -> Iterator[Fault]:
    """Yield what the recipe alone shows: no such phase, or rows in another sequence."""
    before: list[Reading] = []
    for phase in phases.values():
        for place, part in enumerate(phase.parts):
            if message := _fault(phase, part, version, before):
                yield Fault(("phases", phase.name, "parts", place, "from"), message)
        before += [Reading(phase, part, 0, None) for part in phase.parts]


def _fault(phase: Phase, part: Part, version: int, before: Sequence[Reading]) -> str | None:
    where = begins(phase, part, version)
    if where == "start":
        return None
    if isinstance(where, After):
        names = list(dict.fromkeys(reading.phase.name for reading in before))
        if where.after not in names:
            known = ", ".join(names) or "none"
            return f"no earlier phase is called {where.after!r} (there are {known})"
        if not any(_same(r, part) and r.phase.name == where.after for r in before):
            return (
                f"phase {where.after} takes no part of the same rows as {part.name} in the same "
                "sequence; name a phase that does, or say `from: start`"
            )
        return None
    for reading in before:
        share = common(part, reading.part)
        if share and not _same(reading, part):
            own = reading.part.name if reading.phase.cerebras is None else "Model Zoo's order"
            return (
                f"{part.name} can't continue: phase {reading.phase.name} took {share:.0%} of its "
                f"rows in another sequence, that of {own}; give both the same half and subset, "
                "or say `from: start` to read rows again"
            )
    return None


def _same(reading: Reading, part: Part) -> bool:
    """Return whether a part walks through the same rows in the same sequence of our own order."""
    return same_rows(reading.part, part) and reading.phase.cerebras is None
