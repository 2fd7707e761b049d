"""Sampling: by the text alone, in the share that was asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters import sample

GOLDEN = [3, 4, 8, 12, 15, 16, 18, 19, 20, 21, 31]
DIGESTS = np.random.Generator(np.random.Philox(5)).integers(0, 2**63, 100_000).astype(np.uint64)


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(50)), st.floats(0.01, 1))
def test_a_text_is_chosen_or_not_wherever_it_stands(order: list[int], rate: float) -> None:
    some = DIGESTS[:50]
    chosen = sample.chosen(some, rate, 3, "web")
    assert sample.chosen(some[order], rate, 3, "web").tolist() == chosen[order].tolist()
    assert sample.chosen(some[:7], rate, 3, "web").tolist() == chosen[:7].tolist()


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.97])
def test_the_share_is_what_was_asked(rate: float) -> None:
    got = sample.chosen(DIGESTS, rate, 1, "web").mean()
    assert abs(got - rate) < 5 * np.sqrt(rate * (1 - rate) / len(DIGESTS))


def test_a_larger_sample_keeps_a_smaller_one() -> None:
    less, more = (sample.chosen(DIGESTS, rate, 1, "web") for rate in (0.2, 0.3))
    assert not (less & ~more).any()
    assert sample.chosen(DIGESTS, 1.0, 1, "web").all()


def test_seed_and_source_draw_anew() -> None:
    first = sample.chosen(DIGESTS, 0.5, 1, "web")
    for seed, name in ((2, "web"), (1, "book")):
        both = (sample.chosen(DIGESTS, 0.5, seed, name) & first).mean()
        assert abs(both - 0.25) < 0.01


def test_the_choice_is_the_same_for_ever() -> None:
    assert np.flatnonzero(sample.chosen(DIGESTS[:40], 0.2, 1, "web")).tolist() == GOLDEN
