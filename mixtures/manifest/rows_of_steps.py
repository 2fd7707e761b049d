"""What steps consume, from a manifest alone: no run, no spans, no file but the manifest.

For one step its rows, slot by slot; for a range of steps the share asked and got of each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from crystalmix.mixtures.manifest.manifest import Manifest, loss_tokens_of
from crystalmix.mixtures.manifest.opened import in_build
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.tables import table

with imported_later(__name__):
    import numpy as np


@dataclass(frozen=True)
class StepRow:
    """A row that a step consumes; shard: path below the build, row: in the shard."""

    slot: int
    part: str
    epoch: int
    shard: str
    row: int


@dataclass(frozen=True)
class PartCount:
    """What some steps ask of a part (a share of rows) and get; loss_tokens: None if unknown."""

    part: str
    asked: float
    got: float
    rows: int
    tokens: int
    loss_tokens: int | None


def parse(text: str) -> tuple[str, int]:
    """Return phase and step of PHASE:STEP."""
    phase, _, number = text.rpartition(":")
    if not (phase and number.isdecimal()):
        raise UsageError(f"--step: must be PHASE:STEP such as phase2:300, got {text!r}")
    return phase, int(number)


def look(path: Path, steps: str) -> tuple[list[StepRow] | list[PartCount], list[str]]:
    """Return what steps of a build consume, and the lines of it.

    steps: PHASE:STEP for the rows of a step, PHASE:FIRST:LAST for the parts of a range of steps.
    """
    phase, _, first = steps.rpartition(":")
    if first.isdecimal() and phase.rpartition(":")[2].isdecimal():
        name, begin = parse(phase)
        counts = part_counts(_manifest(path, name, begin, int(first)), begin, int(first))
        return counts, count_lines(counts)
    name, step = parse(steps)
    rows = step_rows(_manifest(path, name, step, step), step)
    return rows, row_lines(rows)


def _manifest(path: Path, name: str, first: int, last: int) -> Manifest:
    """Return the manifest of a phase that has the steps first to last."""
    phases = {manifest.phase: manifest for manifest in in_build(path)}
    if not phases:
        raise InputError(f"{path}: holds no manifest; give the --out of build or import")
    if name not in phases:
        raise UsageError(f"--step: no phase is called {name!r} (there are {', '.join(phases)})")
    steps = phases[name].steps
    if not first <= last < steps:
        got = first if first == last else f"{first} to {last}"
        raise UsageError(f"--step: phase {name} has the steps 0 to {steps - 1}, got {got}")
    return phases[name]


def part_counts(manifest: Manifest, first: int, last: int) -> list[PartCount]:
    """Return asked and got of each part in the steps first to last, both of them included.

    Rows and tokens are exact; loss_tokens as of `manifest.loss_tokens_of`.
    """
    ends = (first * manifest.batch, (last + 1) * manifest.batch)
    before, after = (manifest.order.counts(end) for end in ends)
    return [
        PartCount(
            part.name,
            part.asked,
            count / (ends[1] - ends[0]),
            count,
            count * manifest.msl,
            loss_tokens_of(part.shards, count),
        )
        for part, count in zip(manifest.parts, np.subtract(after, before).tolist(), strict=True)
    ]


def count_lines(counts: Sequence[PartCount]) -> list[str]:
    """Return counts of parts as a table."""
    cells = [
        [
            count.part,
            f"{count.asked:.6f}",
            f"{count.got:.6f}",
            f"{count.rows:,}",
            f"{count.tokens:,}",
            "unknown" if count.loss_tokens is None else f"{count.loss_tokens:,}",
        ]
        for count in counts
    ]
    return table(cells, ["part", "asked", "got", "rows", "tokens", "with loss"])


def step_rows(manifest: Manifest, step: int) -> list[StepRow]:
    """Return the rows that a step consumes, slot by slot."""
    refs = manifest.step(step)
    columns = (column.tolist() for column in (refs.part, refs.epoch, refs.shard, refs.row))
    return [
        StepRow(slot, manifest.parts[part].name, epoch, manifest.paths[shard], row)
        for slot, (part, epoch, shard, row) in enumerate(zip(*columns, strict=True))
    ]


def row_lines(rows: Sequence[StepRow]) -> list[str]:
    """Return rows of a step as a table."""
    return table([[*vars(row).values()] for row in rows], [field.name for field in fields(StepRow)])
