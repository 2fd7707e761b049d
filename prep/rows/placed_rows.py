"""Rows of a stream at given places: their ids, their masks, and the pieces that they hold.

What packing does once it knows where rows begin: gather windows of ids, set the mask 0 where a
label does not count for its document, count the labels that do, and name the document pieces.
Rows in any order are made from the frames of ids that hold them, each decoded once.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from crystalmix.prep.rows import shards
from crystalmix.prep.rows.token_blocks import Stream, opened
from crystalmix.prep.runtime import frames

BLOCK_ROWS = 256
Numbers = NDArray[np.int64]
Ids = NDArray[np.integer]


def window_rows(
    stream: Stream, starts: Numbers, sizes: Numbers, inputs: Numbers, msl: int, pad: int
) -> Iterator[shards.Rows]:
    """Yield windows of a stream as blocks of rows; arguments as of `_fill`, one for each row."""
    for first in range(0, len(starts), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        yield _fill(stream, starts[rows], sizes[rows], inputs[rows], msl, pad)


def _fill(
    stream: Stream, starts: Numbers, sizes: Numbers, inputs: Numbers, msl: int, pad: int
) -> shards.Rows:
    """Return the windows [start, start + size) of a stream as rows: (n, 3, msl) int32.

    inputs: how many of a window's ids are inputs.
    """
    low, high = int(starts[0]), int(starts[-1] + sizes[-1])
    tokens = stream.slice(low, high)
    place = (starts - low)[:, None] + np.arange(msl + 1)  # (n, msl + 1)
    window = tokens[place.clip(max=len(tokens) - 1)]
    labelled = np.arange(msl) < (sizes - 1)[:, None]
    out = np.empty((len(starts), shards.CHANNELS, msl), dtype=np.int32)
    out[:, 0] = np.where(np.arange(msl) < inputs[:, None], window[:, :-1], pad)
    out[:, 1] = labelled
    out[:, 2] = np.where(labelled, window[:, 1:], pad)
    return out


def masked(
    blocks: Iterable[shards.Rows], stream: Stream, places: Numbers, *, across: bool = True
) -> Iterator[shards.Rows]:
    """Yield blocks of rows, the mask 0 for labels that do not count for their document.

    places: (rows,), position of each row's first input in the stream. Where a row's mask is 1, its
    label is the id one further in the stream. across: whether a document's first id is a label.
    """
    edges, done = _edges(stream, places, across=across), 0
    for block in blocks:
        rows, _, msl = block.shape
        if len(edges):
            labels = places[done : done + rows, None] + np.arange(1, msl + 1)
            block[:, 1] &= np.searchsorted(edges, labels, side="right") % 2 == 0
        done += rows
        yield block


def _edges(stream: Stream, places: Numbers, *, across: bool) -> Numbers:
    return unlearnt(stream.documents(int(places.min()), stream.tokens), across=across)


def unlearnt(documents: pa.Table, *, across: bool = True) -> Numbers:
    """Return the positions in a stream where ids stop and begin to count as labels, in turn.

    documents: as of `Stream.documents`. across: whether a document's first id is a label.
    """
    first, size = (documents[name].to_numpy() for name in ("first", "loss_from"))
    column: Any = documents["masked"].combine_chunks()
    counts, runs = column.value_lengths().to_numpy(), column.flatten().to_numpy()
    if not across:
        begins = np.full(len(first), -1)
        begins[counts > 0] = runs[(np.cumsum(counts) - counts)[counts > 0]]
        size = np.where(begins == 0, size, np.maximum(size, 1))  # else masked anyway
    before = np.stack([first, first + size], axis=1)[size > 0].reshape(-1)
    inside = runs + np.repeat(first, counts)
    return np.sort(np.concatenate([before, inside])) if len(inside) else before


def labels_of(stream: Stream, places: Numbers, msl: int, *, across: bool = True) -> Numbers:
    """Count the labels of rows of msl inputs that begin at `places`: (rows,)."""
    edges = _edges(stream, places, across=across)
    if len(edges) % 2:
        raise ValueError("masked runs must have a start and a stop")
    starts, stops = edges[::2], edges[1::2]
    before = np.concatenate([[0], np.cumsum(stops - starts)])

    def masked_before(position: Numbers) -> Numbers:
        """Count the ids before a position that are no labels."""
        run = np.searchsorted(starts, position, side="right")  # runs that have begun
        over = np.where(run > 0, stops[run - 1] - position, 0).clip(min=0)
        return before[run] - over

    if not len(starts):
        return np.minimum(msl, stream.tokens - 1 - places)
    first, last = places + 1, np.minimum(places + 1 + msl, stream.tokens)
    return last - first - (masked_before(last) - masked_before(first))


def pieces_of(
    stream: Stream, places: Numbers, inputs: Numbers
) -> tuple[dict[str, Numbers], pa.Table]:
    """Return the document pieces of windows of a stream, and the documents that they are of."""
    low, high = int(places[0]), int(places[-1] + inputs[-1])
    documents = stream.documents(low, high)
    starts = documents["first"].to_numpy()
    begins = np.unique(np.concatenate([starts[(starts >= low) & (starts < high)], places]))
    row = np.searchsorted(places, begins, side="right") - 1
    ends = places[row] + inputs[row]
    stops = np.minimum(np.append(begins[1:], high), ends)
    inside = begins < ends
    begins, stops, row = begins[inside], stops[inside], row[inside]
    owner = np.searchsorted(starts, begins, side="right") - 1
    pieces = {
        "row": row,
        "start": begins - places[row],
        "stop": stops - places[row],
        "offset": begins - starts[owner],
    }
    return pieces, documents.take(owner)


def scattered_ids(stream: Stream, starts: Numbers, size: int, fill: int) -> Ids:
    """Return the ids [start, start + size) of a stream for starts in any order: (n, size).

    fill: what stands past the end of the stream.
    """
    wide = any(block.wide for block in stream.blocks)
    out = np.full((len(starts), size), fill, np.uint32 if wide else np.uint16)
    order = np.argsort(starts, kind="stable")
    starts = starts[order]
    ends = np.minimum(starts + size, stream.tokens)
    first = np.searchsorted(stream.starts, starts, side="right") - 1
    last = np.searchsorted(stream.starts, ends, side="left")
    for place in _covered(first, last, len(stream.blocks)).tolist():
        base, stop = stream.starts[place : place + 2].tolist()
        some = slice(
            int(np.searchsorted(starts, base - size, side="right")),
            int(np.searchsorted(starts, stop, side="left")),
        )
        low = (starts[some].clip(min=base) - base) // frames.FRAME
        high = -((base - ends[some].clip(max=stop)) // frames.FRAME)
        wanted = _covered(low, high, -(-(stop - base) // frames.FRAME))
        with opened(stream.blocks[place]) as block:
            for frame, ids in zip(wanted.tolist(), block.frames(wanted), strict=True):
                _put(out, order, starts, base + frame * frames.FRAME, ids)
    return out


def _covered(first: Numbers, last: Numbers, count: int) -> Numbers:
    """Return which of `count` numbers are in one of the ranges [first, last).

    >>> _covered(np.array([0, 0, 4]), np.array([2, 1, 5]), 6).tolist()
    [0, 1, 4]
    """
    edges = np.zeros(count + 1, np.int64)
    np.add.at(edges, first, 1)
    np.add.at(edges, last, -1)
    return np.flatnonzero(np.cumsum(edges)[:count])


def _put(out: Ids, order: Numbers, starts: Numbers, low: int, ids: Ids) -> None:
    """Put the ids that begin at a position where they belong in windows that begin at `starts`.

    order: the place of each window in `out`, by their ascending starts.
    """
    size, high = out.shape[1], low + len(ids)
    first, inside = np.searchsorted(starts, (low - size + 1, low)).tolist()
    whole = max(inside, int(np.searchsorted(starts, high - size, side="right")))
    last = int(np.searchsorted(starts, high))
    if whole > inside:
        windows = sliding_window_view(ids, size)
        out[order[inside:whole]] = windows[starts[inside:whole] - low]
    for row in (*range(first, inside), *range(whole, last)):
        start = int(starts[row])
        begin, end = max(start, low), min(start + size, high)
        out[order[row], begin - start : end - start] = ids[begin - low : end - low]


def rows_of(ids: Ids, sizes: Numbers) -> Iterator[shards.Rows]:
    """Yield blocks of rows from the ids of each and the one behind it: (n, msl + 1).

    sizes: how many of them are of the stream; what is filled is neither input nor label.
    """
    msl = ids.shape[1] - 1
    step = shards.block_rows(msl)
    for first in range(0, len(ids), step):
        some = ids[first : first + step]
        out = np.empty((len(some), shards.CHANNELS, msl), dtype=np.int32)
        out[:, 0], out[:, 2] = some[:, :-1], some[:, 1:]
        out[:, 1] = np.arange(1, msl + 1) < sizes[first : first + step, None]
        yield out
