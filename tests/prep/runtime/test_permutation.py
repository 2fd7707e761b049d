"""The keyed permutation: a bijection, its inverse, uniform enough, the same for ever."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalmix.prep.runtime.permutation import LARGEST, VERSION, Permutation, forward_each

keys = st.binary(max_size=100)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def shuffles(n: int, trials: int) -> NDArray[np.int64]:
    """Return the permutations of range(n) by `trials` keys: (trials, n)."""
    walks = [Permutation(n, b"%d" % trial) for trial in range(trials)]
    which, index = np.divmod(np.arange(trials * n), n)
    return forward_each(walks, which, index).reshape(trials, n)


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), key=keys)
def test_every_item_occurs_exactly_once_and_inverse_undoes_forward(n: int, key: bytes) -> None:
    permutation = Permutation(n, key)
    index = np.arange(n, dtype=np.int64)
    items = permutation.forward(index)
    assert items.dtype == np.int64
    assert np.array_equal(np.sort(items), index)
    assert np.array_equal(permutation.inverse(items), index)
    assert np.array_equal(permutation.forward(permutation.inverse(index)), index)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_inverse_holds_at_any_scale(data: st.DataObject) -> None:
    n = data.draw(st.one_of(st.integers(1, LARGEST), st.integers(LARGEST - 3, LARGEST)))
    index = ints(*data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=40)), 0, n - 1)
    permutation = Permutation(n, data.draw(keys))
    items = permutation.forward(index)
    assert items.min() >= 0
    assert items.max() < n
    assert np.array_equal(permutation.inverse(items), index)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 8, 9, 10, 15, 16, 17, 999_999, 1_000_000])
def test_squares_and_their_neighbours_are_permuted_too(n: int) -> None:
    items = Permutation(n, b"edge").forward(np.arange(n))
    assert np.array_equal(np.sort(items), np.arange(n))


def test_the_shape_asked_is_the_shape_given() -> None:
    permutation = Permutation(100, b"shape")
    index = np.arange(24).reshape(2, 3, 4)
    assert permutation.forward(index).shape == (2, 3, 4)
    assert np.array_equal(permutation.inverse(permutation.forward(index)), index)
    assert permutation.forward(np.array(7)).shape == ()
    assert permutation.forward(ints()).tolist() == []


def test_the_input_is_left_as_it_was() -> None:
    index = np.arange(1000)
    Permutation(1000, b"pure").forward(index)
    assert np.array_equal(index, np.arange(1000))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=8), key=keys, seed=st.integers(0, 99)
)
def test_one_pass_over_many_permutations_equals_each_on_its_own(
    sizes: list[int], key: bytes, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    walks = [Permutation(n, key + bytes([at])) for at, n in enumerate(sizes)]
    which = rng.integers(0, len(walks), 50)
    index = rng.integers(0, np.array(sizes)[which])
    alone = [int(walks[w].forward(ints(i))[0]) for w, i in zip(which, index, strict=True)]
    assert forward_each(walks, which, index).tolist() == alone


def test_no_permutations_give_no_items() -> None:
    assert forward_each([], ints(), ints()).tolist() == []


@pytest.mark.parametrize("n", range(1, 51))
def test_small_ranges_reach_every_item_at_every_index_about_equally(n: int) -> None:
    trials = 500
    items = shuffles(n, trials)
    seen = np.stack([np.bincount(at_index, minlength=n) for at_index in items.T])
    assert seen[0].min() > 0
    # chi-square of each index has mean n - 1 and deviation sqrt(2 (n - 1))
    chi = ((seen - trials / n) ** 2 / (trials / n)).sum(axis=1)
    assert chi.max() <= (n - 1) + 6 * np.sqrt(2 * (n - 1)) + 1e-9
    assert abs(chi.mean() - (n - 1)) <= 4 * np.sqrt(2 * (n - 1) / n) + 1e-9


@pytest.mark.parametrize("n", [3, 4, 5])
def test_tiny_ranges_come_in_every_order(n: int) -> None:
    orders = {tuple(order) for order in shuffles(n, 1500).tolist()}
    assert orders == set(permutations(range(n)))


def test_a_large_range_is_spread_evenly_and_neighbours_part() -> None:
    n, m = 100_000_000, 100_000
    items = Permutation(n, b"large").forward(np.arange(m))
    seen = np.bincount(items // (n // 100), minlength=100)
    chi = float(((seen - m / 100) ** 2 / (m / 100)).sum())
    assert chi < 99 + 5 * np.sqrt(2 * 99)
    gaps = np.abs(np.diff(items)) / n  # of two uniform numbers: mean 1/3, deviation 0.236
    assert abs(gaps.mean() - 1 / 3) < 5 * 0.236 / np.sqrt(m)
    steps = np.diff(items)
    assert len(np.unique(steps)) > 0.99 * len(steps)


def test_keys_that_differ_in_one_bit_give_unrelated_orders() -> None:
    index = np.arange(10_000)
    one, two = (Permutation(10_000, key).forward(index) for key in (b"\x00", b"\x01"))
    assert np.count_nonzero(one == two) < 10  # one is expected
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


@pytest.mark.parametrize("n", [0, -3, LARGEST + 1])
def test_a_size_out_of_range_is_refused_by_value(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n must lie in \[1, 2\*\*40\], got {n}"):
        Permutation(n, b"")


@pytest.mark.parametrize("index", [-1, 10, -(2**63), 2**63 - 1])
def test_an_index_out_of_range_is_refused_by_value(index: int) -> None:
    permutation = Permutation(10, b"")
    with pytest.raises(ValueError, match=rf"must lie in \[0, 10\), got {index}"):
        permutation.forward(ints(3, index))
    with pytest.raises(ValueError, match=rf"must lie in \[0, 10\), got {index}"):
        permutation.inverse(ints(3, index))


# Golden vectors of version 1: a change of algorithm is a new version, never an edit.
# The first items of small ranges, the last ones of large ranges.
GOLDEN = {
    (1, b""): [0],
    (2, b"a"): [0, 1],
    (7, b"key"): [6, 2, 0, 3, 4, 1, 5],
    (50, b"key"): [40, 3, 9, 25, 36, 43, 8, 20, 48, 6, 33, 31],
    (1_000_000, b"crystal"): [912537, 323396, 274095, 81475, 207163, 488575],
    (680_000_000, b"crystal"): [470621959, 107461155, 358340020, 483613948, 352933004, 622437358],
    (2**40, b""): [637371683019, 296687960820, 777139387077, 120555337994, 438103066680],
}


def test_version_1_gives_its_golden_vectors() -> None:
    assert VERSION == 1
    for (n, key), items in GOLDEN.items():
        index = np.arange(len(items)) if n < 100 else np.arange(n - len(items), n)
        assert Permutation(n, key).forward(index).tolist() == items, (n, key)
