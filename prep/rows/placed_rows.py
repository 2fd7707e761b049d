"""Rows of a stream at given places: their ids, their masks, and the pieces that they hold.

What packing does once it knows where rows begin: gather windows of ids, set the mask 0 where a
label does not count for its document, count the labels that do, and name the document pieces.
Rows in any order are made from the frames of ids that hold them, each decoded once.

`data-00007.layout.parquet` lies beside the spans of rows that are laid out and are no plain windows
of the stream: what makes them again from their tokens. Of each piece it has its place in the
stream, its last label where that is not the id one further in the row (padding, or the id `step`
behind the piece's end in the stream), and where the mask changes. A row without pieces is masked.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.rows import shards, spans
from crystalmix.prep.rows.token_blocks import Stream, opened
from crystalmix.prep.runtime import frames
from crystalmix.prep.runtime.atomic_files import replacing

BLOCK_ROWS = 256
LAYOUT = "layout"  # the kind of the side file
SHIFTED, PADDED, PLACED = 0, 1, 2  # a piece's last label
LAYOUTS = pa.schema(
    [
        ("row", pa.int32()),  # row, start and stop as in the spans
        ("start", pa.int32()),
        ("stop", pa.int32()),
        ("place", pa.int64()),  # of the piece's first id in the stream
        ("label", pa.int8()),
        ("step", pa.int64()),
        ("masked", pa.list_(pa.int32())),  # where in the row the mask changes, 1 before the first
    ]
)
Numbers = NDArray[np.int64]
Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Owners:
    """The documents that pieces are of, each once: what is long in one is not there for each piece.

    documents: as of `Stream.documents`. numbers: (pieces,), of each piece its document's place.
    """

    documents: pa.Table
    numbers: Numbers

    def column(self, name: str) -> Any:  # noqa: ANN401  of any type
        """Return a column of the document of each piece."""
        return self.documents[name].take(pa.array(self.numbers, pa.int64())).combine_chunks()

    @classmethod
    def joined(cls, parts: Sequence["Owners"]) -> "Owners":
        """Return the owners of some pieces behind those of others."""
        before = np.cumsum([0, *(len(part.documents) for part in parts)])
        numbers = [part.numbers + shift for part, shift in zip(parts, before[:-1], strict=True)]
        documents = pa.concat_tables([part.documents for part in parts])
        return cls(documents, np.concatenate(numbers))


def expanded(counts: Numbers, first: Numbers | None = None) -> tuple[Numbers, Numbers]:
    """Return whose each of some numbers is, and the numbers: `counts` of each, from its first on.

    first: 0 by default.

    >>> [each.tolist() for each in expanded(np.array([1, 0, 2]), np.array([4, 7, 9]))]
    [[0, 2, 2], [4, 9, 10]]
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    return owner, number if first is None else number + first[owner]


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
    blocks: Iterable[shards.Rows], documents: pa.Table, places: Numbers, *, across: bool = True
) -> Iterator[shards.Rows]:
    """Yield blocks of rows, the mask 0 for labels that do not count for their document.

    documents: as of `Stream.documents`, those of all inputs and labels. places: (rows,), position
    of each row's first input in the stream. Where a row's mask is 1, its label is the id one
    further in the stream. across: whether a document's first id is a label.
    """
    edges, done = unlearnt(documents, across=across), 0
    for block in blocks:
        rows, _, msl = block.shape
        if len(edges):
            labels = places[done : done + rows, None] + np.arange(1, msl + 1)
            block[:, 1] &= np.searchsorted(edges, labels, side="right") % 2 == 0
        done += rows
        yield block


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
    edges = unlearnt(stream.documents(int(places.min()), stream.tokens), across=across)
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
) -> tuple[Owners, dict[str, Numbers]]:
    """Return the document pieces of windows of a stream, behind the documents that they are of."""
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
    return Owners(documents, owner), pieces


