"""Chunks of a shard: how many rows share one, and where each lies, by the file's own tables.

The HDF5 library takes 0.2 ms to open a file and keeps one lock over all threads; a shuffle takes a
row or two from each of thousands of files. This module knows the one layout that h5py writes when
nothing else is asked (superblock 0, symbol-table groups, object headers and B-trees of version 1;
HDF5 File Format Specification, III and IV). Whatever differs from it is left to the library.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct, error
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = 3
SHORT = 512  # tokens: shorter rows share chunks, for each has its price whatever it holds
CHUNK_TOKENS, CHUNK_ROWS = 1 << 10, 8  # at most, of rows that share one
Pread = Callable[[int, int, int], bytes]  # descriptor, bytes, place: as os.pread
HEAD_BYTES = 4096  # h5py writes all headers before the first chunk
SUPERBLOCK = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0])
NONE = 2**64 - 1
INT32, INT64 = (
    bytes.fromhex("1008000004000000 00002000"),
    bytes.fromhex("1008000008000000 00004000"),
)
DEFLATE = bytes.fromhex("0101000000000000 01000800")  # one filter, number 1, a name of 8 bytes
DATASPACE, DATATYPE, LAYOUT, PIPELINE, ATTRIBUTE, CONTINUATION = 1, 3, 8, 11, 12, 16
ROOT = Struct(
    "<QQQQ QQIIQQ"
)  # base, free space, end of file, driver; name, header, kind, tree, heap
TREE = Struct("<4sBBHQQ")
HEADER = Struct("<BxHII4x")
MESSAGE = Struct("<HHB3x")
PAIR = Struct("<QQ")
CHUNKED = Struct("<BBBQIIII")
NODE_CHILDREN = 64
LOST = " is not in its table of chunks"
# A key and its child in a node of a B-tree of chunks of rank 3.
ENTRY = np.dtype(
    [("size", "<u4"), ("skipped", "<u4"), ("row", "<u8"), ("rest", "<u8", 3), ("at", "<u8")]
)


@dataclass(frozen=True, slots=True)
class Chunks:
    """A shard's rows and msl, where the tree of its chunks begins; together: rows of a chunk."""

    rows: int
    msl: int
    tree: int
    together: int

    def locate(self, fd: int, rows: NDArray[np.int64], pread: Pread = os.pread) -> NDArray[Any]:
        """Return the ENTRY of each row's chunk; rows: ascending, each below `self.rows`.

        Reads the nodes on the way to these rows only, in the order of rows. Raises ValueError where
        the tree is broken or lacks a row.
        """
        rows = rows - rows % self.together
        entries = np.empty(len(rows), ENTRY)
        waiting = [(self.tree, 0, len(rows), -1)] if len(rows) else []
        while waiting:
            at, first, last, expected = waiting.pop()
            if last - first == 1:
                entries[first] = _walk(fd, at, int(rows[first]), expected, pread)
                continue
            level, data = _node(fd, at, expected, pread)
            node = np.frombuffer(data, ENTRY)
            which = np.searchsorted(node["row"], rows[first:last], side="right") - 1
            if which[0] < 0:
                raise ValueError(f"row {rows[first]}{LOST}")
            if level == 0:
                leaves = entries[first:last] = node[which]
                if (leaves["row"] != rows[first:last]).any() or leaves["rest"].any():
                    raise ValueError(f"one of rows {rows[first]} to {rows[last - 1]}{LOST}")
            elif which[0] == which[-1]:
                waiting.append((int(node["at"][which[0]]), first, last, level - 1))
            else:
                cuts = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), last - first]
                waiting += [
                    (int(node["at"][which[a]]), first + a, first + b, level - 1)
                    for a, b in reversed([*pairwise(cuts)])  # the last one is the next
                ]
        return entries


