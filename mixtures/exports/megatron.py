"""Megatron's indexed dataset: `rows-00000.bin` and `rows-00000.idx`, one sequence for each row.

The index, little-endian: the mark MMIDIDX and two zero bytes, version 1 (8 bytes), code of the
token type (1), number of sequences and of document bounds (8 each), lengths (int32), byte offsets
(int64), document bounds (int64). Each row is a document of its own: msl + 1 tokens.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from crystalmix.prep.runtime.atomic_files import write_atomic

MARK, VERSION = b"MMIDIDX\0\0", 1
CODES = {  # Megatron's number of a type of tokens
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}


def write_index(path: Path, rows: int, length: int, dtype: DTypeLike) -> None:
    """Write the index of a file of `rows` sequences of one length."""
    size = np.dtype(dtype).itemsize
    code = next(code for code, type_ in CODES.items() if np.dtype(type_) == np.dtype(dtype))
    head = MARK + struct.pack("<QBQQ", VERSION, code, rows, rows + 1)
    lengths = np.full(rows, length, "<i4")
    offsets = np.arange(rows, dtype="<i8") * (length * size)
    bounds = np.arange(rows + 1, dtype="<i8")
    write_atomic(path, head + lengths.tobytes() + offsets.tobytes() + bounds.tobytes())
