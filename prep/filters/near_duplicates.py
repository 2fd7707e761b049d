"""Near-duplicates: MinHash signatures of texts (datasketch), and their bands.

A signature estimates the share of word shingles that two texts have in common (Broder 1997). Its
bands (locality-sensitive hashing) propose pairs, which `near_pairs` finds and confirms. Signatures
lie in plain files of uint32, one row a text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from crystalmix.prep.filters import ngrams
from crystalmix.prep.runtime.constraints import AtLeastOne, enforce, within
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.randomness import mix
from crystalmix.prep.runtime.types import Strict, frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Signatures = NDArray[np.uint32]
    Places = NDArray[np.int64]

VERSION = 1
REASON = "near_duplicate"
SCHEME = "affine32"  # of datasketch 2: 32-bit values
EMPTY = 2**32 - 1  # a signature of these alone is that of a text without words
WEIGHTS = (0.1, 0.9)  # of false positives, of false negatives
SLICE = 1 << 14  # shingles, rows or pairs at a time


@frozen
class Near(Strict):
    """When two texts are near-duplicates.

    scope: within a source, or also across the sources of the recipe. words: of a shingle.
    threshold: of the estimated Jaccard similarity. permutations: numbers in a signature (4 bytes
    each for every document). seed: of the permutations.
    """

    scope: Literal["source", "recipe"] = "source"
    words: AtLeastOne = 5
    threshold: Annotated[float, within(0.1, 1)] = 0.8
    permutations: Annotated[int, within(16, 1024)] = 128
    seed: AtLeastOne = 1

    __post_init__ = enforce


def check_installed() -> None:
    """Raise UsageError where datasketch is not installed."""
    try:
        import datasketch
    except ModuleNotFoundError:
        datasketch = None
    if not hasattr(datasketch, "MinHash"):
        raise UsageError(
            "duplicates.near: datasketch is not installed; install crystalmix with its extra "
            "`near`, or leave near-duplicates out"
        )


def signatures(texts: Sequence[str], settings: Near) -> Signatures:
    """Return the signatures of texts, (n, permutations) uint32."""
    rows = np.full((len(texts), settings.permutations), EMPTY, np.uint32)
    for part in ngrams.groups(texts):
        words = ngrams.words(texts[part])
        shingles, places = ngrams.ngrams(words, settings.words)
        owners = np.searchsorted(words.bounds, places, side="right") - 1
        cuts = np.searchsorted(owners, np.arange(len(words.bounds))).tolist()
        counts = np.diff(words.bounds)
        short = np.flatnonzero((counts > 0) & (counts < settings.words))
        whole = ngrams.runs_of(words, words.bounds[short], words.bounds[short + 1])
        alone = dict(zip(short.tolist(), whole, strict=True))  # texts of one short shingle
        for i in range(len(counts)):
            mine = np.array([alone[i]]) if i in alone else shingles[cuts[i] : cuts[i + 1]]
            rows[part.start + i] = _signature(np.unique(mine >> np.uint64(32)), settings)
    return rows


def _signature(values: NDArray[np.uint64], settings: Near) -> Signatures:
    minhash = _minhash(settings.permutations, settings.seed)
    minhash.clear()
    for first in range(0, len(values), SLICE):
        minhash.update_batch(values[first : first + SLICE].tolist())
    return minhash.digest()


@lru_cache(maxsize=2)
def _minhash(permutations: int, seed: int) -> Any:  # noqa: ANN401  datasketch ships no types
    from datasketch import MinHash

    return MinHash(num_perm=permutations, seed=seed, hashfunc=int, scheme=SCHEME)


@lru_cache(maxsize=2)
def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Return how many bands of how many numbers find pairs at the threshold.

    Pairs that are missed weigh more than pairs too many, which whole signatures refuse anyway.
    """
    from datasketch import MinHashLSH

    chosen: Any = MinHashLSH(threshold=threshold, num_perm=permutations, weights=WEIGHTS)
    return chosen.b, chosen.r


class Stored:
    """Signature files one after the other, as one array of rows on disk."""

    def __init__(self, files: Sequence[Path], settings: Near) -> None:
        self.files, self.width = files, settings.permutations
        sizes = [path.stat().st_size // (4 * self.width) for path in files]
        self.starts = np.cumsum([0, *sizes])

    def take(self, rows: Places) -> Signatures:
        """Return some rows, in their order here."""
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        signatures = np.empty((len(rows), self.width), "<u4")
        order = np.argsort(owners, kind="stable")
        numbers, firsts = np.unique(owners[order], return_index=True)
        ends = [*firsts.tolist(), len(rows)]
        for number, (low, high) in zip(numbers.tolist(), pairwise(ends), strict=True):
            here = order[low:high]
            places = (rows[here] - self.starts[number]) * (4 * self.width)
            with self.files[number].open("rb") as file:  # mapped, its pages would count as ours
                for row, place in zip(here.tolist(), places.tolist(), strict=True):
                    os.preadv(file.fileno(), [signatures[row].data], place)
        return signatures

    def pieces(
        self, number: int, rows: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, Signatures]]:
        """Yield a file's rows SLICE by SLICE, each with the number of its first row.

        rows: [first, stop) of the file, all by default.
        """
        start, size = self.starts[number], int(self.starts[number + 1] - self.starts[number])
        low, stop = rows or (0, size)
        for first in range(low, stop, SLICE):
            count = min(SLICE, stop - first) * self.width
            part = np.fromfile(self.files[number], "<u4", count, offset=4 * self.width * first)
            yield int(start) + first, part.reshape(-1, self.width)


def band_hashes(rows: Signatures, settings: Near) -> NDArray[np.uint64]:
    """Return the hash of every band of signatures: (n, bands)."""
    count, width = bands(settings.threshold, settings.permutations)
    parts = rows[:, : count * width].reshape(len(rows), count, width).astype(np.uint64)
    hashes = np.broadcast_to(np.arange(count, dtype=np.uint64), (len(rows), count))
    for column in range(width):
        hashes = mix(hashes ^ parts[:, :, column])
    return hashes