def rows_together(rows: int, msl: int) -> int:
    """Return how many rows of a shard share a chunk; HDF5 wants no more than the shard has.

    >>> [rows_together(4096, msl) for msl in (2048, 512, 511, 300, 128, 16)], rows_together(5, 16)
    ([1, 1, 2, 3, 8, 8], 5)
    """
    return max(1, min(rows, CHUNK_ROWS, CHUNK_TOKENS // max(1, msl))) if msl < SHORT else 1


def _walk(fd: int, at: int, row: int, expected: int, pread: Pread) -> NDArray[Any]:
    """Return the ENTRY of one row, below a node: numpy is slow on the few keys of the way."""
    while True:
        level, data = _node(fd, at, expected, pread)
        keys = memoryview(data).cast("Q")[1 :: ENTRY.itemsize // 8].tolist()
        which = bisect_right(keys, row) - 1
        if which < 0:
            raise ValueError(f"row {row}{LOST}")
        if level == 0:
            if keys[which] != row or any(data[which * 48 + 16 : which * 48 + 40]):
                raise ValueError(f"row {row}{LOST}")
            return np.frombuffer(data, ENTRY, 1, which * ENTRY.itemsize)[0]
        at = int.from_bytes(data[(which + 1) * ENTRY.itemsize - 8 :][:8], "little")
        expected = level - 1


def _node(fd: int, at: int, expected: int, pread: Pread) -> tuple[int, bytes]:
    """Read a node of the tree: level and entries; expected: the level it must have, or -1."""
    data = pread(fd, TREE.size + NODE_CHILDREN * ENTRY.itemsize, at)
    if len(data) < TREE.size:
        raise ValueError(f"its table of chunks points past its end, to byte {at}")
    mark, kind, level, used, _, _ = TREE.unpack_from(data)
    whole = mark == b"TREE" and kind == 1 and 0 < used <= NODE_CHILDREN and level < 16
    if not whole or expected not in {-1, level} or len(data) < TREE.size + used * ENTRY.itemsize:
        raise ValueError(f"its table of chunks is broken at byte {at}")
    return level, data[TREE.size : TREE.size + used * ENTRY.itemsize]


def read(fd: int, size: int, pread: Pread = os.pread) -> Chunks | None:
    """Return the chunks of an open file of `size` bytes, or None if the library must read it."""
    head = pread(fd, HEAD_BYTES, 0)
    try:
        return _parse(head, size)
    except (error, IndexError, OverflowError):  # something lies beyond the head
        return None


def _parse(head: bytes, size: int) -> Chunks | None:
    if not head.startswith(SUPERBLOCK):
        return None
    base, _, end, driver, _, root, kind, _, tree, heap = ROOT.unpack_from(head, 24)
    if (base, driver, kind) != (0, NONE, 1) or end > size:
        return None
    place = _find(head, tree, heap, b"data\0")
    if place is None:
        return None
    chunks = _dataset({kind: head[at : at + n] for kind, at, n in _messages(head, place)})
    counts = [
        count
        for kind, at, n in _messages(head, root)
        if kind == ATTRIBUTE and (count := _n_examples(head[at : at + n])) is not None
    ]
    return chunks if chunks is not None and counts in ([], [chunks.rows]) else None


def _find(head: bytes, tree: int, heap: int, name: bytes) -> int | None:
    """Return where the object header of a name in a group of one symbol node begins."""
    mark, kind, level, used, _, _ = TREE.unpack_from(head, tree)
    if (mark, kind, level, used) != (b"TREE", 0, 0, 1) or head[heap : heap + 4] != b"HEAP":
        return None
    node = PAIR.unpack_from(head, tree + TREE.size)[1]
    text = PAIR.unpack_from(head, heap + 16)[1]
    if head[node : node + 5] != b"SNOD\1":
        return None
    for i in range(int.from_bytes(head[node + 6 : node + 8], "little")):
        offset, header = PAIR.unpack_from(head, node + 8 + 40 * i)
        if head[text + offset : text + offset + len(name)] == name:
            return header
    return None


def _messages(head: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield the messages of an object header: kind, where the content begins, its size."""
    version, count, _, size = HEADER.unpack_from(head, at)
    if version != 1:
        return
    spaces = [(at + HEADER.size, at + HEADER.size + size)]
    while spaces:
        at, end = spaces.pop(0)
        while at + MESSAGE.size <= end and count:
            kind, size, _ = MESSAGE.unpack_from(head, at)
            at += MESSAGE.size
            if kind == CONTINUATION:
                start, more = PAIR.unpack_from(head, at)
                spaces.append((start, start + more))
            yield kind, at, size
            at += size
            count -= 1


def _dataset(messages: dict[int, bytes]) -> Chunks | None:
    """Return the chunks of a dataset of rows, each of one or of `rows_together`, from messages."""
    if not {DATASPACE, DATATYPE, LAYOUT, PIPELINE} <= messages.keys():
        return None
    space, pipeline = messages[DATASPACE], messages[PIPELINE]
    if space[:2] != b"\1\3" or messages[DATATYPE][:12] != INT32 or not pipeline.startswith(DEFLATE):
        return None
    rows, channels, msl = (
        int.from_bytes(space[8 + 8 * i : 16 + 8 * i], "little") for i in range(3)
    )
    version, kind, rank, tree, *sides = CHUNKED.unpack_from(messages[LAYOUT])
    if (version, kind, rank) != (3, 2, 4) or tree == NONE or channels != CHANNELS:
        return None
    together, *rest = sides
    if rest != [CHANNELS, msl, 4] or together not in {1, rows_together(rows, msl)}:
        return None
    return Chunks(rows, msl, tree, together)


def _n_examples(message: bytes) -> int | None:
    """Return the number in an attribute message called n_examples, if it is one."""
    name, kind, space = (int.from_bytes(message[i : i + 2], "little") for i in (2, 4, 6))
    if message[:1] != b"\1" or message[8 : 8 + name] != b"n_examples\0":
        return None
    at = 8 + -(-name // 8) * 8
    if message[at : at + 12] != INT64:
        return None
    at += -(-kind // 8) * 8 + -(-space // 8) * 8
    return int.from_bytes(message[at : at + 8], "little", signed=True)
