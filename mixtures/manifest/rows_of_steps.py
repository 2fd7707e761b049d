"""What steps consume, from a manifest alone: no run, no spans, no file but the manifest.

Of one step its rows, slot by slot; of a range of steps what was asked of each part and what it got.
"""

from pathlib import Path

import numpy as np

from crystalmix.mixtures.manifest.manifest import Manifest, loss_tokens_of, read_manifests
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Json

COLUMNS = ("slot", "part", "epoch", "shard", "row")


def parse(asked: str) -> tuple[str, int]:
    """Return phase and step of PHASE:STEP."""
    phase, _, number = asked.rpartition(":")
    if not (phase and number.isdecimal()):
        raise UsageError(f"--step: must be PHASE:STEP such as phase2:300, got {asked!r}")
    return phase, int(number)


def look(path: Path, asked: str) -> tuple[list[Json], list[str]]:
    """Return what steps of a build consume, and the lines of it.

    asked: PHASE:STEP for the rows of a step, PHASE:FIRST:LAST for the parts of a range of steps.
    """
    phase, _, first = asked.rpartition(":")
    if first.isdecimal() and phase.rpartition(":")[2].isdecimal():
        name, begin = parse(phase)
        told = part_counts(_manifest(path, name, begin, int(first)), begin, int(first))
        return told, count_lines(told)
    name, step = parse(asked)
    rows = step_rows(_manifest(path, name, step, step), step)
    return rows, row_lines(rows)


def _manifest(path: Path, name: str, first: int, last: int) -> Manifest:
    """Return the manifest of a phase that has the steps first to last."""
    phases = {manifest.phase: manifest for manifest in read_manifests(path)}
    if not phases:
        raise InputError(f"{path}: holds no manifest; give the --out of build or import")
    if name not in phases:
        raise UsageError(f"--step: no phase is called {name!r} (there are {', '.join(phases)})")
    steps = phases[name].steps
    if not first <= last < steps:
        got = first if first == last else f"{first} to {last}"
        raise UsageError(f"--step: phase {name} has the steps 0 to {steps - 1}, got {got}")
    return phases[name]


def part_counts(manifest: Manifest, first: int, last: int) -> list[Json]:
    """Return asked and got of each part in the steps first to last, both of them included.

    Rows and tokens are exact; loss_tokens as `manifest.loss_tokens_of` tells.
    """
    ends = (first * manifest.batch, (last + 1) * manifest.batch)
    before, after = (manifest.order.counts(end) for end in ends)
    return [
        {
            "part": part.name,
            "asked": part.asked,
            "got": count / (ends[1] - ends[0]),
            "rows": count,
            "tokens": count * manifest.msl,
            "loss_tokens": loss_tokens_of(part.shards, count),
        }
        for part, count in zip(manifest.parts, np.subtract(after, before).tolist(), strict=True)
    ]


def count_lines(told: list[Json]) -> list[str]:
    """Return counts of parts as a table."""
    cells = [
        [
            each["part"],
            f"{each['asked']:.6f}",
            f"{each['got']:.6f}",
            f"{each['rows']:,}",
            f"{each['tokens']:,}",
            "unknown" if each["loss_tokens"] is None else f"{each['loss_tokens']:,}",
        ]
        for each in told
    ]
    return table(cells, ["part", "asked", "got", "rows", "tokens", "with loss"])


def step_rows(manifest: Manifest, step: int) -> list[Json]:
    """Return slot, part, epoch, shard and row of each row that a step consumes."""
    refs = manifest.step(step)
    columns = (each.tolist() for each in (refs.part, refs.epoch, refs.shard, refs.row))
    return [
        {
            "slot": slot,
            "part": manifest.parts[part].name,
            "epoch": epoch,
            "shard": manifest.paths[shard],
            "row": row,
        }
        for slot, (part, epoch, shard, row) in enumerate(zip(*columns, strict=True))
    ]


def row_lines(told: list[Json]) -> list[str]:
    """Return rows of a step as a table."""
    return table([[entry[column] for column in COLUMNS] for entry in told], COLUMNS)
