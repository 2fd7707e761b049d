"""Packing: a stream of documents' tokens, concatenated and cut to rows of msl tokens.

Row r holds the tokens [r * msl, (r + 1) * msl) of the stream as inputs and the tokens one further
as labels, so its last label is the first input of row r + 1; no padding between documents and no
attention boundary (the packing of Cerebras Model Zoo's LMData, `pack_sequences`). With `tail:
drop` the last row must have all its labels and the rest is dropped and counted, as there; with
`tail: keep` (default) a last incomplete row is padded, the mask 0 where there is no label.

`cerebras` packs as Model Zoo 2.0.3 did, bit for bit: texts in pieces, a stream for each process,
its file names (`prep/crystalcoder/lmdata.py`). Without its `join` a row is a window of one
document: its tokens [k * msl, (k + 1) * msl] (msl inputs, each with its label); a shorter window is
padded with mask 0, one of fewer than `min_tokens` tokens left out.

Ids of a document before its `loss_from`, and those in its `masked` runs, are no labels: the mask is
0 where they would be predicted. Of conversations (documents with `turns`) a row without any label
is left out, and a side file beside the shard says which turn each piece of a row is of. With
`loss_across: false` a document's first id is no label.

`pack: best_fit` and `next_fit` keep documents whole where they fit: `prep/packing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from crystalmix.prep.runtime.constraints import AtLeastOne, enforce
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Content, Json, Strict, frozen

with imported_later(__name__):
    import numpy as np

    from crystalmix.prep.rows import placed_rows, shards, spans, token_blocks, turns

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    from crystalmix.prep.rows.placed_rows import Owners
    from crystalmix.prep.rows.token_blocks import Encoded, Stream

VERSION = 1
BLOCK_ROWS = 256
HELD_TOKENS = 1 << 20  # of a stream, that are read at once
LONGEST_ROW = 1 << 24  # tokens; HDF5 takes chunks below 4 GB
MOST_ROWS = 1 << 31  # of a shard
LARGEST_GROUP = 1 << 28  # tokens; a worker holds a group's ids, 4 bytes each
LATER = {"window": "shared"}  # keys that receipts of older builds do not have, and their defaults
LATER_OF_STREAMS = {"pack": "stream", "loss_across": True, "too_long": "split"}
OF_FITS = ("group_tokens", "too_long")  # keys without a meaning where rows run on


@frozen
class CerebrasSettings(Strict):
    """Settings of packing as Model Zoo 2.0.3 does it; the defaults are CrystalCoder's.

    pieces: characters of a piece (`split_text_to_tokenize`), None for whole texts. piece_bos: a BOS
    before every piece (`remove_bos_in_chunks` off). processes: each packs a contiguous slice of the
    files and drops its own tail. join: rows run on over documents (`pack_sequences`); else each
    document is cut on its own and padded. min_tokens: a shorter cut is left out (without join).
    """

    pieces: AtLeastOne | None = 2000
    piece_bos: bool = False
    processes: AtLeastOne = 1
    join: bool = True
    min_tokens: AtLeastOne = 6

    __post_init__ = enforce


@frozen
class PackSettings(Strict):
    """Length of a row in tokens, control tokens around each document, and which share a row.

    cerebras: pack as Model Zoo did; `tail` is `drop` then. window: whether a row's last label is
    the first input of the next row too (shared), or each row has msl + 1 tokens of its own (apart,
    as CrystalChat's rows). pack: rows run on over documents (`stream`), or documents are kept whole
    where they fit, longest first: each put where the least room is left (`best_fit`), or as Model
    Zoo's VSL does (`next_fit`). group_tokens: documents in so many tokens are fitted together.
    too_long: documents over a row are cut into pieces, lose what does not fit, or are left out;
    split_turns cuts conversations at ends of turns, the system text before each piece.
    documents: attention runs over the whole row, or is masked between documents, whose positions
    begin at 0. loss_across: whether the first id of a document is predicted from the one before it
    (default: not with best_fit).
    """

    msl: Annotated[int, Field(gt=0, le=LONGEST_ROW)] = 2048
    bos: bool = True
    eos: bool = True
    tail: Literal["keep", "drop"] = "keep"
    rows_per_shard: Annotated[int, Field(gt=0, le=MOST_ROWS)] = 4096
    cerebras: CerebrasSettings | None = None
    window: Literal["shared", "apart"] = "shared"
    pack: Literal["stream", "best_fit", "next_fit"] = "stream"
    group_tokens: Annotated[int, Field(gt=0, le=LARGEST_GROUP)] = 1_000_000
    too_long: Literal["split", "split_turns", "truncate", "drop"] = "split"
    documents: Literal["open", "masked"] = "open"
    loss_across: bool | None = None

    def __post_init__(self) -> None:
        enforce(self)
        if self.cerebras is not None:
            if self.window == "apart":
                raise ValueError("window: apart can't go with cerebras; drop one of the two")
            object.__setattr__(self, "tail", "drop")  # there is nothing else in that dialect
        if self.loss_across is None:
            object.__setattr__(self, "loss_across", self.pack != "best_fit")
        self._check_fit()

    def _check_fit(self) -> None:
        """Refuse settings of documents that don't go together."""
        if self.cerebras is not None:
            own = {"pack": "stream", "documents": "open", "loss_across": True}
            for name, value in own.items():
                if getattr(self, name) != value:
                    raise ValueError(f"{name}: can't go with cerebras; drop one of the two")
        if self.pack == "stream" and self.too_long not in ("split", "split_turns"):
            raise ValueError(
                f"too_long: {self.too_long} has no meaning in a stream; set pack: best_fit"
            )
        if self.pack != "stream":
            for name, usual in (("tail", "keep"), ("window", "shared")):
                if (value := getattr(self, name)) != usual:
                    raise ValueError(f"{name}: {value} can't go with pack: {self.pack}")
        if self.pack == "next_fit" and (self.too_long != "split" or not self.loss_across):
            name = "too_long" if self.too_long != "split" else "loss_across"
            raise ValueError(f"{name}: is fixed with next_fit, which packs as Model Zoo does")

    def content(self) -> Content:
        """Return the settings as JSON; keys that came later are left out at their defaults.

        So is `documents`, which changes no row: manifests have it.
        """
        later, unused = LATER, ["documents"]
        if self.pack == "stream":
            later, unused = {**LATER, **LATER_OF_STREAMS}, ["documents", "group_tokens"]
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in unused and (key not in later or value != later[key])
        }

    def sharing(self) -> Json | None:
        """Return as JSON how documents share rows, None where they run on as in a stream."""
        names = ["pack", "documents", "loss_across"]
        names += OF_FITS if self.pack != "stream" else ()
        value = {name: getattr(self, name) for name in names}
        usual = {"pack": "stream", "documents": "open", "loss_across": True}
        return None if value == usual else value

    @property
    def stride(self) -> int:
        """Tokens from the first input of a row to that of the next."""
        return self.msl + (self.window == "apart")

    @property
    def joined(self) -> bool:
        """Whether rows run on over the ends of documents."""
        return self.cerebras is None or self.cerebras.join

    @property
    def plain(self) -> bool:
        """Whether a row is the next msl tokens of the stream, the mask 0 past its end alone."""
        usual = self.pack == "stream" and self.window == "shared" and bool(self.loss_across)
        return self.joined and usual