def scattered_ids(stream: Stream, starts: Numbers, size: int, fill: int) -> Ids:
    """Return the ids [start, start + size) of a stream for starts in any order: (n, size).

    fill: what stands past the end of the stream.
    """
    out = np.full((len(starts), size), fill, _dtype(stream))
    sizes = np.minimum(size, stream.tokens - starts)
    gather(stream, starts, sizes, np.arange(len(starts)) * size, out.reshape(-1))
    return out


def _dtype(*streams: Stream) -> type[np.integer]:
    wide = any(block.wide for stream in streams for block in stream.blocks)
    return np.uint32 if wide else np.uint16


def gather(stream: Stream, starts: Numbers, sizes: Numbers, places: Numbers, out: Ids) -> None:
    """Put the ids [start, start + size) of a stream at places of a flat array, in any order.

    Each frame of ids that holds some of them is decoded once.
    """
    if not len(starts):
        return
    stream = stream.part(int(starts.min()), int((starts + sizes).max()))
    edges, owner = _frames(stream)
    first = np.searchsorted(edges, starts, side="right") - 1
    counts = np.searchsorted(edges, starts + sizes, side="left") - first
    piece, frame = expanded(counts, first)
    order = np.argsort(frame, kind="stable")
    piece, frame = piece[order], frame[order]
    low = np.maximum(starts[piece], edges[frame])
    size = np.minimum(starts[piece] + sizes[piece], edges[frame + 1]) - low
    to, low = places[piece] + low - starts[piece], low - edges[frame]
    wanted, begins = np.unique(frame, return_index=True)
    ends = np.append(begins[1:], len(frame))
    for place in np.unique(owner[wanted]).tolist():
        here = np.flatnonzero(owner[wanted] == place)
        base = int(np.searchsorted(owner, place))
        with opened(stream.blocks[place]) as block:
            for i, ids in zip(here.tolist(), block.frames(wanted[here] - base), strict=True):
                some = slice(int(begins[i]), int(ends[i]))
                _put(out, to[some], ids, low[some], size[some])


