"""Packing: a stream of documents' tokens, concatenated and cut to rows of msl tokens.

Row r holds the tokens [r * msl, (r + 1) * msl) of the stream as inputs and the tokens one further
as labels, so its last label is the first input of row r + 1; no padding between documents and no
attention boundary (the packing of Cerebras Model Zoo's LMData, `pack_sequences`). With `tail:
drop` the last row must have all its labels and the rest is dropped and counted, as there; with
`tail: keep` (default) a last incomplete row is padded, the mask 0 where there is no label.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prep import lossmask, shards, spans
from prep.blocks import Encoded, Stream

VERSION = 1
BLOCK_ROWS = 256


@dataclass(frozen=True)
class PackSettings:
    """Length of a row in tokens, control tokens around each document, and what ends the stream."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    msl: int = 2048
    bos: bool = True
    eos: bool = True
    tail: Literal["keep", "drop"] = "keep"
    rows_per_shard: int = 4096

    def __post_init__(self) -> None:
        for name in ("msl", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class Controls:
    """The ids the packer adds: BOS and EOS (None: not added), and what fills a last row."""

    bos: int | None
    eos: int | None
    pad: int


@dataclass(frozen=True)
class Packed:
    """One packed shard and the account of its inputs."""

    shard: shards.Shard
    tokens: int  # inputs that are no padding
    padding: int


def frame(document: Encoded, controls: Controls) -> Encoded:
    """Put BOS before and EOS behind a document's ids, as asked."""
    first = [] if controls.bos is None else [controls.bos]
    last = [] if controls.eos is None else [controls.eos]
    ids = np.concatenate([np.array(first, np.int64), document.ids, np.array(last, np.int64)])
    added = document.controls + len(first) + len(last)
    loss_from = document.loss_from and document.loss_from + len(first)
    return Encoded(document.number, ids, added, document.fim, document.cuts, loss_from)


def rows_of(tokens: int, settings: PackSettings) -> int:
    """Return how many rows a stream of `tokens` tokens gives."""
    if settings.tail == "drop":
        return max(0, (tokens - 1) // settings.msl)
    return -(-tokens // settings.msl)


def shards_of(rows: int, settings: PackSettings) -> list[tuple[int, int]]:
    """Return the rows [first, last) of each shard."""
    size = settings.rows_per_shard
    return [(first, min(first + size, rows)) for first in range(0, rows, size)]


def pack(
    stream: Stream, rows: tuple[int, int], settings: PackSettings, pad: int, out: Path
) -> Packed:
    """Write the rows [first, last) of a stream as one shard with its spans."""
    first, last = rows
    start, stop = first * settings.msl, min(last * settings.msl, stream.tokens)
    spans.write(spans.path_of(out), _spans(stream, start, stop, settings.msl))
    cut_rows = lossmask.masked(_rows(stream, rows, settings.msl, pad), stream, (start, stop))
    shard = shards.write(out, last - first, cut_rows)
    used = stop - start
    return Packed(shard, used, (last - first) * settings.msl - used)


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
    padded = np.full(count * msl + 1, pad, dtype=np.int32)
    padded[: len(tokens)] = tokens
    out = np.empty((count, shards.CHANNELS, msl), dtype=np.int32)
    out[:, 0] = padded[:-1].reshape(count, msl)
    out[:, 1] = (np.arange(1, count * msl + 1) < len(tokens)).reshape(count, msl)
    out[:, 2] = padded[1:].reshape(count, msl)
    return out


def _spans(stream: Stream, start: int, stop: int, msl: int) -> pa.Table:
    documents = stream.documents(start, stop)
    pieces = spans.cut(documents["first"].to_numpy(), start, stop, msl)
    owner = documents.take(pieces["document"])
    columns: dict[str, Any] = {
        **{name: pieces[name] for name in ("row", "start", "stop", "offset")},
        **{name: owner[name].combine_chunks() for name in ("document", "fim", "cut1", "cut2")},
        "source": owner["source"].combine_chunks().dictionary_encode(),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in spans.SPANS]
    return pa.table(arrays, schema=spans.SPANS)