@frozen
class Controls:
    """The ids the packer adds: BOS and EOS (None: not added), and what fills a last row."""

    bos: int | None
    eos: int | None
    pad: int

    @cached_property
    def around(self) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """The ids before and behind a document, each one id or none."""
        before, behind = ([] if id_ is None else [id_] for id_ in (self.bos, self.eos))
        return np.array(before, np.uint32), np.array(behind, np.uint32)


@frozen
class Packed:
    """One packed shard and the account of its inputs, in tokens; sides: files beside it."""

    shard: shards.Shard
    sides: tuple[str, ...]
    tokens: int  # inputs that are no padding
    padding: int
    controls: int  # inputs that are control ids


def frame(document: Encoded, controls: Controls) -> Encoded:
    """Put the control ids before and behind a document's ids."""
    first, last = map(len, controls.around)
    return token_blocks.Encoded(
        document.number,
        document.ids,
        document.controls + first + last,
        document.fim,
        document.cuts,
        document.loss_from and document.loss_from + first,
        controls.around,
    )


def name(settings: PackSettings, number: int, process: int) -> str:
    """Return the file name of a shard: `data-00007.h5`, or Model Zoo's `examples_7_0.h5`."""
    if settings.cerebras is None:
        return shards.name(number)
    return f"examples_{number}_{process}.h5"