def _frames(stream: Stream) -> tuple[Numbers, Numbers]:
    """Return where the frames of a stream begin, its end behind them, and the block of each."""
    counts = np.array([-(-block.tokens // frames.FRAME) for block in stream.blocks], np.int64)
    owner, number = expanded(counts)
    return np.append(stream.starts[owner] + number * frames.FRAME, stream.tokens), owner


def _put(out: Ids, to: Numbers, ids: Ids, low: Numbers, size: Numbers) -> None:
    """Copy runs of ids; single ones together."""
    single = size == 1
    out[to[single]] = ids[low[single]]
    several = ~single
    runs = zip(to[several].tolist(), low[several].tolist(), size[several].tolist(), strict=True)
    for place, first, count in runs:
        out[place : place + count] = ids[first : first + count]


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


def lines_of(column: NDArray[np.integer], rows: Numbers) -> tuple[Numbers, Numbers]:
    """Return the places of rows in an ascending column, in the order of rows, and whose each is.

    >>> lines_of(np.array([0, 0, 1, 3, 3]), np.array([3, 2, 0]))
    (array([3, 4, 0, 1]), array([0, 0, 2, 2]))
    """
    low = np.searchsorted(column, rows)
    owner, places = expanded(np.searchsorted(column, rows, side="right") - low, low)
    return places, owner


def layout_of(shard: Path) -> Path:
    """Return the layout of a shard that is laid out."""
    return spans.path_of(shard, LAYOUT)


class LayoutWriter:
    """Writer of a shard's layout, which follows from its rows as they pass and from its pieces."""

    def __init__(self, pad: int) -> None:
        self.pad, self.rows = pad, 0
        self.ends: list[Numbers] = []  # row and place of labels that are not the next id
        self.padded: list[NDArray[np.bool_]] = []  # whether such a label is padding
        self.turns: list[Numbers] = []  # row and place of changes of the mask

    def over(self, blocks: Iterable[shards.Rows]) -> Iterator[shards.Rows]:
        """Yield the rows unchanged."""
        for block in blocks:
            inputs, mask, labels = block[:, 0], block[:, 1], block[:, 2]
            other = np.empty(labels.shape, np.bool_)
            np.not_equal(labels[:, :-1], inputs[:, 1:], out=other[:, :-1])
            np.not_equal(labels[:, -1], self.pad, out=other[:, -1])
            row, at = np.nonzero(other)
            self.ends.append(np.stack([row + self.rows, at]))
            self.padded.append(labels[row, at] == self.pad)
            row, at = np.nonzero(np.diff(mask, axis=1, prepend=1))
            self.turns.append(np.stack([row + self.rows, at]))
            self.rows += len(block)
            yield block

    def write(self, path: Path, pieces: dict[str, Numbers], places: Numbers) -> None:
        """Write the layout of the rows that passed.

        pieces: row, start and stop of each in order, and `step` where a piece's last label does not
        come right behind it. places: of their first ids in the stream.
        """
        row, start, stop = (pieces[name] for name in ("row", "start", "stop"))
        width = int(stop.max()) + 1
        ends, turns = (np.concatenate(parts, axis=1) for parts in (self.ends, self.turns))
        width = max(width, int(ends[1].max(initial=0)) + 1, int(turns[1].max(initial=0)) + 1)
        piece = np.searchsorted(row * width + stop - 1, ends[0] * width + ends[1])
        owned = np.append(row, -1)[piece] == ends[0], np.append(stop, 0)[piece] - 1 == ends[1]
        if not (owned[0] & owned[1]).all():
            raise ValueError(f"{path}: has a label that is neither the next id nor a piece's last")
        label = np.zeros(len(row), np.int8)
        label[piece] = np.where(np.concatenate(self.padded), PADDED, PLACED)
        owner = np.searchsorted(row * width + start, turns[0] * width + turns[1], "right") - 1
        held = (owner >= 0) & (row[owner] == turns[0])
        if turns[1][~held].any():
            raise ValueError(f"{path}: has labels in a row that holds no document")
        owner, turns = owner[held], turns[:, held]  # rows without pieces are masked
        counts = np.bincount(owner, minlength=len(row))
        masked = pa.ListArray.from_arrays(
            pa.array(np.append(0, np.cumsum(counts)), pa.int32()), pa.array(turns[1], pa.int32())
        )
        columns: dict[str, Any] = {
            **{"row": row, "start": start, "stop": stop, "place": places, "label": label},
            "step": pieces.get("step", np.zeros(len(row), np.int64)),
            "masked": masked,
        }
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in LAYOUTS]
        plain = [field.name for field in LAYOUTS if field.type in (pa.int32(), pa.int64())]
        with replacing(path) as temporary:
            pq.write_table(
                pa.table(arrays, schema=LAYOUTS),
                temporary,
                compression="zstd",
                use_dictionary=False,
                column_encoding=dict.fromkeys(plain, "DELTA_BINARY_PACKED"),
                version="2.6",
            )


@dataclass(frozen=True)
class LaidPieces:
    """Pieces of rows that are to be made: columns of `LAYOUTS` as arrays, `row` among those rows.

    turns: the places of all rows, counted on, where the mask changes.
    """

    row: Numbers
    start: Numbers
    size: Numbers
    place: Numbers
    label: Numbers
    step: Numbers
    turns: Numbers

    @classmethod
    def read(cls, path: Path, rows: Numbers, out: Numbers, msl: int) -> "LaidPieces":
        """Read the pieces of some rows of a shard; out: the place of each among all to be made."""
        table = spans.read(path)
        taken, owner = lines_of(table["row"].to_numpy(), rows)
        row = out[owner]
        column: Any = table["masked"].combine_chunks()
        masked: Any = column.take(pa.array(taken, pa.int64()))
        turns = masked.flatten().to_numpy().astype(np.int64)
        turns += np.repeat(row, masked.value_lengths().to_numpy()) * msl
        turns = np.append(turns, np.delete(out, owner) * msl)  # of rows without a piece
        names = ("start", "stop", "place", "label", "step")
        start, stop, place, label, step = (
            table[name].to_numpy()[taken].astype(np.int64) for name in names
        )
        return cls(row, start, stop - start, place, label, step, turns)

    @classmethod
    def joined(cls, parts: Sequence["LaidPieces"]) -> "LaidPieces":
        """Put the pieces of several shards together."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class MadeRows:
    """Rows made again: ids (rows, msl); labels that are not the id one further, and turns.

    at: places of such labels, and turns: where the mask changes, both counted on over all rows,
    ascending.
    """

    ids: Ids
    at: Numbers
    labels: Ids
    turns: Numbers
    pad: int

    @classmethod
    def of(
        cls, rows: tuple[int, int], pad: int, streams: Sequence[Stream], parts: Sequence[LaidPieces]
    ) -> "MadeRows":
        """Make so many rows of msl from pieces of streams, each stream with its own.

        rows: how many, and msl.
        """
        out = np.full(rows, pad, _dtype(*streams))
        at, labels = [np.empty(0, np.int64)], [np.empty(0, out.dtype)]
        turns = [np.empty(0, np.int64)]
        for stream, laid in zip(streams, parts, strict=True):
            first = laid.row * rows[1] + laid.start
            gather(stream, laid.place, laid.size, first, out.reshape(-1))
            placed, padded = laid.label == PLACED, laid.label == PADDED
            behind = (laid.place + laid.size + laid.step)[placed]
            values = np.empty(len(behind), out.dtype)
            ones = np.ones(len(behind), np.int64)
            gather(stream, behind, ones, np.arange(len(behind)), values)
            at += [(first + laid.size - 1)[some] for some in (placed, padded)]
            labels += [values, np.full(int(padded.sum()), pad, out.dtype)]
            turns.append(laid.turns)
        places, every = np.concatenate(at), np.concatenate(labels)
        order = np.argsort(places, kind="stable")
        return cls(out, places[order], every[order], np.sort(np.concatenate(turns)), pad)

    def rows(self, first: int, last: int) -> Iterator[shards.Rows]:
        """Yield the rows [first, last) as blocks."""
        msl = self.ids.shape[1]
        step = shards.block_rows(msl)
        for low in range(first, last, step):
            some = self.ids[low : min(low + step, last)]
            out = np.empty((len(some), shards.CHANNELS, msl), dtype=np.int32)
            out[:, 0], out[:, 1] = some, 1
            labels = out[:, 2]
            labels[:, :-1], labels[:, -1] = some[:, 1:], self.pad
            base = low * msl
            own = slice(*np.searchsorted(self.at, [base, base + some.size]).tolist())
            places = self.at[own] - base
            labels[places // msl, places % msl] = self.labels[own]
            own = slice(*np.searchsorted(self.turns, [base, base + some.size]).tolist())
            if (turns := self.turns[own] - base).size:
                change = np.zeros(some.shape, np.int32)
                change[turns // msl, turns % msl] = 1
                out[:, 1] -= np.cumsum(change, axis=1, dtype=np.int32) % 2
            yield out


def span_table(owners: Owners, pieces: dict[str, Numbers]) -> pa.Table:
    """Return spans: pieces of rows, each with the document it is of.

    owners: the document of each piece. pieces: row, start, stop, offset.
    """
    columns: dict[str, Any] = {
        **{name: pieces[name] for name in ("row", "start", "stop", "offset")},
        **{name: owners.column(name) for name in ("document", "fim", "cut1", "cut2")},
        "source": owners.column("source").dictionary_encode(),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in spans.SPANS]
    return pa.table(arrays, schema=spans.SPANS)
