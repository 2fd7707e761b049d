"""What an export of a small phase must hold, read by h5py and DuckDB, not by the exporter."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import crystalmix as cm
from helpers.corpora import RECIPE, built, write_recipe
from helpers.runs import scratch

MSL, BATCH = 64, 4
PHASE = "mixed"  # 320 rows: code with document-level FIM in two epochs, prose in three
COLUMNS = ("step", "slot", "part", "epoch", "shard", "row")


@lru_cache
def repeating_build() -> Path:
    """Return a build of the small corpus whose phase takes each part more than once."""
    folder = scratch()
    parts = [{**part, "max_epochs": 4} for part in RECIPE["phases"][PHASE]["parts"]]
    write_recipe(folder, phases={PHASE: {"steps": 80, "parts": parts}})
    return built(folder)


def opened() -> cm.Build:
    build = cm.open(repeating_build())
    assert isinstance(build, cm.Build)
    return build


@lru_cache
def references() -> tuple[dict[str, Any], ...]:
    """Where each row of the phase is from, in the order of consumption."""
    phase = opened().phases[PHASE]
    return tuple(phase.rows(0, phase.manifest.steps - 1).content())


@lru_cache
def rows() -> NDArray[np.int32]:
    """The rows of the phase: (n, 3, msl)."""
    found: list[NDArray[np.int32]] = []
    for entry in references():
        with h5py.File(repeating_build() / entry["shard"]) as file:
            data: Any = file["data"]
            found.append(data[entry["row"]])
    return np.stack(found)


@lru_cache
def documents() -> list[list[tuple[Any, ...]]]:
    """The document pieces of each row: source, document, start, stop, offset, fim."""
    pieces = opened().sql(
        'SELECT shard, "row", source, document, start, stop, "offset", fim FROM spans ORDER BY ALL'
    )
    of_row: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
    for shard, row, *piece in zip(*(pieces[n] for n in pieces.arrow.column_names), strict=True):
        of_row.setdefault((shard, row), []).append(tuple(piece))
    found = [of_row[entry["shard"], entry["row"]] for entry in references()]
    return [sorted(pieces, key=lambda piece: piece[2]) for pieces in found]


def tokens() -> NDArray[np.int32]:
    """Ids and last label of each row: (n, msl + 1)."""
    return np.concatenate([rows()[:, 0], rows()[:, 2, -1:]], axis=1)


def of_part(name: str) -> list[int]:
    """The places of a part's rows, in the order of consumption."""
    return [i for i, entry in enumerate(references()) if entry["part"] == name]


def exported(out: Path, to: Any, **settings: Any) -> Path:
    """Export the phase in files of fifty rows by two processes; return the folder."""
    cm.export_rows(opened(), out, phase=PHASE, to=to, rows_per_file=50, workers=2, **settings)
    return out
