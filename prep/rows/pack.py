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

Of a document with `loss_from`, the ids before it are no labels: the mask is 0 where they would be
predicted.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.prep.rows import shards, spans
from crystalmix.prep.rows.token_blocks import Encoded, Stream

VERSION = 1
BLOCK_ROWS = 256
LONGEST_ROW = 1 << 24  # tokens; HDF5 takes chunks below 4 GB
MOST_ROWS = 1 << 31  # of a shard
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class CerebrasSettings:
    """Settings of packing as Model Zoo 2.0.3 does it; the defaults are CrystalCoder's.

    pieces: characters of a piece (`split_text_to_tokenize`), None for whole texts. piece_bos: a BOS
    before every piece (`remove_bos_in_chunks` off). processes: each packs a contiguous slice of the
    files and drops its own tail. join: rows run on over documents (`pack_sequences`); else each
    document is cut on its own and padded. min_tokens: a shorter cut is left out (without join).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    pieces: int | None = 2000
    piece_bos: bool = False
    processes: int = 1
    join: bool = True
    min_tokens: int = 6

    def __post_init__(self) -> None:
        for name in ("pieces", "processes", "min_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be positive, got {value}")


@dataclass(frozen=True)
class PackSettings:
    """Length of a row in tokens, control tokens around each document, and what ends the stream.

    cerebras: pack as Model Zoo did; `tail` is `drop` then.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    msl: int = 2048
    bos: bool = True
    eos: bool = True
    tail: Literal["keep", "drop"] = "keep"
    rows_per_shard: int = 4096
    cerebras: CerebrasSettings | None = None

    def __post_init__(self) -> None:
        for name, most in (("msl", LONGEST_ROW), ("rows_per_shard", MOST_ROWS)):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be positive, got {getattr(self, name)}")
            if getattr(self, name) > most:
                raise ValueError(f"{name}: must be at most {most}, got {getattr(self, name)}")
        if self.cerebras is not None:
            object.__setattr__(self, "tail", "drop")  # there is nothing else in that dialect

    @property
    def joined(self) -> bool:
        """Whether rows run on over the ends of documents."""
        return self.cerebras is None or self.cerebras.join


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Packed:
    """One packed shard and the account of its inputs, in tokens."""

    shard: shards.Shard
    tokens: int  # inputs that are no padding
    padding: int
    controls: int  # inputs that are control ids


