"""The interleaving of parts: shares within the bound, inverses, golden vectors."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.manifest.exact_order import LIMIT, PREFIX_BOUND, Interleave

BOUND = Fraction(str(PREFIX_BOUND))


def fibonacci(count: int) -> list[int]:
    numbers = [1, 1]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:count]


# Found by a search of minutes: after WORST_AT positions the first part is 1.569 rows astray.
WORST = [3000, 46, 3046, 3069, 6168, 9251, 15500, 24862, 40481, 65444, 106072, 171622, 277751]
WORST_AT = 466_188

ADVERSARIAL = {
    "fibonacci": fibonacci(40),
    "fibonacci, the first part dwarfed": [10**6 * w for w in fibonacci(20)] + [1],
    "nearly fibonacci": [10**6 * w + 7 * i * i for i, w in enumerate(fibonacci(24))],
    "the worst of a long search": WORST,
    "powers of two": [2**i for i in range(40)],
    "powers of three": [3**i for i in range(38)],
    "equal": [1] * 40,
    "equal and huge": [LIMIT // 40] * 39,
    "one giant": [10**6] + [1] * 39,
    "two, as unequal as can be": [1, LIMIT - 2],
    "one part": [5],
    "halves": [1, 1],
}

weights_st = st.one_of(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=40),
    st.lists(st.integers(0, 60), min_size=1, max_size=40).map(
        lambda powers: [int(1.25**power) for power in powers]
    ),
    st.lists(st.integers(1, 4), min_size=1, max_size=40),
)


def naive(weights: list[int], position: int) -> tuple[int, int]:
    """Return (part, draw) by the definition: walk down, one position at a time."""
    nodes = [(weight, number, number) for number, weight in enumerate(weights)]
    children: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
    root = 0
    while len(nodes) > 1:
        nodes.sort(key=lambda node: node[:2])
        (a, _, left), (b, _, right) = nodes[:2]
        root = len(weights) + len(children)
        children[root] = ((a, left), (b, right))
        nodes = [*nodes[2:], (a + b, root, root)]
    node = root
    while node in children:
        (a, left), (b, right) = children[node]

        def to_left(n: int, a: int = a, s: int = a + b) -> int:
            return (n * a + s // 2) // s

        if to_left(position + 1) > to_left(position):
            node, position = left, to_left(position)
        else:
            node, position = right, position - to_left(position)
    return node, position


def within_bound(weights: list[int], start: int, length: int) -> None:
    """Check every prefix from `start` to `start + length` against every part's exact share."""
    interleave = Interleave(weights)
    total = sum(weights)
    part, _ = interleave.assign(start, start + length)
    before = interleave.counts(start)
    for at, weight in enumerate(weights):
        # total * count - position * weight, as Python ints: exact whatever the weights
        error = total * before[at] - start * weight
        step = np.where(part == at, total - weight, -weight).astype(object)
        errors = [error, *(error + np.cumsum(step)).tolist()] if length else [error]
        assert max(map(abs, errors)) <= BOUND * total


@settings(max_examples=200, deadline=None)
@given(weights=weights_st, start=st.integers(0, 10**9))
def test_every_prefix_is_within_the_bound_of_every_exact_share(
    weights: list[int], start: int
) -> None:
    within_bound(weights, 0, 400)
    within_bound(weights, start, 400)


