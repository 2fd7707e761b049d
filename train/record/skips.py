"""Skipped steps: named by `train --skip-steps`, kept with the run, recorded in the ledger.

A skipped step takes no optimiser step and consumes no row, but its place in the data and in the
schedule passes. A skip holds for every resume; the ledger records which steps were skipped.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crystalmix.mixtures.manifest.manifest import Manifest, RowRefs
from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import StaleError, UsageError
from crystalmix.train.record import ledger, run_folder
from crystalmix.train.record.ledger import SKIPPED, Step
from crystalmix.train.record.run_folder import PhaseFolder

Range = tuple[int, int]  # first and last step


def parse(options: Sequence[str], phases: Sequence[str]) -> dict[str, list[Range]]:
    """Return the ranges of each phase, from FIRST:LAST or PHASE:FIRST:LAST.

    The phase may be left out where there is one alone.

    >>> parse(["5:7", "one:9:9"], ["one"])
    {'one': [(5, 7), (9, 9)]}
    """
    ranges: dict[str, list[Range]] = {}
    for option in options:
        head, _, last = option.rpartition(":")
        phase, _, first = head.rpartition(":")
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise UsageError(
                f"--skip-steps: must be FIRST:LAST or PHASE:FIRST:LAST such as phase2:300:310, "
                f"got {option!r}"
            )
        if not phase and len(phases) != 1:
            raise UsageError(
                f"--skip-steps: say of which phase ({', '.join(phases)}), got {option!r}"
            )
        phase = phase or phases[0]
        if phase not in phases:
            raise UsageError(
                f"--skip-steps: no phase {phase!r} is trained (there are {', '.join(phases)})"
            )
        ranges.setdefault(phase, []).append((int(first), int(last)))
    return ranges


def ask(run: Path, trained: Sequence[Manifest], options: Sequence[str]) -> None:
    """Write the steps of `--skip-steps` to `skips.json` of the phases that are trained.

    Raises UsageError for steps that the phase does not have, StaleError for steps done already.
    """
    ranges = parse(options, [manifest.phase for manifest in trained])
    for manifest in trained:
        if manifest.phase in ranges:
            _write_skips(run / manifest.phase, manifest, ranges[manifest.phase])


def _write_skips(phase: Path, manifest: Manifest, ranges: Iterable[Range]) -> None:
    skips, newest = read(phase), PhaseFolder(phase).newest
    done = 0 if newest is None else run_folder.read_state(newest).step
    steps = skips
    for first, last in ranges:
        if last >= manifest.steps:
            raise UsageError(
                f"--skip-steps: phase {manifest.phase} has the steps 0 to {manifest.steps - 1}, "
                f"got {first}:{last}"
            )
        new = frozenset(range(first, last + 1)) - skips
        if new and min(new) < done:
            raise StaleError(
                f"{phase}: step {min(new)} is done already (newest checkpoint: {done} steps); "
                f"remove the checkpoints of more than {min(new)} steps to skip it"
            )
        steps = steps | new
    if steps != skips:
        write_atomic(PhaseFolder(phase).skips, canonical({"steps": spans(steps)}))


def read(phase: Path) -> frozenset[int]:
    """Return the steps that a phase is to skip."""
    path = PhaseFolder(phase).skips
    if not path.exists():
        return frozenset()
    ranges = read_json(path, "remove it, and ask for the skips again").get("steps", [])
    return frozenset(step for first, last in ranges for step in range(first, last + 1))


def skipped(step: int) -> Step:
    """Return the ledger entry of a skipped step: no row, no loss, no learning rate."""
    none, nan = np.empty(0, np.int64), float("nan")
    refs = RowRefs(none, none, none, none)
    return Step(step, refs, SKIPPED, nan, nan, nan, (), skipped=True)


def recorded(run: Path) -> dict[str, list[Range]]:
    """Return the skipped steps of each phase, as its ledger has them."""
    ranges: dict[str, list[Range]] = {}
    for phase in run_folder.phases(run):
        if ledger.segments(phase.ledger, "steps"):
            steps = ledger.read(phase.ledger, "steps", None, ["step", "skipped"])
            numbers = steps["step"].to_numpy()[steps["skipped"].to_numpy()]
            if len(numbers):
                ranges[phase.name] = spans(numbers.tolist())
    return ranges


def faults(phase: Path, tables: Iterable[pa.Table]) -> Iterator[str]:
    """Yield a line for each step whose skip is recorded wrongly or was not requested."""
    requests, equal = read(phase), cast("Any", pc.equal)  # whose stub knows no text
    for table in tables:
        skips = table["skipped"].to_numpy()
        named = np.equal(equal(table["digest"], SKIPPED).to_numpy(), True)  # null: by no digest
        for place in np.flatnonzero(skips | named).tolist():
            step = cast("int", table["step"][place].as_py())
            if skips[place] != named[place]:
                word = "" if skips[place] else "not "
                yield f"step {step} is told as {word}skipped, its digest is not"
            elif step not in requests:
                yield f"step {step} was skipped, which nobody asked"


def lines(skips: dict[str, list[Range]]) -> list[str]:
    """Return one line for each phase that skipped steps."""
    return [f"{phase}: skipped as asked: {named(ranges)}" for phase, ranges in skips.items()]


def named(ranges: Sequence[Range]) -> str:
    """Return ranges in words.

    >>> named([(3, 3), (7, 9)])
    'steps 3, 7 to 9'
    """
    words = [f"{first}" if first == last else f"{first} to {last}" for first, last in ranges]
    single = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"{'step' if single else 'steps'} {', '.join(words)}"


def spans(steps: Iterable[int]) -> list[Range]:
    """Return steps as ranges, ascending.

    >>> spans({9, 3, 8, 7})
    [(3, 3), (7, 9)]
    """
    ranges: list[Range] = []
    for step in sorted(steps):
        if ranges and ranges[-1][1] == step - 1:
            ranges[-1] = (ranges[-1][0], step)
        else:
            ranges.append((step, step))
    return ranges
