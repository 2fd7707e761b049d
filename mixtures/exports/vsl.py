"""Model Zoo's layout of packed documents (VSL): `rows-00000.h5`, `data` of (rows, 5, msl) int32.

Features of a row: ids, loss mask, labels, attention span, position ids. The span of a place is how
many later places attend to it, those of its document behind it; its position is its place in its
document's piece. Both are 0 in padding. Of a part that does not mask attention between documents a
row is one piece. One chunk a row, deflate, attribute `n_examples`, as Model Zoo's reader wants it
with `use_vsl: True`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import deflate
import h5py
import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.exports.row_blocks import Block
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import RefusalError

FEATURES = 5
LEVEL = 1


def write(path: Path, blocks: Iterable[Block], rows: int, msl: int) -> Iterator[Block]:
    """Write a file of `rows` rows while blocks pass through.

    Raises RefusalError for rows whose documents are not known.
    """
    shape, chunk = (rows, FEATURES, msl), (1, FEATURES, msl)
    how = {"dtype": "<i4", "compression": "gzip", "compression_opts": LEVEL}
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        data: Any = file.create_dataset("data", shape=shape, chunks=chunk, **how)
        file.attrs["n_examples"] = rows
        written = 0
        for block in blocks:
            for row in features(block):
                packed = deflate.zlib_compress(row.astype("<i4").data.cast("B"), LEVEL)
                data.id.write_direct_chunk((written, 0, 0), packed, filter_mask=0)
                written += 1
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
