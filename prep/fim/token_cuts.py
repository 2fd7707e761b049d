"""FIM cuts between the tokens of rows: all segments of a block at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.fim.segments import (
    LEFT_TO_RIGHT,
    PSM,
    Ints,
    Permuted,
    Plans,
    Runs,
    Segments,
    Sentinels,
)

RUNS = 8  # of a segment: head, PRE, prefix, SUF, suffix, MID, (prefix and) middle, tail


def permute(
    segments: Segments, bodies: tuple[Ints, Ints], plans: Plans, marks: Sentinels
) -> Permuted:
    """Permute segments whose plans count tokens of their bodies [start, stop)."""
    low, high = bodies
    count, size = len(low), len(segments.ids)
    permuted = plans.form != LEFT_TO_RIGHT
    first = np.where(permuted, low + plans.first, high)
    second = np.where(permuted, low + plans.second, high)
    in_front = np.where((plans.form == PSM) | ~permuted, first, low)  # SPM: prefix with the middle
    starts = np.empty((count, RUNS), dtype=np.int64)
    stops = np.empty((count, RUNS), dtype=np.int64)
    for i, (start, stop) in enumerate(
        (
            (segments.start, low),
            (size, size + permuted),
            (low, in_front),
            (size + 2, size + 2 + permuted),
            (second, high),
            (size + 1, size + 1 + permuted),
            (in_front, second),
            (high, segments.stop),
        )
    ):
        starts[:, i], stops[:, i] = start, stop
    lengths = stops - starts
    sentinels = np.array([marks.prefix, marks.middle, marks.suffix], dtype=np.int32)
    source = np.concatenate([segments.ids, sentinels])
    runs = Runs(source, starts.ravel(), lengths.ravel(), segments.ends * RUNS)
    total = lengths.sum(axis=1)
    counted = second - first + segments.stop - high  # the middle and the tail
    return Permuted(runs, plans, total, np.where(permuted, total - counted, 0))


def plan(rates: tuple[float, float], draws: NDArray[np.float64], lengths: Ints) -> Plans:
    """Turn draws into plans for segments of `lengths` units; rates: of FIM, and of SPM in it.

    draws: (n, 4) in [0, 1): whether, two cuts uniform over the length + 1 places, which form.
    """
    rate, spm = rates
    permuted = (draws[:, 0] < rate) & (lengths > 0)
    cuts = np.floor(draws[:, 1:3] * (lengths[:, None] + 1)).astype(np.int64)
    cuts.sort(axis=1)
    form = np.where(draws[:, 3] < spm, PSM + 1, PSM)
    return Plans(
        np.where(permuted, form, LEFT_TO_RIGHT).astype(np.int8),
        np.where(permuted, cuts[:, 0], -1),
        np.where(permuted, cuts[:, 1], -1),
    )