def number(name: str) -> int:
    """Return the number of a shard from its file name: 7 for both kinds of name."""
    return int(re.findall(r"\d+", name)[0])


def process(name: str) -> int:
    """Return the process, and so the stream, of a shard from its file name.

    >>> process("data-00007.h5"), process("examples_7_2.h5")
    (0, 2)
    """
    return int(re.findall(r"\d+", name)[1]) if name.startswith("examples_") else 0


def rows_of(stream: Stream, settings: PackSettings) -> int:
    """Return how many rows a stream gives."""
    if not settings.joined:
        return sum(len(_windows(lengths, settings).size) for lengths in stream.lengths)
    return len(kept_rows(stream, settings))


def all_rows(tokens: int, settings: PackSettings) -> int:
    """Return how many rows so many tokens give where rows run on over documents."""
    if settings.window == "apart":
        whole, rest = divmod(tokens, settings.stride)
        return whole + (rest > 1 and settings.tail == "keep")
    if settings.tail == "drop":
        return max(0, (tokens - 1) // settings.msl)
    return -(-tokens // settings.msl)


def kept_rows(stream: Stream, settings: PackSettings) -> Numbers:
    """Return the numbers of the rows to write: all, but of conversations those with a label."""
    rows = np.arange(all_rows(stream.tokens, settings))
    if not len(rows) or not stream.has_turns:
        return rows
    across = bool(settings.loss_across)
    labels = placed_rows.labels_of(stream, rows * settings.stride, settings.msl, across=across)
    return rows[labels > 0]


def left_out(stream: Stream, settings: PackSettings) -> dict[str, int]:
    """Return the tokens that are no inputs though no tail, by reason; {} where there are none.

    no_label: of conversations' rows without a label. label_only: last labels of rows apart.
    """
    chosen = settings.window == "apart" or stream.has_turns
    if not settings.joined or settings.pack != "stream" or not chosen:
        return {}
    kept = kept_rows(stream, settings)
    others = np.setdiff1d(np.arange(all_rows(stream.tokens, settings)), kept)
    sizes = np.minimum(settings.stride, stream.tokens - others * settings.stride)
    counts = {"no_label": int(sizes.sum())}
    counts["label_only"] = len(kept) if settings.window == "apart" else 0
    return {reason: count for reason, count in counts.items() if count}


def ranges_of(stream: Stream, settings: PackSettings) -> list[tuple[int, int]]:
    """Return the rows [first, last) among which those of each shard are."""
    if not settings.joined:
        return shards_of(rows_of(stream, settings), settings)
    kept = kept_rows(stream, settings)
    parts = shards_of(len(kept), settings)
    return [(int(kept[first]), int(kept[last - 1]) + 1) for first, last in parts]


def shards_of(rows: int, settings: PackSettings) -> list[tuple[int, int]]:
    """Return the rows [first, last) of each shard."""
    size = settings.rows_per_shard
    return [(first, min(first + size, rows)) for first in range(0, rows, size)]


def part(
    stream: Stream, rows: tuple[int, int], settings: PackSettings
) -> tuple[Stream, tuple[int, int]]:
    """Return the part of a stream that the rows [first, last) are made of, and their place in it.

    Rows that run on over documents keep their numbers; windows are counted from the part's first.
    """
    first, last = rows
    if settings.joined:
        # The last label of a shard may be the first token of the next, hence one token more.
        return stream.part(first * settings.stride, last * settings.stride + 1), rows
    counts = [len(_windows(lengths, settings).size) for lengths in stream.lengths]
    ends = np.cumsum(counts)  # (blocks,)
    low = int(np.searchsorted(ends, first, side="right"))
    high = int(np.searchsorted(ends, last, side="left")) + 1
    before = int(ends[low]) - counts[low]
    touched = token_blocks.Stream(stream.blocks[low:high], int(stream.starts[low]))
    return touched, (first - before, last - before)


@frozen
class Shape:
    """What rows are made of, and how they are kept.

    pad: the id that fills rows. controls: the ids that no text gives. written: whether rows are
    written, else they are counted, and made again from their tokens where they are wanted: plain
    windows of a stream by a formula, all others (`layout`) by what lies beside their spans.
    """

    settings: PackSettings
    pad: int
    controls: tuple[int, ...]
    written: bool = True
    layout: bool = False


class Keeper:
    """Writes or counts the rows of one shard, and what lies beside them."""

    def __init__(self, shape: Shape, out: Path) -> None:
        self.shape, self.out = shape, out
        # whether an id is one of them; the last entry is for all ids above
        self.is_control = np.zeros(max(shape.controls, default=-1) + 2, dtype=np.bool_)
        self.is_control[list(shape.controls)] = True
        self.count = 0  # control ids among inputs
        self.layout = placed_rows.LayoutWriter(shape.pad) if shape.layout else None

    def keep(self, rows: int, blocks: Iterable[shards.Rows]) -> shards.Shard:
        """Write or count rows."""
        make = shards.write if self.shape.written else shards.count
        passing = blocks if self.layout is None else self.layout.over(blocks)
        return make(self.out, rows, self._counted(passing))

    def _counted(self, blocks: Iterable[shards.Rows]) -> Iterator[shards.Rows]:
        for block in blocks:
            self.count += int(np.count_nonzero(self.is_control.take(block[:, 0], mode="clip")))
            yield block

    def packed(
        self, shard: shards.Shard, owners: Owners, pieces: dict[str, Numbers], *, turned: bool
    ) -> Packed:
        """Write spans and what else lies beside a shard, and return its account.

        owners, pieces: as of `placed_rows.span_table`. turned: whether documents are conversations.
        """
        table, sides = placed_rows.span_table(owners, pieces), ["spans"]
        spans.write(spans.path_of(self.out), table)
        if turned:
            spans.write(spans.path_of(self.out, turns.KIND), turns.cut(table, owners))
            sides.append(turns.KIND)
        if self.layout is not None:
            places = owners.column("first").to_numpy() + pieces["offset"]
            self.layout.write(spans.path_of(self.out, placed_rows.LAYOUT), pieces, places)
            sides.append(placed_rows.LAYOUT)
        used = int((pieces["stop"] - pieces["start"]).sum())
        padding = shard.rows * shard.msl - used
        controls = self.count - (padding if self.shape.pad in self.shape.controls else 0)
        return Packed(shard, tuple(sides), used, padding, controls)


def pack(stream: Stream, rows: tuple[int, int], shape: Shape, out: Path) -> Packed:
    """Write the rows [first, last) of a stream, of conversations those that have a label."""
    settings, pad, keeper = shape.settings, shape.pad, Keeper(shape, out)
    if settings.joined and (settings.window == "apart" or stream.has_turns):
        return _pack_chosen(stream, rows, keeper)
    first, last = rows
    if settings.joined:
        start, stop = first * settings.msl, min(last * settings.msl, stream.tokens)
        documents = stream.documents(start, min(stop + 1, stream.tokens))  # and of the last label
        owners, pieces = _pieces(documents, start, stop, settings.msl)
        places = np.arange(start, stop, settings.msl)
        across = bool(settings.loss_across)
        blocks = placed_rows.masked(
            _rows(stream, rows, settings.msl, pad), documents, places, across=across
        )
    else:
        lengths = np.concatenate(stream.lengths)
        chosen = _windows(lengths, settings)[first:last]
        owners, pieces = _window_pieces(stream, chosen)
        starts = int(stream.starts[0]) + (np.cumsum(lengths) - lengths)[chosen.document]
        places = starts + chosen.offset
        sizes = chosen.size
        blocks = placed_rows.window_rows(stream, places, sizes, sizes - 1, settings.msl, pad)
        blocks = placed_rows.masked(blocks, owners.documents, places)
    return keeper.packed(keeper.keep(last - first, blocks), owners, pieces, turned=False)


def _pack_chosen(stream: Stream, rows: tuple[int, int], keeper: Keeper) -> Packed:
    """Write those rows of a range that are kept: windows of their own, or with a label."""
    settings = keeper.shape.settings
    msl, apart, across = settings.msl, settings.window == "apart", bool(settings.loss_across)
    places = np.arange(*rows) * settings.stride
    if stream.has_turns:
        places = places[placed_rows.labels_of(stream, places, msl, across=across) > 0]
    sizes = np.minimum(msl + 1, stream.tokens - places)  # labels included
    inputs = sizes - 1 if apart else np.minimum(msl, stream.tokens - places)
    owners, pieces = placed_rows.pieces_of(stream, places, inputs)
    windowed = placed_rows.window_rows(stream, places, sizes, inputs, msl, keeper.shape.pad)
    documents = stream.documents(int(places.min()), stream.tokens)
    shard = keeper.keep(len(places), placed_rows.masked(windowed, documents, places, across=across))
    return keeper.packed(shard, owners, pieces, turned=stream.has_turns)


def _rows(stream: Stream, rows: tuple[int, int], msl: int, pad: int) -> Iterator[shards.Rows]:
    held = max(BLOCK_ROWS, HELD_TOKENS // msl)  # frames at the ends of what is read are read twice
    for low in range(rows[0], rows[1], held):
        high = min(low + held, rows[1])
        tokens = stream.slice(low * msl, min(high * msl + 1, stream.tokens))
        for first in range(low, high, BLOCK_ROWS):
            count, at = min(BLOCK_ROWS, high - first), (first - low) * msl
            yield cut(tokens[at : at + count * msl + 1], count, msl, pad)


def cut(tokens: NDArray[np.int32], count: int, msl: int, pad: int) -> shards.Rows:
    """Cut consecutive tokens to `count` rows: (count, 3, msl) int32.

    tokens: count * msl + 1 of them, or fewer where the stream ends: then the last row is padded.

    >>> cut(np.array([5, 6, 7, 8, 9], np.int32), 2, 3, 0).tolist()
    [[[5, 6, 7], [1, 1, 1], [6, 7, 8]], [[8, 9, 0], [1, 0, 0], [9, 0, 0]]]
    """
    size = count * msl
    out = np.empty((count, shards.CHANNELS, msl), dtype=np.int32)
    out[:, 1] = 1
    if (missing := size + 1 - len(tokens)) > 0:
        out[:, 1] = (np.arange(1, size + 1) < len(tokens)).reshape(count, msl)
        tokens = np.concatenate([tokens, np.full(missing, pad, np.int32)])
    out[:, 0] = tokens[:-1].reshape(count, msl)
    out[:, 2] = tokens[1:].reshape(count, msl)
    return out


@frozen
class Windows:
    """Windows of a stream: the document of each (its place), where it begins there, its size.

    All are (windows,) int64; size counts tokens, one more than the row's inputs.
    """

    document: Numbers
    offset: Numbers
    size: Numbers

    def __getitem__(self, rows: slice) -> Windows:
        return Windows(self.document[rows], self.offset[rows], self.size[rows])


def windows(tokens: Numbers, msl: int, least: int) -> Windows:
    """Return the windows of documents of so many tokens, in order.

    >>> cuts = windows(np.array([3, 9, 5]), 4, 2)
    >>> cuts.document.tolist(), cuts.offset.tolist(), cuts.size.tolist()
    ([0, 1, 1, 2], [0, 0, 4, 0], [3, 5, 5, 5])
    """
    counts = -(-tokens // msl)
    document, place = placed_rows.expanded(counts)
    offset = place * msl
    size = np.minimum(tokens[document] - offset, msl + 1)
    kept = size >= max(2, least)
    return Windows(document[kept], offset[kept], size[kept])


def _windows(lengths: Numbers, settings: PackSettings) -> Windows:
    return windows(lengths, settings.msl, settings.cerebras.min_tokens if settings.cerebras else 0)


def _pieces(
    documents: pa.Table, start: int, stop: int, msl: int
) -> tuple[Owners, dict[str, Numbers]]:
    pieces = spans.cut(documents["first"].to_numpy(), start, stop, msl)
    return placed_rows.Owners(documents, pieces["document"]), pieces


def _window_pieces(stream: Stream, chosen: Windows) -> tuple[Owners, dict[str, Numbers]]:
    documents = stream.documents(int(stream.starts[0]), stream.tokens)
    rows = np.arange(len(chosen.size))
    places = {"row": rows, "start": rows * 0, "stop": chosen.size - 1, "offset": chosen.offset}
    return placed_rows.Owners(documents, chosen.document), places
