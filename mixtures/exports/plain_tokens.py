"""Plain numbers: `rows-00000.bin`, tokens of rows one after the other, as numpy reads them.

Each row is msl + 1 tokens: its ids and its last label. `rows-00000.mask` has a bit for each label,
1 where it counts (`numpy.packbits`, each row from a byte of its own).

Megatron's indexed dataset has `rows-00000.idx` beside it, little-endian: the mark MMIDIDX and two
zero bytes, version 1 (8 bytes), code of the token type (1), number of sequences and of document
bounds (8 each), lengths (int32), byte offsets (int64), document bounds (int64). Each row is a
sequence, and a document of its own.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from crystalmix.mixtures.exports.row_blocks import Block
from crystalmix.prep.runtime.atomic_files import replacing, write_atomic

MARK, VERSION = b"MMIDIDX\0\0", 1
CODES = {  # Megatron's number of a type of tokens
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
MOST_IN_UINT16 = 65_500  # ids of a vocabulary that Megatron stores in 16 bits


def dtype_of(vocab: int) -> DTypeLike:
    """Return the type of tokens: the narrowest that Megatron takes for a vocabulary."""
    return np.uint16 if vocab < MOST_IN_UINT16 else np.int32


def write(stem: Path, blocks: Iterable[Block], dtype: DTypeLike) -> Iterator[Block]:
    """Write tokens and mask beside each other while blocks pass through."""
    with (
        replacing(stem.with_name(f"{stem.name}.bin")) as tokens,
        replacing(stem.with_name(f"{stem.name}.mask")) as bits,
        tokens.open("wb") as token_file,
        bits.open("wb") as mask_file,
    ):
        for block in blocks:
            _append(token_file, mask_file, block, dtype)
            yield block


def _append(tokens: BinaryIO, mask: BinaryIO, block: Block, dtype: DTypeLike) -> None:
    tokens.write(block.tokens().astype(dtype).tobytes())
    mask.write(np.packbits(block.rows[:, 1] != 0, axis=1).tobytes())


def write_index(path: Path, rows: int, length: int, dtype: DTypeLike) -> None:
    """Write the index of a file of `rows` sequences of one length."""
    size = np.dtype(dtype).itemsize
    code = next(code for code, type_ in CODES.items() if np.dtype(type_) == np.dtype(dtype))
    head = MARK + struct.pack("<QBQQ", VERSION, code, rows, rows + 1)
    lengths = np.full(rows, length, "<i4")
    offsets = np.arange(rows, dtype="<i8") * (length * size)
    bounds = np.arange(rows + 1, dtype="<i8")
    write_atomic(path, head + lengths.tobytes() + offsets.tobytes() + bounds.tobytes())
