"""The loss mask of documents of whose labels only the last part counts: FIM's middles.

A document's ids before its `loss_from` are no labels: the mask is 0 where they are to be predicted.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from prep.blocks import Stream
from prep.shards import Rows


def masked(blocks: Iterable[Rows], stream: Stream, positions: tuple[int, int]) -> Iterator[Rows]:
    """Yield blocks of rows, cut from these positions of a stream on, with such labels masked."""
    start, stop = positions
    documents = stream.documents(start, min(stop + 1, stream.tokens))
    first, size = (documents[name].to_numpy() for name in ("first", "loss_from"))
    first, size = first[size > 0] - start, size[size > 0]
    place = 0
    for block in blocks:
        if len(first):
            count = block.shape[0] * block.shape[2]
            # Where a row says 1, the id at the next position is what is to be predicted.
            off = uncounted(first - 1 - place, size, count)
            block[:, 1] &= ~off.reshape(block.shape[0], block.shape[2])
            place += count
        yield block


def uncounted(starts: NDArray[np.int64], sizes: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Tell which of `count` places lie in one of the ranges [start, start + size): (count,).

    >>> uncounted(np.array([-2, 3]), np.array([3, 1]), 5).tolist()
    [True, False, False, True, False]
    """
    change = np.zeros(count + 1, dtype=np.int64)
    np.add.at(change, np.clip(starts, 0, count), 1)
    np.add.at(change, np.clip(starts + sizes, 0, count), -1)
    return np.cumsum(change)[:count] > 0
