"""Windows: rows that hold one document each, cut at msl tokens and padded.

The rows of LMData with `pack_sequences` off: a document's tokens [k * msl, (k + 1) * msl] are one
window (msl inputs, each with its label), so the last token of a document is a label only; shorter
windows are padded in inputs and labels with mask 0; what has fewer than `least` tokens is left out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.rows.shards import CHANNELS, Rows
from crystalmix.prep.rows.token_blocks import Stream

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows of a stream: the document each is of (its place), where it begins there, its size.

    All are (windows,) int64; size counts tokens, one more than the row's inputs.
    """

    document: Numbers
    offset: Numbers
    size: Numbers

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(self.document[rows], self.offset[rows], self.size[rows])


def of(tokens: Numbers, msl: int, least: int) -> Windows:
    """Return the windows of documents of so many tokens, in order.

    >>> found = of(np.array([3, 9, 5]), 4, 2)
    >>> found.document.tolist(), found.offset.tolist(), found.size.tolist()
    ([0, 1, 1, 2], [0, 0, 4, 0], [3, 5, 5, 5])
    """
    each = -(-tokens // msl)
    document = np.repeat(np.arange(len(tokens)), each)
    first = np.cumsum(each) - each
    offset = (np.arange(len(document)) - first[document]) * msl
    size = np.minimum(tokens[document] - offset, msl + 1)
    kept = size >= max(2, least)
    return Windows(document[kept], offset[kept], size[kept])


def fill(stream: Stream, starts: Numbers, sizes: Numbers, msl: int, pad: int) -> Rows:
    """Return the windows [start, start + size) of a stream as rows: (n, 3, msl) int32."""
    low, high = int(starts[0]), int(starts[-1] + sizes[-1])
    tokens = stream.slice(low, high)
    place = (starts - low)[:, None] + np.arange(msl + 1)  # (n, msl + 1)
    window = tokens[place.clip(max=len(tokens) - 1)]
    labelled = np.arange(msl) < (sizes - 1)[:, None]
    out = np.empty((len(starts), CHANNELS, msl), dtype=np.int32)
    out[:, 0] = np.where(labelled, window[:, :-1], pad)
    out[:, 1] = labelled
    out[:, 2] = np.where(labelled, window[:, 1:], pad)
    return out
