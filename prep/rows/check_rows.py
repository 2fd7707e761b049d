"""Check of rows without a receipt: every row of a file is compared with what a row must be.

A row's labels are its next inputs wherever its mask is 1, up to the last such place: what follows
there lies in another row or nowhere, so that label can't be checked (the rows that
crystalcoder-data-prep permuted have an end of sequence there that nothing in the data says).
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.rows import shards
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.runtime.errors import DamageError

REMEDY = "build it again from its texts, or leave it out"


@dataclass(frozen=True)
class Checked:
    """Report of a sound file of rows.

    tokens: places whose mask is 1, so trained on. digest: sha256 over the decoded array.
    """

    path: str
    rows: int
    msl: int
    tokens: int
    digest: str


def find(path: Path) -> list[Path]:
    """Return the HDF5 files of a path, a file or a folder with folders in it, sorted."""
    if path.is_file():
        return [path] if path.suffix in {".h5", ".hdf5"} else []
    return sorted(file for kind in ("*.h5", "*.hdf5") for file in path.rglob(kind))


def check(path: Path) -> Checked:
    """Read a whole file of rows and check dtype, shape, `n_examples`, masks, ids and labels.

    Raises DamageError with file, row, position, rule and remedy at the first fault.
    """
    rows, msl = shards.shape(path)
    content, tokens, first = sha256(), 0, 0
    for block in shards.blocks(path):
        if (message := fault(block, first)) is not None:
            raise DamageError(f"{path}: {message}; {REMEDY}")
        content.update(np.ascontiguousarray(block, dtype="<i4").data)
        tokens += int(block[:, 1].sum(dtype=np.int64))
        first += len(block)
    return Checked(str(path), rows, msl, tokens, content.hexdigest())


def fault(block: Rows, first: int = 0) -> str | None:
    """Return the first fault of a block of rows, or None; first: the number of its first row.

    >>> fault(np.array([[[5, 6, 7], [1, 1, 1], [6, 8, 9]]], np.int32))
    'row 0, position 1: its label is 8, but the next input is 7 and the mask is 1'
    """
    ids, mask, labels = block[:, 0], block[:, 1], block[:, 2]
    on = mask == 1
    # True from the last place whose mask is 1 on.
    ended = ~np.logical_or.accumulate(on[:, ::-1], axis=1)[:, -2::-1]
    faults = (
        (~on & (mask != 0), "mask", mask, "must be 0 or 1"),
        (ids < 0, "input", ids, "must not be negative"),
        (on & (labels < 0), "label", labels, "must not be negative"),
    )
    for wrong, what, values, rule in faults:
        if wrong.any():
            row, place = _first(wrong)
            return (
                f"row {first + row}, position {place}: its {what} is {values[row, place]}, {rule}"
            )
    wrong = on[:, :-1] & (labels[:, :-1] != ids[:, 1:]) & ~ended
    if wrong.any():
        row, place = _first(wrong)
        return (
            f"row {first + row}, position {place}: its label is {labels[row, place]}, "
            f"but the next input is {ids[row, place + 1]} and the mask is 1"
        )
    return None


def _first(wrong: NDArray[np.bool_]) -> tuple[int, int]:
    row, place = np.argwhere(wrong)[0].tolist()
    return row, place
