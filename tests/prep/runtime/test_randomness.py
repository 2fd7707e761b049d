"""Named draws: the same for ever, each its own, and uniform."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalmix.prep.runtime import randomness

words = st.integers(0, 2**64 - 1)
names = st.lists(st.one_of(st.integers(0, 99), st.text(max_size=5)), max_size=4).map(tuple)


DRAWN = [  # of items 0, 1 and 2**64 - 1
    [0.7571709080415072, 0.963063469249461],
    [0.7845363884278136, 0.3091796256445243],
    [0.7273570212186627, 0.8193421254488896],
]


def items(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def test_draws_are_what_they_always_were() -> None:
    found = randomness.draws(7, "fim", "code", 1, items=items(0, 1, 2**64 - 1), count=2)
    assert found.tolist() == DRAWN
    assert randomness.stream(7, "init").integers(0, 2**32, 3).tolist() == [
        2087583319,
        1365151487,
        3046661396,
    ]
    assert randomness.key(7, "fim", 1).hex()[:16] == "8b8700dd0b78d5f0"


@settings(max_examples=100, deadline=None)
@given(values=st.lists(words, min_size=1, max_size=20), name=names, seed=st.integers(0, 99))
def test_a_draw_depends_on_its_own_item_alone(
    values: list[int], name: tuple[randomness.Name, ...], seed: int
) -> None:
    together = randomness.draws(seed, *name, items=items(*values), count=3)
    for value, row in zip(values, together, strict=True):
        assert np.array_equal(randomness.draws(seed, *name, items=items(value), count=3)[0], row)
    backwards = randomness.draws(seed, *name, items=items(*values[::-1]), count=3)
    assert np.array_equal(backwards[::-1], together)


def test_asking_for_more_draws_leaves_the_first_ones_as_they_are() -> None:
    few = randomness.draws(1, "a", items=np.arange(50, dtype=np.uint64), count=2)
    many = randomness.draws(1, "a", items=np.arange(50, dtype=np.uint64), count=9)
    assert np.array_equal(few, many[:, :2])


@settings(max_examples=200, deadline=None)
@given(a=st.tuples(st.integers(0, 3), names), b=st.tuples(st.integers(0, 3), names))
def test_another_seed_or_name_is_another_stream(
    a: tuple[int, tuple[randomness.Name, ...]], b: tuple[int, tuple[randomness.Name, ...]]
) -> None:
    one, other = (randomness.draws(seed, *name, items=items(5), count=2) for seed, name in (a, b))
    assert np.array_equal(one, other) == (a == b)
    drawn = [randomness.stream(seed, *name).random() for seed, name in (a, b)]
    assert (drawn[0] == drawn[1]) == (a == b)


def test_a_number_and_its_spelling_are_different_names() -> None:
    assert randomness.key(1, "epoch", 2) != randomness.key(1, "epoch", "2")


@pytest.mark.parametrize("step", [1, 2**20, 2**44, 0x9E3779B97F4A7C15])
def test_draws_of_numbered_items_are_uniform_and_independent(step: int) -> None:
    count = 40_000
    numbered = np.arange(count, dtype=np.uint64) * np.uint64(step)
    u = randomness.draws(3, "uniform", items=numbered, count=4)
    assert u.shape == (count, 4)
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        counts = np.bincount((column * 50).astype(int), minlength=50)
        chi = float(((counts - count / 50) ** 2 / (count / 50)).sum())
        assert chi < 100, chi  # 49 degrees of freedom: one in 20,000 by chance, and fixed
    told = np.corrcoef(np.vstack([u.T, np.roll(u, 1, axis=0).T]))
    assert np.abs(told - np.eye(8)).max() < 0.025


def test_no_items_give_no_draws() -> None:
    assert randomness.draws(1, "x", items=items(), count=4).shape == (0, 4)


@given(item=st.integers(0, 2**64 - 1), seed=st.integers(0, 99), count=st.integers(1, 6))
def test_one_item_alone_draws_the_same_numbers(item: int, seed: int, count: int) -> None:
    items = np.array([item], dtype=np.uint64)
    wanted = randomness.draws(seed, "fim", "code", 1, items=items, count=count)[0].tolist()
    assert randomness.Drawer(seed, "fim", "code", 1)(item, count) == wanted
