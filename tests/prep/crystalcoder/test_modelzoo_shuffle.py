"""The original's shuffle, replayed: every row once, and as its own draws would have it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.crystalcoder.modelzoo_shuffle import ZooShuffleSettings, order

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=7)


@given(rows=sizes, chunks=st.integers(1, 6), workers=st.integers(1, 4))
def test_every_row_goes_to_one_shard_once(rows: list[int], chunks: int, workers: int) -> None:
    told = order(rows, ZooShuffleSettings(chunks, workers))
    assert len(told) == chunks
    assert sorted(np.concatenate(told).tolist()) == list(range(sum(rows)))


@given(rows=sizes, chunks=st.integers(1, 6))
def test_one_worker_draws_as_a_loop_over_rows_and_files_would(rows: list[int], chunks: int) -> None:
    draws = np.random.RandomState(115)
    piles: list[dict[int, list[int]]] = [{} for _ in range(chunks)]
    first = 0
    for count in rows:
        places = draws.choice(chunks, size=count).tolist()
        for chunk in range(chunks):
            here = [first + i for i, place in enumerate(places) if place == chunk]
            if here:
                piles[chunk][int(draws.randint(2**48))] = here
        first += count
    for pile, told in zip(piles, order(rows, ZooShuffleSettings(chunks)), strict=True):
        joined = [row for name in sorted(pile) for row in pile[name]]
        draws.shuffle(joined)
        assert told.tolist() == joined


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    order([9, 9], ZooShuffleSettings(3))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002


def test_settings_refuse_what_can_not_be() -> None:
    with pytest.raises(ValueError, match="chunks: must be positive, got 0"):
        ZooShuffleSettings(0)
    with pytest.raises(ValueError, match="workers: must be positive, got -1"):
        ZooShuffleSettings(1, -1)
    with pytest.raises(ValueError, match=r"seed: must lie in \[0, 2\*\*32 - workers\], got -5"):
        ZooShuffleSettings(1, 1, -5)
