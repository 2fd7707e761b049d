"""Tokenised blocks: the ids of one block of documents, and where each document begins.

What lies between tokenising (parallel by block) and packing (parallel by shard). Ids lie in frames
(`prep/runtime/frames`), less than a byte each, so that any row is read without the rest. The
blocks of a folder, in order, are one stream of tokens; a row may begin in one block and end in the
next, so nothing is lost at a block's end.
"""

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from crystalmix.prep.rows import spans
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.frames import Frames, FrameWriter
from crystalmix.prep.runtime.types import Column

WAITING_TOKENS = 1 << 18
JOINED = 256  # indexes of blocks that become one table, of so many documents at most
JOINED_ROWS = 1 << 16
NOTHING = np.empty(0, np.uint32)
INDEX = pa.schema(
    [
        ("document", pa.int64()),
        ("tokens", pa.int64()),
        ("fim", pa.int8()),
        ("cut1", pa.int64()),
        ("cut2", pa.int64()),
        ("loss_from", pa.int64()),
        ("masked", pa.list_(pa.int64())),  # starts and stops of what is no label, in turn
        ("turns", pa.list_(pa.int64())),  # of a conversation: first id, message, role of each turn
    ]
)
NUMBERS = [entry.name for entry in INDEX if entry.type in (pa.int64(), pa.int8())]
LISTS = ("masked", "turns")
NO_LIST = np.empty(0, np.int64)
NO_LIST.flags.writeable = False  # one for all documents
TURN = 3  # numbers of a turn: its first id, its message, its role


class Encoded(NamedTuple):
    """The ids of one document, control ids included, and how FIM permuted it.

    ids: (n,) integers. controls: how many of all ids are control ids. fim: 0 left to right, 1 PSM,
    2 SPM. cuts: where prefix | middle and middle | suffix were cut, -1 without FIM. loss_from:
    the first of all ids that counts as a label. around: ids before and behind, which count as the
    document's; apart, so that a long document is not copied for the sake of two of them. masked:
    (n, 2) int64, start and stop of the runs of all ids that are no labels, ascending and apart.
    turns: (n, 3) int64, of a conversation: the first id of each turn, its message, its role.
    """

    number: int
    ids: NDArray[np.integer]
    controls: int
    fim: int = 0
    cuts: tuple[int, int] = (-1, -1)
    loss_from: int = 0
    around: tuple[NDArray[np.integer], NDArray[np.integer]] = (NOTHING, NOTHING)
    masked: NDArray[np.int64] = NO_LIST
    turns: NDArray[np.int64] = NO_LIST


@dataclass(frozen=True, slots=True)  # there is one for each raw file
class Block:
    """One written block: its source, size, and the file of its ids.

    turns: of conversations. first: number of its first document in the source; its index counts
    documents from 0.
    """

    path: Path
    source: str
    tokens: int
    wide: bool
    turns: int = 0
    first: int = 0


@dataclass(frozen=True)
class BlockCounts:
    """Account of one written block.

    tokens: control ids included. permuted: documents that FIM permuted. wide: ids are uint32.
    turns: of conversations, 0 of other documents.
    """

    documents: int
    tokens: int
    controls: int
    permuted: int
    wide: bool
    turns: int = 0


def write(path: Path, documents: Iterable[Encoded], *, vocab: int) -> BlockCounts:
    """Write a block's ids to `path` and its index beside it."""
    with BlockWriter(path, vocab) as writer:
        for document in documents:
            writer.add(document)
    return writer.counts


class BlockWriter:
    """Writer of a block, document by document; its files are there when it ends without an error.

    first: the number that its documents are counted from.
    """

    def __init__(self, path: Path, vocab: int, first: int = 0) -> None:
        self.path, self.wide, self.first = path, vocab > 1 << 16, first
        self.rows: list[tuple[int, ...]] = []
        self.lists: dict[str, list[NDArray[np.int64]]] = {name: [] for name in LISTS}
        self.controls = 0
        self.stack = ExitStack()

    def __enter__(self) -> "BlockWriter":
        temporary = self.stack.enter_context(replacing(self.path))
        file = self.stack.enter_context(temporary.open("wb"))
        self.ids = _Writer(file, np.dtype("<u4" if self.wide else "<u2"))
        return self

    def add(self, document: Encoded) -> None:
        """Add a document."""
        size = self.ids.add(document)
        cuts = (document.fim, *document.cuts, document.loss_from)
        self.rows.append((document.number - self.first, size, *cuts))
        for name, values in self.lists.items():
            values.append(getattr(document, name).reshape(-1))
        self.controls += document.controls

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:  # noqa: ANN401  as contextlib's
        try:
            if error is None:
                self._finish()
        except BaseException:
            self.stack.__exit__(*sys.exc_info())
            raise
        self.stack.__exit__(kind, error, trace)

    def _finish(self) -> None:
        """Write the ids that wait, and the index."""
        self.ids.close()
        self.columns = np.array(self.rows, dtype=np.int64).reshape(-1, len(NUMBERS))
        numbers = dict(zip(NUMBERS, self.columns.T, strict=True))
        arrays = [pa.array(numbers[name]).cast(INDEX.field(name).type) for name in NUMBERS]
        arrays += [_lists(self.lists[name]) for name in LISTS]
        spans.write(self.path.with_suffix(".parquet"), pa.table(arrays, schema=INDEX))

    @property
    def counts(self) -> BlockCounts:
        """The account of the block that was written."""
        tokens, permuted = int(self.columns[:, 1].sum()), int((self.columns[:, 2] > 0).sum())
        turns = sum(map(len, self.lists["turns"])) // TURN
        return BlockCounts(len(self.rows), tokens, self.controls, permuted, self.wide, turns)


