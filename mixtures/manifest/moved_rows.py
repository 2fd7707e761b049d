"""Which rows of the order moved between two manifests of a phase: within each part, and by place.

A part's own sequence follows from its content, the seed and the kind of order alone: where those
are the same, other parts may come, go or weigh otherwise, and none of its rows moves within it.
Which position of the phase a row stands at follows from all parts. Positions are compared one by
one up to MOST; beyond, in blocks that lie evenly in both, and the share is then an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from crystalmix.mixtures.manifest import cerebras_order
from crystalmix.mixtures.manifest.cerebras_order import ZooOrder
from crystalmix.mixtures.manifest.exact_order import VERSION
from crystalmix.mixtures.manifest.manifest import Manifest, ManifestPart
from crystalmix.prep.runtime.lazy_names import imported_later

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

MOST = 1 << 20
BLOCKS = 64


def order_lines(old: Manifest, new: Manifest) -> list[str]:
    """Return one line for each part of both manifests, and one on the positions that changed."""
    for manifest in (old, new):
        version = VERSION if manifest.cerebras is None else cerebras_order.VERSION
        if manifest.order_version != version:
            return [f"order: can't be compared: one is of version {manifest.order_version}"]
    after = {part.name: place for place, part in enumerate(new.parts)}
    lines = [
        f"order: part {part.name}: {_sequence(old, new, place, after[part.name])}"
        for place, part in enumerate(old.parts)
        if part.name in after
    ]
    return [*lines, f"order: {_moved(old, new)}"]


def _sequence(old: Manifest, new: Manifest, place: int, other: int) -> str:
    """Describe the change of a part's own sequence of rows."""
    old_part, new_part = old.parts[place], new.parts[other]
    if old_part.digest != new_part.digest:
        return "its rows are others, so is its sequence"
    if (old.cerebras is None) != (new.cerebras is None):
        return "its rows are the same, in the sequence of another kind of order"
    same = "none of its rows moved: its own sequence is the same"
    if isinstance(old.order, ZooOrder) and isinstance(new.order, ZooOrder):
        draws = _draws(old.order, place), _draws(new.order, other)
        if draws[0] == draws[1] or min(draws) >= max(old_part.rows, new_part.rows):
            return same
        return f"{same} for its first {min(draws):,} rows; then an epoch of the mixture ends"
    if old.seed != new.seed:
        return f"its rows are the same, in another sequence (seed {old.seed}, now {new.seed})"
    return same


def _draws(order: ZooOrder, place: int) -> int:
    """Return how many rows of a part an epoch of Model Zoo's mixture takes."""
    mixture = order.mixture
    return mixture.slots[mixture.kept.index(place)] if place in mixture.kept else 0


def _moved(old: Manifest, new: Manifest) -> str:
    """Describe how many positions of both hold another row."""
    common = min(old.steps * old.batch, new.steps * new.batch)
    ids = _numbers(old.parts, new.parts)
    total = moved = 0
    for start, stop in _blocks(common):
        old_keys, new_keys = (_keys(manifest, ids, start, stop) for manifest in (old, new))
        moved += int((old_keys != new_keys).any(axis=0).sum())
        total += stop - start
    share = f"{100 * moved / total:.4g} %"
    if total == common:
        return f"{moved:,} of the first {common:,} positions hold another row ({share})"
    return (
        f"about {share} of the first {common:,} positions hold another row "
        f"({moved:,} of {total:,} looked at, in {BLOCKS} blocks)"
    )


def _blocks(positions: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of positions to look at: all of them in turn, or blocks evenly spaced."""
    size = MOST // BLOCKS
    if positions <= MOST:
        yield from ((at, min(positions, at + size)) for at in range(0, positions, size))
        return
    for block in range(BLOCKS):
        start = block * (positions - size) // (BLOCKS - 1)
        yield start, start + size


def _numbers(*parts: tuple[ManifestPart, ...]) -> dict[str, int]:
    """Number the shards of manifests by their content."""
    digests = [shard.digest for listed in parts for part in listed for shard in part.shards]
    return {digest: number for number, digest in enumerate(dict.fromkeys(digests))}


def _keys(manifest: Manifest, ids: dict[str, int], start: int, stop: int) -> Int64s:
    """Return which row stands at each position, whatever its file is called: (2, n)."""
    shards = [ids[shard.digest] for part in manifest.parts for shard in part.shards]
    refs = manifest.rows(start, stop)
    return np.stack([np.array(shards, dtype=np.int64)[refs.shard], refs.row])
