"""Pieces of rows: of any rows of a phase the lengths of their documents' pieces."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.manifest import Manifest, RowRefs
from crystalmix.prep.rows.document_starts import DocumentStarts, whole

WHOLE = slice(None)


class RowPieces:
    """Says of a phase's rows where documents begin, where any of its parts masks between them.

    build: the folder that the manifest's shards are below.
    """

    def __init__(self, manifest: Manifest, build: Path) -> None:
        self.masked, self.msl = np.array(manifest.masked), manifest.msl
        self.starts = DocumentStarts([build / path for path in manifest.paths], manifest.msl)

    def of(self, refs: RowRefs, rows: slice = WHOLE) -> list[NDArray[np.int64]] | None:
        """Return the lengths of the pieces of each row, which add up to msl; None without masks.

        Of a part that does not mask a row is one piece.
        """
        if not self.masked.any():
            return None
        shards, row = refs.shard[rows].tolist(), refs.row[rows].tolist()
        masked = self.masked[refs.part[rows]].tolist()
        return [
            self.starts.lengths([shard], [number])[0] if apart else whole(self.msl)
            for shard, number, apart in zip(shards, row, masked, strict=True)
        ]
