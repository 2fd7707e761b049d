"""The loss mask of documents of whose labels only the last part counts: FIM's middles.

A document's ids before its `loss_from` are no labels: the mask is 0 where they are to be predicted.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.rows.token_blocks import Stream


def masked(blocks: Iterable[Rows], stream: Stream, places: NDArray[np.int64]) -> Iterator[Rows]:
    """Yield blocks of rows with such labels masked; places: (rows,), of first inputs in a stream.

    Where a row's mask is 1, what is to be predicted is the id one further in the stream.
    """
    edges, done = _edges(stream, places), 0
    for block in blocks:
        rows, _, msl = block.shape
        if len(edges):
            labels = places[done : done + rows, None] + np.arange(1, msl + 1)
            block[:, 1] &= np.searchsorted(edges, labels, side="right") % 2 == 0
        done += rows
        yield block


def _edges(stream: Stream, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in a stream ids stop and begin to count as labels, in turn."""
    start, stop = int(places.min()), stream.tokens
    documents = stream.documents(start, stop)
    first, size = (documents[name].to_numpy() for name in ("first", "loss_from"))
    return np.stack([first, first + size], axis=1)[size > 0].reshape(-1)
