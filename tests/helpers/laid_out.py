"""Packed rows, of which a build may write spans alone: found among the shuffled by origin."""

from pathlib import Path

import numpy as np

from crystalmix.mixtures.manifest.build_folder import rows_files
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.runtime import receipts


def packed(domain: Path) -> dict[str, Rows]:
    """Return the rows of each packed shard by its name, `epoch-0/data-00000.h5`, by row."""
    found: dict[str, dict[int, Rows]] = {}
    folders = [domain / name for name in ("shuffled", "joined") if (domain / name).exists()]
    for path in [place / s.name for place in folders for s in rows_files(receipts.read(place))]:
        origin = spans.read(spans.path_of(path, "origin")).to_pylist()
        for row, place in zip(shards.read(path), origin, strict=True):
            found.setdefault(place["origin"], {})[place["origin_row"]] = row
    rows = {name: np.stack([own[i] for i in range(len(own))]) for name, own in found.items()}
    return dict(sorted(rows.items()))


def of_folder(folder: Path) -> dict[str, Rows]:
    """Return the rows of each shard of a packed folder by its file name, written or laid out."""
    if written := shards.folder(folder):
        return {path.name: shards.read(path) for path in written}
    every = [(Path(name), rows) for name, rows in packed(folder.parent).items()]
    return {path.name: rows for path, rows in every if path.parent.name == folder.name}
