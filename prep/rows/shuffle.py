"""Shuffle of rows: all shards and epochs of one domain, in a keyed random order.

Output row i is input row P(i) of a keyed permutation (a formula, not a list), so each output shard
is made on its own, in bounded memory, and the result is the same for any number of workers. The
shuffle of the original moves rows through temporary files and depends on its workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.permutation import Permutation
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa

    from crystalmix.prep.rows import open_shards, shards, spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1


@frozen
class Input:
    """One shard to shuffle: its name in origin tables, its path and rows."""

    name: str
    path: Path
    rows: int


def order(
    inputs: tuple[Input, ...], rows: tuple[int, int], seed: int | None, domain: str
) -> NDArray[np.int64]:
    """Return the numbers of the rows that come [first, last) in the shuffled order.

    Without a seed the rows keep their order: the inputs are joined.
    """
    numbers = np.arange(*rows, dtype=np.int64)
    if seed is None:
        return numbers
    total = sum(item.rows for item in inputs)
    return Permutation(total, randomness.key(seed, "shuffle", domain)).forward(numbers)


def places(
    inputs: tuple[Input, ...], rows: tuple[int, int], seed: int, domain: str
) -> NDArray[np.int64]:
    """Return where in the shuffled order the rows numbered [first, last) come: `order` inverted."""
    total = sum(item.rows for item in inputs)
    key = randomness.key(seed, "shuffle", domain)
    return Permutation(total, key).inverse(np.arange(*rows, dtype=np.int64))


def shuffle(inputs: tuple[Input, ...], order: NDArray[np.int64], out: Path) -> shards.Shard:
    """Write rows as one shard, with their origin.

    order: the numbers of the rows, which count on over all inputs.
    """
    which, within = _write_origin(inputs, order, out)
    return shards.copy(out, [item.path for item in inputs], which, within)


def write(
    inputs: tuple[Input, ...], order: NDArray[np.int64], out: Path, rows: Iterable[shards.Rows]
) -> shards.Shard:
    """Write rows that are made from their tokens as one shard, with their origin."""
    _write_origin(inputs, order, out)
    return shards.write(out, len(order), rows)


def write_deflated(
    inputs: tuple[Input, ...],
    order: NDArray[np.int64],
    out: Path,
    msl: int,
    rows: Iterable[shards.Buffer],
) -> shards.Shard:
    """Write deflated rows of msl as one shard, with their origin, and check what they inflate to.

    Raises DamageError, with the input's path, for one that is broken.
    """
    which, _ = _write_origin(inputs, order, out)
    paths = (inputs[place].path for place in which.tolist())
    size = msl * shards.ROW_TOKEN_BYTES
    checked = ((_inflated(p, row, size), row) for p, row in zip(paths, rows, strict=True))
    return shards.write_packed(out, len(order), checked)


def _inflated(path: Path, row: shards.Buffer, size: int) -> shards.Buffer:
    try:
        return open_shards.inflated(row, 0, size)
    except open_shards.UNREADABLE as error:
        raise open_shards.fault(path, error) from None


def located(
    inputs: tuple[Input, ...], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return of rows by their numbers which input each is of, and its row there."""
    starts = np.cumsum([0, *(item.rows for item in inputs)])
    which = np.searchsorted(starts, order, side="right") - 1
    return which, order - starts[which]


def _write_origin(
    inputs: tuple[Input, ...], order: NDArray[np.int64], out: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    which, within = located(inputs, order)
    held, indices = np.unique(which, return_inverse=True)  # all names in each would be quadratic
    names = pa.DictionaryArray.from_arrays(
        pa.array(indices, pa.int32()), pa.array([inputs[place].name for place in held.tolist()])
    )
    numbers = pa.array(np.arange(len(order)), pa.int32())
    table = pa.table([numbers, names, pa.array(within, pa.int32())], schema=spans.ORIGIN)
    spans.write(spans.path_of(out, "origin"), table)
    return which, within
