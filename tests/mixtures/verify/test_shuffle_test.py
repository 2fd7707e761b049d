"""Randomness: a shuffle that did nothing is told, an honest one is not; equal rows are counted."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.mixtures.verify import shuffle_test as randomness
from crystalmix.mixtures.verify.shuffle_test import DEVIATIONS, ascents, repeated, sampled


@given(numbers=st.lists(st.integers(0, 50), max_size=60), cut=st.integers(1, 9))
def test_ascents_are_counted_over_the_ends_of_parts(numbers: list[int], cut: int) -> None:
    parts = [np.array(numbers[i : i + cut], np.int64) for i in range(0, len(numbers), cut)]
    pairs = list(pairwise(numbers))
    assert ascents(parts) == (len(numbers), sum(a < b for a, b in pairs))


def test_permutations_of_a_thousand_generators_stay_within_the_bound() -> None:
    n, worst = 400, 0.0
    for seed in range(1000):
        _, up = ascents([np.random.default_rng(seed).permutation(n)])
        worst = max(worst, abs(up - (n - 1) / 2) / ((n + 1) / 12) ** 0.5)
    assert 2 < worst < DEVIATIONS


@given(values=st.lists(st.integers(0, 20), max_size=60), cut=st.integers(1, 9))
def test_repeats_are_what_is_left_when_each_row_is_taken_once(values: list[int], cut: int) -> None:
    parts = [np.array(values[i : i + cut], np.uint64) for i in range(0, len(values), cut)]
    assert repeated(parts) == (len(values), len(values) - len(set(values)))


def test_of_many_rows_a_share_is_looked_at_chosen_by_value() -> None:
    hashes = np.arange(10_000, dtype=np.uint64)
    assert len(sampled(hashes, 10_000)) == 10_000
    kept = sampled(hashes, 3 * randomness.MOST_HASHES)
    assert kept.tolist() == list(range(0, 10_000, 3))
