"""Degrees of proof: how it is known what each step of a run consumed.

    recorded  recorded by our trainer, which read the rows itself
    caller    recorded by another program through our ledger
    proven    fixed by the position of a loader in a checkpoint of another program's run
    assumed   none of these: `--assume` was given; it stays so

The ledger of a harvested run is written from the plan, so that it equals the plan in any case.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import PhaseFolder, ProofRange

Degree = Literal["recorded", "caller", "proven", "assumed"]
WORDS: dict[Degree, str] = {
    "recorded": "recorded by the trainer",
    "caller": "recorded by a caller",
    "proven": "proven by the loader's position in a checkpoint",
    "assumed": "assumed: nothing proves that these rows were fed",
}


def of_phase(phase: PhaseFolder) -> tuple[ProofRange, ...]:
    """Return the ranges of a phase's ledger up to its newest checkpoint, in order.

    A harvest of a version that did not note its proof is assumed.
    """
    newest = phase.newest
    if newest is None:
        return ()
    state = run_folder.read_state(newest)
    last = state.step - 1
    if last < 0:
        return ()
    claim = run_folder.read_claim(phase, f"remove {phase.path} and train this phase again")
    if not claim.harvested:
        return (ProofRange(0, last, "caller" if claim.caller else "recorded"),)
    return state.proof or (ProofRange(0, last, "assumed"),)


def extended(ranges: Iterable[ProofRange], last: int, degree: Degree) -> tuple[ProofRange, ...]:
    """Add steps up to `last` to ranges; what was assumed before stays so.

    >>> extended([ProofRange(0, 3, "proven")], 5, "proven")
    (ProofRange(first=0, last=5, degree='proven'),)
    >>> [r.degree for r in extended([ProofRange(0, 3, "assumed")], 5, "proven")]
    ['assumed', 'proven']
    """
    known = list(ranges)
    first = known[-1].last + 1 if known else 0
    if first > last:
        return tuple(known)
    if known and known[-1].degree == degree:
        first = known.pop().first
    return (*known, ProofRange(first, last, degree))


def lines(run: Path, *, every: bool = False) -> list[str]:
    """Return one line for each range of a run's phases; every: those of our trainer too."""
    return [
        f"{phase.name}: steps {range_.first:,} to {range_.last:,}: {WORDS[range_.degree]}"
        for phase in run_folder.phases(run)
        for range_ in of_phase(phase)
        if every or range_.degree != "recorded"
    ]