def _lists(values: list[NDArray[np.int64]]) -> Column:
    """Return lists of integers as a column."""
    ends = np.cumsum([0, *map(len, values)])
    flat = np.concatenate([NO_LIST, *values])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat, pa.int64()))


class _Writer:
    """Writer of ids, which converts and writes many documents at a time."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any]) -> None:
        self.frames, self.dtype = FrameWriter(file, dtype), dtype
        self.ids: list[NDArray[np.integer]] = []
        self.size = 0

    def add(self, document: Encoded) -> int:
        """Add a document's ids; return their number."""
        first, last = document.around
        self.ids += (first, document.ids, last)
        size = len(first) + len(document.ids) + len(last)
        self.size += size
        if self.size >= WAITING_TOKENS:
            self.flush()
        return size

    def flush(self) -> None:
        """Write the ids that wait."""
        if self.ids:
            self.frames.add(np.concatenate(self.ids, dtype=self.dtype, casting="unsafe"))
            self.ids, self.size = [], 0

    def close(self) -> None:
        """Write all that is left."""
        self.flush()
        self.frames.close()


class Stream:
    """The concatenation of blocks: tokens by position, and the documents they belong to.

    base: the position of the first block's first token, where the blocks are a part of a stream.
    """

    def __init__(self, blocks: tuple[Block, ...], base: int = 0) -> None:
        self.blocks = blocks
        self.starts = base + np.cumsum([0, *(block.tokens for block in blocks)])  # (blocks + 1,)
        self.tokens = int(self.starts[-1])

    @cached_property
    def lengths(self) -> tuple[NDArray[np.int64], ...]:
        """The tokens of every document that has some, in order, block by block."""
        return tuple(_lengths(block) for block in self.blocks)

    @property
    def has_turns(self) -> bool:
        """Whether its documents are conversations."""
        return any(block.turns for block in self.blocks)

    def part(self, start: int, stop: int) -> "Stream":
        """Return the stream of the blocks that hold positions of [start, stop), places kept."""
        touched = [i for i, _, _ in self._overlaps(start, min(stop, self.tokens))]
        if not touched:
            return Stream((), start)
        first, last = touched[0], touched[-1] + 1
        return Stream(self.blocks[first:last], int(self.starts[first]))

    def slice(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the ids at positions [start, stop): int32."""
        out = np.empty(stop - start, dtype=np.int32)
        for i, low, high in self._overlaps(start, stop):
            base = int(self.starts[i])
            out[low - start : high - start] = _ids(self.blocks[i], low - base, high - base)
        return out

    def documents(self, start: int, stop: int) -> pa.Table:
        """Return the documents that touch [start, stop): `source`, INDEX, `first` token."""
        return _joined(self._documents(start, stop))

    def _documents(self, start: int, stop: int) -> Iterator[pa.Table]:
        for i, low, high in self._overlaps(start, stop):
            block = self.blocks[i]
            index = _index(block)
            ends = int(self.starts[i]) + np.cumsum(index["tokens"].to_numpy())
            first = ends - index["tokens"].to_numpy()
            touched = np.flatnonzero((ends > np.maximum(first, low)) & (first < high))
            table = index.append_column("first", pa.array(first)).take(touched)
            numbers = pa.array(table["document"].to_numpy() + block.first)
            table = table.set_column(0, "document", numbers)
            name = pa.array([block.source] * len(table), pa.string())
            yield table.append_column("source", name)

    def _overlaps(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return (block, low, high) for each block that holds positions of [start, stop)."""
        if stop <= start:
            return []
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        last = int(np.searchsorted(self.starts, stop, side="left"))
        pairs = [
            (i, max(start, int(self.starts[i])), min(stop, int(self.starts[i + 1])))
            for i in range(first, last)
        ]
        return [pair for pair in pairs if pair[1] < pair[2]]


def _joined(tables: Iterator[pa.Table]) -> pa.Table:
    """Join tables as they come; each of a few rows takes some KiB."""
    joined: list[pa.Table] = []
    while some := list(islice(tables, JOINED)):
        table = pa.concat_tables(some)
        joined.append(table.combine_chunks() if len(table) <= JOINED_ROWS else table)
    return pa.concat_tables(joined)


def _lengths(block: Block) -> NDArray[np.int64]:
    tokens = spans.read(block.path.with_suffix(".parquet"), ["tokens"])["tokens"].to_numpy()
    return tokens[tokens > 0]


def _index(block: Block) -> pa.Table:
    """Return the index of a block; that of the block before, which shards share, is kept."""
    path = block.path.with_suffix(".parquet")
    status = path.stat()
    return _read_index(path, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=1)
def _read_index(path: Path, _identity: tuple[int, ...]) -> pa.Table:
    return spans.read(path)


def _ids(block: Block, start: int, stop: int) -> NDArray[np.integer]:
    """Read the ids [start, stop) of a block."""
    with opened(block) as frames:
        return frames.read(start, stop)


@contextmanager
def opened(block: Block) -> Generator[Frames]:
    """Open the ids of a block; DamageError where they are not as they were written."""
    try:
        with Frames(block.path, np.dtype("<u4" if block.wide else "<u2"), block.tokens) as frames:
            yield frames
    except (FileNotFoundError, ValueError, zstandard.ZstdError) as error:
        raise DamageError(
            f"{block.path}: is not as it was written ({error}); "
            f"remove {block.path.parent} and build again"
        ) from None
