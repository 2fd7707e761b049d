"""Plain numbers: `rows-00000.bin`, tokens of rows one after the other, as numpy reads them.

Each row is msl + 1 tokens: its ids and its last label. `rows-00000.mask` has a bit for each label,
1 where it counts (`numpy.packbits`, each row from a byte of its own).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from crystalmix.mixtures.exports.row_blocks import Block
from crystalmix.prep.runtime.atomic_files import replacing

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
