"""Sampling: a share of a source's documents, chosen by their texts alone."""

import numpy as np
from numpy.typing import NDArray

from prep import seeds


def chosen(digests: NDArray[np.uint64], rate: float, seed: int, source: str) -> NDArray[np.bool_]:
    """Tell for each document whether a sample of `rate` keeps it.

    digests: (n,) the low 64 bits of each text's digest. Equal texts are chosen alike, whichever
    file they are in, and a higher rate keeps all that a lower one keeps.
    """
    return seeds.draws(seed, "sample", source, items=digests, count=1)[:, 0] < rate
