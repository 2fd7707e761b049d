"""Model Zoo's layout of packed documents (VSL): `rows-00000.h5`, `data` of (rows, 5, msl) int32.

Features of a row: ids, loss mask, labels, attention span, position ids. The span of a place is how
many later places attend to it, those of its document behind it; its position is its place in its
document's piece. Both are 0 in padding. Of a part that does not mask attention between documents a
row is one piece. One chunk a row, deflate, attribute `n_examples`, as Model Zoo's reader wants it
with `use_vsl: True`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.exports.row_blocks import Block
from crystalmix.prep.rows.shards import writing
from crystalmix.prep.runtime.errors import RefusalError

FEATURES = 5


def write(path: Path, blocks: Iterable[Block], rows: int, msl: int) -> Iterator[Block]:
    """Write a file of `rows` rows while blocks pass through.

    Raises RefusalError for rows whose documents are not known.
    """
    with writing(path, rows, FEATURES, msl) as put:
        for block in blocks:
            for row in features(block):
                put(row)
            yield block


def features(block: Block) -> NDArray[np.int32]:
    """Return the five features of rows: (n, 5, msl) int32."""
    count, _, msl = block.rows.shape
    out = np.zeros((count, FEATURES, msl), np.int32)
    out[:, :3] = block.rows
    masked = block.manifest.masked
    for place, pieces in enumerate(block.documents.to_pylist()):
        if pieces is None:
            raise RefusalError(
                f"phase {block.manifest.phase}: position {int(block.positions[place])} is of a "
                "shard without spans, so where its documents begin is not known; export it to "
                "another format"
            )
        edges = [(piece["start"], piece["stop"]) for piece in pieces]
        if edges and not masked[int(block.refs.part[place])]:
            edges = [(0, max(stop for _, stop in edges))]
        for start, stop in edges:
            out[place, 3, start:stop] = np.arange(stop - start - 1, -1, -1)
            out[place, 4, start:stop] = np.arange(stop - start)
    return out