def frame(document: Encoded, controls: Controls) -> Encoded:
    """Put the control ids before and behind a document's ids."""
    first, last = map(len, controls.around)
    return Encoded(
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


def rows_of(stream: Stream, settings: PackSettings) -> int:
    """Return how many rows a stream gives."""
    if not settings.joined:
        return sum(len(_windows(lengths, settings).size) for lengths in stream.lengths)
    if settings.tail == "drop":
        return max(0, (stream.tokens - 1) // settings.msl)
    return -(-stream.tokens // settings.msl)


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
        # The last label of a shard is the first token of the next, hence one token more.
        return stream.part(first * settings.msl, last * settings.msl + 1), rows
    counts = [len(_windows(lengths, settings).size) for lengths in stream.lengths]
    ends = np.cumsum(counts)  # (blocks,)
    low = int(np.searchsorted(ends, first, side="right"))
    high = int(np.searchsorted(ends, last, side="left")) + 1
    before = int(ends[low]) - counts[low]
    touched = Stream(stream.blocks[low:high], int(stream.starts[low]))
    return touched, (first - before, last - before)


def pack(
    stream: Stream,
    rows: tuple[int, int],
    settings: PackSettings,
    pad: int,
    controls: tuple[int, ...],
    out: Path,
) -> Packed:
    """Write the rows [first, last) of a stream as one shard with its spans."""
    first, last = rows
    counter = _ControlCounter(controls)
    if settings.joined:
        start, stop = first * settings.msl, min(last * settings.msl, stream.tokens)
        table, used = _spans(stream, start, stop, settings.msl), stop - start
        places = np.arange(start, stop, settings.msl)
        blocks = masked(_rows(stream, rows, settings.msl, pad), stream, places)
    else:
        lengths = np.concatenate(stream.lengths)
        chosen = _windows(lengths, settings)[first:last]
        table, used = _window_spans(stream, chosen), int((chosen.size - 1).sum())
        starts = int(stream.starts[0]) + (np.cumsum(lengths) - lengths)[chosen.document]
        places = starts + chosen.offset
        blocks = _window_rows(stream, places, chosen.size, settings.msl, pad)
        blocks = masked(blocks, stream, places)
    spans.write(spans.path_of(out), table)
    shard = shards.write(out, last - first, counter.over(blocks))
    padding = (last - first) * settings.msl - used
    return Packed(shard, used, padding, counter.count - (padding if pad in controls else 0))


class _ControlCounter:
    """Counter of control ids among the inputs of rows that pass through it."""

    def __init__(self, controls: tuple[int, ...]) -> None:
        self.count, self.ids = 0, np.array(controls, dtype=np.int32)

    def over(self, blocks: Iterator[shards.Rows]) -> Iterator[shards.Rows]:
        """Yield the rows unchanged."""
        for block in blocks:
            self.count += int(np.isin(block[:, 0], self.ids, kind="table").sum())
            yield block


def _rows(stream: Stream, rows: tuple[int, int], msl: int, pad: int) -> Iterator[shards.Rows]:
    for first in range(rows[0], rows[1], BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows[1] - first)
        tokens = stream.slice(first * msl, min((first + count) * msl + 1, stream.tokens))
        yield cut(tokens, count, msl, pad)


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


@dataclass(frozen=True)
class Windows:
    """Windows of a stream: the document of each (its place), where it begins there, its size.

    All are (windows,) int64; size counts tokens, one more than the row's inputs.
    """

    document: Numbers
    offset: Numbers
    size: Numbers

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(self.document[rows], self.offset[rows], self.size[rows])


def windows(tokens: Numbers, msl: int, least: int) -> Windows:
    """Return the windows of documents of so many tokens, in order.

    >>> cuts = windows(np.array([3, 9, 5]), 4, 2)
    >>> cuts.document.tolist(), cuts.offset.tolist(), cuts.size.tolist()
    ([0, 1, 1, 2], [0, 0, 4, 0], [3, 5, 5, 5])
    """
    counts = -(-tokens // msl)
    document = np.repeat(np.arange(len(tokens)), counts)
    first = np.cumsum(counts) - counts
    offset = (np.arange(len(document)) - first[document]) * msl
    size = np.minimum(tokens[document] - offset, msl + 1)
    kept = size >= max(2, least)
    return Windows(document[kept], offset[kept], size[kept])


def _windows(lengths: Numbers, settings: PackSettings) -> Windows:
    return windows(lengths, settings.msl, settings.cerebras.min_tokens if settings.cerebras else 0)


def _window_rows(
    stream: Stream, starts: Numbers, sizes: Numbers, msl: int, pad: int
) -> Iterator[shards.Rows]:
    for first in range(0, len(starts), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        yield _fill(stream, starts[rows], sizes[rows], msl, pad)


def _fill(stream: Stream, starts: Numbers, sizes: Numbers, msl: int, pad: int) -> shards.Rows:
    """Return the windows [start, start + size) of a stream as rows: (n, 3, msl) int32."""
    low, high = int(starts[0]), int(starts[-1] + sizes[-1])
    tokens = stream.slice(low, high)
    place = (starts - low)[:, None] + np.arange(msl + 1)  # (n, msl + 1)
    window = tokens[place.clip(max=len(tokens) - 1)]
    labelled = np.arange(msl) < (sizes - 1)[:, None]
    out = np.empty((len(starts), shards.CHANNELS, msl), dtype=np.int32)
    out[:, 0] = np.where(labelled, window[:, :-1], pad)
    out[:, 1] = labelled
    out[:, 2] = np.where(labelled, window[:, 1:], pad)
    return out


def masked(blocks: Iterable[shards.Rows], stream: Stream, places: Numbers) -> Iterator[shards.Rows]:
    """Yield blocks of rows, the mask 0 for labels before their document's `loss_from`.

    places: (rows,), position of each row's first input in the stream. Where a row's mask is 1, its
    label is the id one further in the stream.
    """
    edges, done = _edges(stream, places), 0
    for block in blocks:
        rows, _, msl = block.shape
        if len(edges):
            labels = places[done : done + rows, None] + np.arange(1, msl + 1)
            block[:, 1] &= np.searchsorted(edges, labels, side="right") % 2 == 0
        done += rows
        yield block


def _edges(stream: Stream, places: Numbers) -> Numbers:
    """Return the positions where ids stop and begin to count as labels, in turn."""
    documents = stream.documents(int(places.min()), stream.tokens)
    first, size = (documents[name].to_numpy() for name in ("first", "loss_from"))
    return np.stack([first, first + size], axis=1)[size > 0].reshape(-1)


def _spans(stream: Stream, start: int, stop: int, msl: int) -> pa.Table:
    documents = stream.documents(start, stop)
    pieces = spans.cut(documents["first"].to_numpy(), start, stop, msl)
    return _table(documents.take(pieces["document"]), pieces)


def _window_spans(stream: Stream, chosen: Windows) -> pa.Table:
    owner = stream.documents(int(stream.starts[0]), stream.tokens).take(chosen.document)
    rows = np.arange(len(chosen.size))
    pieces = {"row": rows, "start": rows * 0, "stop": chosen.size - 1, "offset": chosen.offset}
    return _table(owner, pieces)


def _table(owner: pa.Table, pieces: dict[str, Numbers]) -> pa.Table:
    """Return spans: pieces of rows, each with the document it is of."""
    columns: dict[str, Any] = {
        **{name: pieces[name] for name in ("row", "start", "stop", "offset")},
        **{name: owner[name].combine_chunks() for name in ("document", "fim", "cut1", "cut2")},
        "source": owner["source"].combine_chunks().dictionary_encode(),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in spans.SPANS]
    return pa.table(arrays, schema=spans.SPANS)
