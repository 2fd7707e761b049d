"""Rows of fitted groups: which there are, and their ids, masks, labels and spans.

The label of a place is the next id of the same document, also where that lies in another row. A
document's last id has none (mask 0), or with `loss_across` the first id of the piece behind it in
the row. `next_fit` gives Model Zoo's rows: a row's pieces joined, all but the last id as inputs,
all but the first as labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.prep.packing.fits import Fit, best_fit, next_fit
from crystalmix.prep.packing.pieces import Numbers, Pieces, capacity, kept, of_group
from crystalmix.prep.rows import shards
from crystalmix.prep.rows.pack import Keeper, Packed, PackSettings, Shape
from crystalmix.prep.rows.placed_rows import Owners, unlearnt
from crystalmix.prep.rows.token_blocks import Stream


@dataclass(frozen=True)
class Counts:
    """Counts of fitted groups.

    documents: those that begin in them. cut: of these the longer ones than a row, which are in
    several, or shortened or left out. stream_cut: those that a stream's rows would cut. pieces,
    shortest: how many, and tokens of the smallest.
    """

    rows: tuple[int, ...]  # of each group
    documents: int
    cut: int
    stream_cut: int
    pieces: int
    shortest: int | None


@dataclass(frozen=True)
class Group:
    """One group: its pieces in the order of the stream, and where each goes."""

    documents: pa.Table  # those that touch it, as of `Stream.documents`
    pieces: Pieces
    fit: Fit

    @cached_property
    def places(self) -> Numbers:
        """The position in the stream of each piece's first token."""
        first = self.documents["first"].to_numpy()
        return first[self.pieces.document] + self.pieces.offset


def fitted(
    stream: Stream, bounds: Sequence[int], settings: PackSettings
) -> Iterator[tuple[tuple[int, int], Group]]:
    """Yield the groups between bounds (`pieces.groups`), each with its own."""
    if bounds[0] == bounds[-1]:
        return
    documents = stream.documents(bounds[0], bounds[-1])
    first, tokens = (documents[name].to_numpy() for name in ("first", "tokens"))
    ends = first + tokens
    way = next_fit if settings.pack == "next_fit" else best_fit
    for start, stop in pairwise(bounds):
        low = int(np.searchsorted(ends, start, side="right"))
        high = int(np.searchsorted(first, stop))
        here = slice(low, high)
        cut = of_group(first[here], tokens[here], (start, stop), settings)
        fit = way(cut.size, settings.msl)
        yield (start, stop), Group(documents.slice(low, high - low), cut, fit)


