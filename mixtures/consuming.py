"""Which rows a step consumes, from a manifest alone: no run, no spans, no file but the manifest."""

from pathlib import Path
from typing import Any

from mixtures.manifest import Manifest
from mixtures.report import read_manifests, table
from prep.errors import InputError, UsageError

Json = dict[str, Any]
COLUMNS = ("slot", "part", "epoch", "shard", "row")


def parse(asked: str) -> tuple[str, int]:
    """Return phase and step of PHASE:STEP."""
    phase, _, number = asked.rpartition(":")
    if not (phase and number.isdecimal()):
        raise UsageError(f"--step: must be PHASE:STEP such as phase2:300, got {asked!r}")
    return phase, int(number)


def rows(path: Path, asked: str) -> list[Json]:
    """Return the rows of a step of a build, slot by slot; asked: PHASE:STEP."""
    name, step = parse(asked)
    phases = {manifest.phase: manifest for manifest in read_manifests(path)}
    if not phases:
        raise InputError(f"{path}: holds no manifest; give the --out of build or import")
    if name not in phases:
        raise UsageError(f"--step: no phase is called {name!r} (there are {', '.join(phases)})")
    manifest = phases[name]
    if step >= manifest.steps:
        raise UsageError(
            f"--step: phase {name} has the steps 0 to {manifest.steps - 1}, got {step}"
        )
    return step_rows(manifest, step)


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