@pytest.mark.parametrize("weights", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_adversarial_mixtures_keep_the_bound(weights: list[int]) -> None:
    within_bound(weights, 0, 2000)
    within_bound(weights, sum(weights) // 2 - min(500, sum(weights) // 2), 1000)


def test_the_bound_follows_from_the_reciprocal_fibonacci_constant() -> None:
    half = sum((Fraction(1, number) for number in fibonacci(60)), Fraction(0)) / 2
    assert Fraction("1.6799") < half < BOUND < 2


def test_the_bound_is_nearly_met() -> None:
    share = Fraction(WORST_AT * WORST[0], sum(WORST))
    assert Fraction("1.56") < abs(Interleave(WORST).counts(WORST_AT)[0] - share) < BOUND


@settings(max_examples=80, deadline=None)
@given(weights=weights_st, position=st.integers(0, LIMIT - 1))
def test_counts_sum_to_the_position(weights: list[int], position: int) -> None:
    assert sum(Interleave(weights).counts(position)) == position


@settings(max_examples=150, deadline=None)
@given(weights=weights_st, start=st.one_of(st.just(0), st.integers(0, LIMIT - 100)))
def test_assign_is_the_naive_definition_and_position_its_inverse(
    weights: list[int], start: int
) -> None:
    interleave = Interleave(weights)
    part, draw = interleave.assign(start, start + 40)
    for slot, (at, number) in enumerate(zip(part.tolist(), draw.tolist(), strict=True)):
        assert (at, number) == naive(weights, start + slot)
        assert interleave.position(at, number) == start + slot


@pytest.mark.parametrize("weights", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
@pytest.mark.parametrize("start", [0, 680_000_000, LIMIT - 201])
def test_adversarial_mixtures_are_exact_at_any_position(weights: list[int], start: int) -> None:
    interleave = Interleave(weights)
    part, draw = interleave.assign(start, start + 200)
    for slot in range(0, 200, 7):
        at, number = int(part[slot]), int(draw[slot])
        assert (at, number) == naive(weights, start + slot)
        assert interleave.position(at, number) == start + slot


@settings(max_examples=60, deadline=None)
@given(weights=weights_st, start=st.integers(0, 10**12), size=st.integers(0, 400))
def test_counts_are_what_assign_gives(weights: list[int], start: int, size: int) -> None:
    interleave = Interleave(weights)
    part, draw = interleave.assign(start, start + size)
    before, after = interleave.counts(start), interleave.counts(start + size)
    for at in range(len(weights)):
        assert draw[part == at].tolist() == list(range(before[at], after[at]))


@settings(max_examples=40, deadline=None)
@given(weights=weights_st, scale=st.integers(2, 10**6))
def test_only_the_proportions_of_the_weights_matter(weights: list[int], scale: int) -> None:
    part, draw = Interleave(weights).assign(0, 200)
    again = Interleave([weight * scale for weight in weights]).assign(0, 200)
    assert np.array_equal(part, again[0])
    assert np.array_equal(draw, again[1])


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_after_as_many_positions_as_the_weights_sum_to_every_share_is_met(
    weights: list[int],
) -> None:
    assert Interleave(weights).counts(sum(weights)) == weights


def test_weights_that_are_not_positive_integers_are_refused() -> None:
    for weights in ([], [1, 0], [3, -1]):
        with pytest.raises(ValueError, match="positive integers"):
            Interleave(weights)
    with pytest.raises(TypeError, match="integer"):
        Interleave([1.5, 2.5])  # type: ignore[list-item]


def test_weights_whose_sum_is_too_large_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=rf"less than 2\*\*62, got {LIMIT}, .* fewer digits"):
        Interleave([1, LIMIT - 1])


def test_positions_and_draws_out_of_range_are_refused() -> None:
    interleave = Interleave([1, 2])
    for start, stop in ((-1, 5), (5, 4), (0, LIMIT)):
        with pytest.raises(ValueError, match=f"start {start}, stop {stop}"):
            interleave.assign(start, stop)
    for part, draw in ((2, 0), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"got part {part}, draw {draw}"):
            interleave.position(part, draw)


def test_the_interleaving_gives_its_golden_vectors() -> None:
    part, draw = Interleave(fibonacci(12)).assign(1000, 1015)
    assert part.tolist() == [9, 11, 8, 11, 10, 5, 11, 10, 9, 11, 8, 11, 10, 7, 11]
    assert draw.tolist() == [
        146, 383, 90, 384, 237, 21, 385, 238, 147, 386, 91, 387, 239, 56, 388,
    ]  # fmt: skip