def count(stream: Stream, bounds: Sequence[int], settings: PackSettings) -> Counts:
    """Count the rows of groups, and what their documents come to."""
    rows: list[int] = []
    documents = cut = stream_cut = pieces = 0
    shortest: list[int] = []
    for (start, stop), group in fitted(stream, bounds, settings):
        rows.append(group.fit.rows)
        pieces += len(group.pieces)
        shortest += [int(group.pieces.size.min())] if len(group.pieces) else []
        first, tokens = (group.documents[name].to_numpy() for name in ("first", "tokens"))
        own = (first >= start) & (first < stop)
        first, tokens = first[own], tokens[own]
        documents += len(first)
        cut += int((tokens > capacity(settings)).sum())
        last = first + tokens - 1
        stream_cut += int((first // settings.msl != last // settings.msl).sum())
    return Counts(tuple(rows), documents, cut, stream_cut, pieces, min(shortest, default=None))


def pack(
    stream: Stream, bounds: Sequence[int], rows: tuple[int, int], shape: Shape, out: Path
) -> Packed:
    """Write the rows [first, last) of groups, counted from the first group's, as one shard."""
    keeper, sides = Keeper(shape, out), _Sides([], [])
    shard = keeper.keep(rows[1] - rows[0], _blocks(stream, bounds, rows, shape, sides))
    owners = Owners.joined(sides.owners)
    names = sides.pieces[0]
    pieces = {name: np.concatenate([part[name] for part in sides.pieces]) for name in names}
    return keeper.packed(shard, owners, pieces, turned=stream.has_turns)


@dataclass(frozen=True)
class _Sides:
    """The pieces of a shard's rows, group by group, and the document of each."""

    owners: list[Owners]
    pieces: list[dict[str, Numbers]]


def _blocks(
    stream: Stream, bounds: Sequence[int], rows: tuple[int, int], shape: Shape, sides: _Sides
) -> Iterator[shards.Rows]:
    """Yield the rows [first, last) of groups, some at a time; add their pieces to `sides`."""
    settings = shape.settings
    before, size = 0, shards.block_rows(settings.msl)
    for _, group in fitted(stream, bounds, settings):
        low, high = max(0, rows[0] - before), min(group.fit.rows, rows[1] - before)
        if low < high:
            maker = _Maker(stream, group, settings, shape.pad)
            for first in range(low, high, size):
                yield maker.rows(first, min(first + size, high))
            owners, pieces = _pieces(group, low, high, before - rows[0], settings)
            sides.owners.append(owners)
            sides.pieces.append(pieces)
        before += group.fit.rows


def _pieces(
    group: Group, first: int, last: int, shift: int, settings: PackSettings
) -> tuple[Owners, dict[str, Numbers]]:
    """Return the document of each piece in a group's rows [first, last), and the pieces.

    shift: what the numbers of rows are raised by. step: how far behind a piece its row's last label
    is in the stream.
    """
    low, high = np.searchsorted(group.fit.row, [first, last])
    here = slice(int(low), int(high))
    piece, row, start = (x[here] for x in (group.fit.piece, group.fit.row, group.fit.start))
    size, step = group.pieces.size[piece], np.zeros(len(piece), np.int64)
    if settings.pack == "next_fit":  # the last id of a row is a label only
        last_ones = np.append(row[1:] != row[:-1], [True])
        size = size - last_ones
        label = (group.places[piece] + size + group.pieces.skipped[piece])[last_ones]
        owns = np.flatnonzero(last_ones) - (size[last_ones] == 0)
        same = (owns >= 0) & (row[owns] == row[last_ones])  # else the row holds but that label
        step[owns[same]] = label[same] - (group.places[piece] + size)[owns[same]]
    held = size > 0
    piece, row, start, size, step = (x[held] for x in (piece, row, start, size, step))
    offset = group.pieces.offset[piece]
    places = {"row": row + shift, "start": start, "stop": start + size, "offset": offset}
    return Owners(group.documents, group.pieces.document[piece]), {**places, "step": step}


class _Maker:
    """Makes the rows of one group, whose ids it holds."""

    def __init__(self, stream: Stream, group: Group, settings: PackSettings, pad: int) -> None:
        self.group, self.settings, self.pad = group, settings, pad
        pieces = group.pieces
        runs, self.at = _runs(group.places, pieces.size + pieces.skipped, stream.tokens)
        self.ids = np.concatenate([stream.slice(*run) for run in runs])
        tokens = kept(group.documents["tokens"].to_numpy(), settings)[pieces.document]
        self.goes_on = pieces.offset + pieces.size < tokens  # (pieces,)
        self.learnt: NDArray[np.int32] | None = None
        if len(edges := unlearnt(group.documents)):
            positions = np.concatenate([np.arange(*run) for run in runs])
            odd = np.searchsorted(edges, positions, side="right") % 2
            self.learnt = (1 - odd).astype(np.int32)

    def rows(self, first: int, last: int) -> shards.Rows:
        """Return rows [first, last): (n, 3, msl) int32."""
        msl, placed = self.settings.msl, self._placed(first, last)
        used = np.bincount(placed.row, placed.size, last - first).astype(np.int64)
        filled = np.arange(msl + 1) < used[:, None]
        joined = np.where(filled, placed.joined(self.ids), self.pad)
        out = np.empty((last - first, shards.CHANNELS, msl), np.int32)
        out[:, 0], out[:, 1], out[:, 2] = joined[:, :-1], filled[:, 1:], joined[:, 1:]
        if self.settings.pack == "next_fit":
            short = np.flatnonzero(used <= msl)  # the last id, which is a label only
            out[short, 0, used[short] - 1] = self.pad
        else:
            self._label_ends(out, placed)
        if self.learnt is not None:
            out[:, 1] &= self._flags(self.learnt, placed)
        return out

    def _placed(self, first: int, last: int) -> "_Placed":
        fit, pieces = self.group.fit, self.group.pieces
        here = slice(*np.searchsorted(fit.row, [first, last]).tolist())
        piece = fit.piece[here]
        return _Placed(
            row=fit.row[here] - first,
            start=fit.start[here],
            source=self.at[piece],
            size=pieces.size[piece],
            skipped=pieces.skipped[piece],
            goes_on=self.goes_on[piece],
            shape=(last - first, self.settings.msl + 1),
        )

    def _label_ends(self, out: shards.Rows, placed: "_Placed") -> None:
        """Give the last id of each piece its label."""
        row, place = placed.ends
        on, off = placed.goes_on, ~placed.goes_on
        out[row[on], 1, place[on]] = 1
        out[row[on], 2, place[on]] = self.ids[placed.behind[on]]
        if not self.settings.loss_across:
            out[row[off], 1, place[off]] = 0
            out[row[off], 2, place[off]] = self.pad

    def _flags(self, learnt: NDArray[np.int32], placed: "_Placed") -> NDArray[np.int32]:
        """Return 1 where a place's label counts, 0 where it does not: (n, msl)."""
        flags = placed.joined(learnt)[:, 1:]
        if self.settings.pack != "next_fit":
            row, place = placed.ends
            on = placed.goes_on
            flags[row[on], place[on]] = learnt[placed.behind[on]]
        return flags


@dataclass(frozen=True)
class _Placed:
    """Pieces of some rows: (pieces,) each; shape: of those rows with one place more.

    source: where a piece begins among the ids read. goes_on: whether its document has more.
    """

    row: Numbers
    start: Numbers
    source: Numbers
    size: Numbers
    skipped: Numbers
    goes_on: NDArray[np.bool_]
    shape: tuple[int, int]

    @property
    def ends(self) -> tuple[Numbers, Numbers]:
        """The row and place of each piece's last id."""
        return self.row, self.start + self.size - 1

    @property
    def behind(self) -> Numbers:
        """Where among the ids read the one behind each piece is."""
        return self.source + self.size

    def joined(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """Copy the pieces' values to their places, zeros elsewhere."""
        out = np.zeros(self.shape, np.int32)
        flat = out.reshape(-1)
        at = (self.row * self.shape[1] + self.start).tolist()
        for to, first, size in zip(at, self.source.tolist(), self.size.tolist(), strict=True):
            flat[to : to + size] = values[first : first + size]
        if self.skipped.any():  # EOS in the place of a last id
            out[self.ends] = values[self.behind - 1 + self.skipped]
        return out


def _runs(places: Numbers, sizes: Numbers, tokens: int) -> tuple[list[tuple[int, int]], Numbers]:
    """Return the runs of a stream that hold pieces, and where among their ids each piece begins.

    A run reaches one token further than its last piece, where the stream of `tokens` does.
    """
    ends = places + sizes
    breaks = np.append([True], places[1:] != ends[:-1])
    first, last = places[breaks], ends[np.append(breaks[1:], [True])]
    last = np.minimum(last + 1, tokens)
    run = np.cumsum(breaks) - 1
    base = np.cumsum(last - first) - (last - first)
    pairs = list(zip(first.tolist(), last.tolist(), strict=True))
    return pairs, places - first[run] + base[run]
