"""Sampling: a share of the documents, or the side of a split, chosen by their texts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def chosen(digests: NDArray[np.uint64], rate: float, seed: int, source: str) -> NDArray[np.bool_]:
    """Tell for each document whether a sample of `rate` keeps it.

    digests: (n,) the low 64 bits of each text's digest. Equal texts are chosen alike, whichever
    file they are in, and a higher rate keeps all that a lower one keeps.
    """
    return randomness.draws(seed, "sample", source, items=digests, count=1)[:, 0] < rate


@frozen
class Split:
    """One side of a split of all documents: `valid` has a share of them, `train` the others.

    A document's side depends on its text and the seed alone, so equal texts are on one side,
    whatever source they are of, and nothing that is validated on was trained on.
    """

    seed: int
    share: float
    side: Literal["train", "valid"]

    def takes(self, digest: int) -> bool:
        """Tell whether a document, by the low 64 bits of its digest, is on this side."""
        return bool(self.taken(np.array([digest], dtype=np.uint64))[0])

    def taken(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell of many documents whether they are on this side: (n,)."""
        drawn = randomness.draws(self.seed, "split", items=digests, count=1)[:, 0]
        return (drawn < self.share) == (self.side == "valid")
