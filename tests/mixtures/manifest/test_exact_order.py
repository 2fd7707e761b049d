"""The exact order: inverses, independence of parts, golden vectors and speed."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.manifest.exact_order import (
    VERSION,
    Order,
    OrderPart,
    Refs,
    integer_weights,
)

Triple = tuple[int, int, int]


def triples(refs: Refs) -> list[Triple]:
    return list(zip(refs.part.tolist(), refs.epoch.tolist(), refs.row.tolist(), strict=True))


def sequences(order: Order, stop: int) -> dict[str, list[tuple[int, int]]]:
    """Return each part's (epoch, row) in the order they are consumed, by name."""
    found: dict[str, list[tuple[int, int]]] = {part.name: [] for part in order.parts}
    for part, epoch, row in triples(order.refs(0, stop)):
        found[order.parts[part].name].append((epoch, row))
    return found


@st.composite
def mixtures(draw: st.DrawFn, low: int = 1) -> list[OrderPart]:
    """Draw parts with few rows, so that epochs pass, and weights and digests that often agree."""
    each = st.tuples(st.integers(1, 6), st.integers(1, 60), st.integers(0, 3))
    shape = draw(st.lists(each, min_size=low, max_size=8))
    return [
        OrderPart(f"part{at}", weight, rows, f"digest{digest}")
        for at, (weight, rows, digest) in enumerate(shape)
    ]


@settings(max_examples=40, deadline=None)
@given(parts=mixtures(), seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 250), max_size=6))
def test_any_chunking_gives_the_same_refs(
    parts: list[OrderPart], seed: int, cuts: list[int]
) -> None:
    order = Order(parts, seed)
    edges = sorted({0, 250, *cuts})
    pieces = [ref for start, stop in pairwise(edges) for ref in triples(order.refs(start, stop))]
    assert pieces == triples(order.refs(0, 250))
    assert pieces == triples(order.refs(0, 600))[:250]  # the horizon does not matter


@settings(max_examples=40, deadline=None)
@given(parts=mixtures(), seed=st.integers(0, 2**32))
def test_every_epoch_of_a_part_takes_every_row_once(parts: list[OrderPart], seed: int) -> None:
    order = Order(parts, seed)
    for part in parts:
        sequence = sequences(order, 400)[part.name]
        for at in range(0, len(sequence) - part.rows + 1, part.rows):
            epochs, rows = zip(*sequence[at : at + part.rows], strict=True)
            assert set(epochs) == {at // part.rows}
            assert sorted(rows) == list(range(part.rows))


@settings(max_examples=30, deadline=None)
@given(parts=mixtures(), seed=st.integers(0, 2**32), stop=st.integers(0, 150))
def test_draws_of_many_rows_are_those_of_each(parts: list[OrderPart], seed: int, stop: int) -> None:
    order = Order(parts, seed)
    refs = triples(order.refs(0, stop))
    for at, part in enumerate(parts):
        rows = np.arange(part.rows)[::-1].copy()
        which, epoch, position = order.draws_of(at, rows, stop)
        pairs = zip(rows[which].tolist(), epoch.tolist(), position.tolist(), strict=True)
        expected = [(ref[2], ref[1], p) for p, ref in enumerate(refs) if ref[0] == at]
        assert sorted(pairs) == sorted(expected)


@settings(max_examples=30, deadline=None)
@given(parts=mixtures(), seed=st.integers(0, 2**32), stop=st.integers(0, 150))
def test_positions_lists_where_refs_takes_a_row(
    parts: list[OrderPart], seed: int, stop: int
) -> None:
    order = Order(parts, seed)
    refs = triples(order.refs(0, stop))
    assert order.counts(stop) == [sum(ref[0] == at for ref in refs) for at in range(len(parts))]
    for at, part in enumerate(parts[:3]):
        for row in range(0, part.rows, 5):
            wanted = [n for n, ref in enumerate(refs) if (ref[0], ref[2]) == (at, row)]
            assert order.positions(at, row, stop) == wanted


@settings(max_examples=40, deadline=None)
@given(parts=mixtures(), seed=st.integers(0, 2**32), data=st.data())
def test_listing_the_parts_otherwise_only_relabels_them(
    parts: list[OrderPart], seed: int, data: st.DataObject
) -> None:
    listed = data.draw(st.permutations(range(len(parts))))
    order, other = Order(parts, seed), Order([parts[at] for at in listed], seed)
    relabelled = [(listed[part], epoch, row) for part, epoch, row in triples(other.refs(0, 200))]
    assert relabelled == triples(order.refs(0, 200))
    assert [other.counts(200)[listed.index(at)] for at in range(len(parts))] == order.counts(200)


@settings(max_examples=40, deadline=None)
@given(parts=mixtures(low=2), seed=st.integers(0, 2**32), data=st.data())
def test_removing_a_part_leaves_the_sequence_of_every_other(
    parts: list[OrderPart], seed: int, data: st.DataObject
) -> None:
    gone = data.draw(st.integers(0, len(parts) - 1))
    before = sequences(Order(parts, seed), 300)
    after = sequences(Order(parts[:gone] + parts[gone + 1 :], seed), 300)
    for name, sequence in after.items():
        shared = min(len(sequence), len(before[name]))
        assert sequence[:shared] == before[name][:shared]


def test_name_and_weight_leave_a_sequence_and_seed_and_digest_change_it() -> None:
    part, rest = OrderPart("code", 3, 1000, "d1"), OrderPart("text", 5, 1000, "d2")

    def rows(part: OrderPart, seed: int = 1) -> list[tuple[int, int]]:
        return sequences(Order([rest, part], seed), 400)[part.name][:80]

    assert rows(replace(part, name="zzz")) == rows(part)
    assert rows(replace(part, weight=50)) == rows(part)
    assert rows(replace(part, digest="d3")) != rows(part)
    assert rows(part, seed=2) != rows(part)


def test_epochs_come_in_different_orders() -> None:
    refs = Order([OrderPart("only", 1, 1000, "d")], 1).refs(0, 2000)
    assert refs.epoch.tolist() == [0] * 1000 + [1] * 1000
    assert np.count_nonzero(refs.row[:1000] == refs.row[1000:]) < 10


def test_two_parts_of_one_digest_walk_through_the_same_rows() -> None:
    found = sequences(Order([OrderPart("a", 1, 50, "d"), OrderPart("b", 1, 50, "d")], 1), 200)
    assert found["a"] == found["b"]


def test_parts_that_can_not_be_ordered_are_refused() -> None:
    part = OrderPart("a", 1, 10, "d")
    with pytest.raises(ValueError, match=r"distinct names, got \['a'\]"):
        Order([part, part], 0)
    with pytest.raises(ValueError, match="part a: rows must be positive, got 0"):
        Order([replace(part, rows=0)], 0)
    with pytest.raises(ValueError, match="positive integers"):
        Order([], 0)


def test_a_row_that_is_not_there_is_refused() -> None:
    order = Order([OrderPart("a", 1, 10, "d")], 0)
    for part, row in ((1, 0), (-1, 0), (0, 10), (0, -1)):
        with pytest.raises(ValueError, match=f"no row {row} of a part {part}"):
            order.positions(part, row, 100)


def test_numbers_of_numpy_do_as_well_as_those_of_python() -> None:
    parts = [OrderPart("a", 10**12 + 1, 10**8, "d"), OrderPart("b", 10**12 + 39, 10**8, "e")]
    order, start = Order(parts, 7), 680_000_000
    refs = order.refs(start, start + 50)
    many = Order([replace(part, weight=np.int64(part.weight)) for part in parts], np.int64(7))  # type: ignore[arg-type]
    again = many.refs(np.int64(start), np.int64(start + 50))  # type: ignore[arg-type]
    assert triples(again) == triples(refs)
    found = many.positions(refs.part[9], refs.row[9], np.int64(start + 50))  # type: ignore[arg-type]
    assert start + 9 in found


# ---------------------------------------------------------------------------- weights


@settings(max_examples=80, deadline=None)
@given(st.lists(st.decimals("0.000001", 1, places=6), min_size=1, max_size=40))
def test_integer_weights_keep_the_exact_proportions(weights: list[object]) -> None:
    exact = [Fraction(str(weight)) for weight in weights]
    assume(min(exact) > 0)
    whole = integer_weights(exact)
    assert all(w * exact[0] == whole[0] * e for w, e in zip(whole, exact, strict=True))
    assert np.gcd.reduce(whole) == 1


def test_integer_weights_refuses_what_it_can_not_keep() -> None:
    with pytest.raises(ValueError, match="fewer digits"):
        integer_weights([Fraction(1, 3**40), Fraction(1, 2**60)])
    with pytest.raises(ValueError, match=r"not be negative, nor all 0, got \['-1', '1/2'\]"):
        integer_weights([Fraction(-1), Fraction(1, 2)])
    for nothing in ([], [Fraction(0)]):
        with pytest.raises(ValueError, match="nor all 0"):
            integer_weights(nothing)
    assert integer_weights([Fraction(0), Fraction(1, 2)]) == [0, 1]


# ---------------------------------------------------------------------------- golden

# Golden vectors of exact-1: a change of algorithm is a new version, never an edit.
GOLDEN_PARTS = [
    OrderPart("code", 63, 1_000_000, "c0de"),
    OrderPart("text", 37, 5, "7e87"),
    OrderPart("docs", 11, 17, "d0c5"),
]


def test_exact_1_gives_its_golden_vectors() -> None:
    assert VERSION == "exact-1"
    order = Order(GOLDEN_PARTS, 2023)
    assert triples(order.refs(0, 24)) == [
        (0, 0, 815080), (1, 0, 1), (0, 0, 419993), (1, 0, 3), (0, 0, 420671), (2, 0, 5),
        (0, 0, 638871), (0, 0, 213340), (1, 0, 4), (0, 0, 343894), (1, 0, 0), (0, 0, 599709),
        (1, 0, 2), (0, 0, 231270), (0, 0, 802914), (2, 0, 13), (0, 0, 491100), (1, 1, 0),
        (0, 0, 412047), (1, 1, 4), (0, 0, 418879), (1, 1, 3), (0, 0, 634142), (0, 0, 519533),
    ]  # fmt: skip
    assert triples(order.refs(680_000_000, 680_000_004)) == [
        (0, 385, 958929), (2, 3963963, 2), (0, 385, 323104), (1, 45333333, 2),
    ]  # fmt: skip
    assert order.counts(680_000_000) == [385945946, 226666667, 67387387]
    assert order.positions(1, 3, 60) == [3, 21, 38, 47]


# ---------------------------------------------------------------------------- speed


def fastest(call: Callable[[], object], times: int = 7) -> float:
    """Return the milliseconds of the fastest call: the cost of the code, not of its neighbours."""
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begun)
    return best * 1000


def crystal() -> Order:
    rng = np.random.default_rng(0)
    weights = integer_weights([Fraction(int(w), 10**6) for w in rng.integers(1, 10**6, 40)])
    rows = rng.integers(10**6, 10**8, 40).tolist()
    return Order([OrderPart(f"p{i}", weights[i], rows[i], f"d{i}") for i in range(40)], 1)


def test_a_step_late_in_a_long_run_comes_at_once() -> None:
    order, start = crystal(), 680_000_000
    assert fastest(lambda: order.refs(start, start + 2112)) < 50  # measured: 2 ms


def test_where_a_row_was_consumed_is_found_at_once() -> None:
    order, stop = crystal(), 680_000_000
    refs = order.refs(stop - 100, stop)
    late = int(np.argmax(refs.epoch))
    part, row = int(refs.part[late]), int(refs.row[late])
    assert order.positions(part, row, stop)[-1] == stop - 100 + late
    assert fastest(lambda: order.positions(part, row, stop)) < 50  # measured: 2 ms


@settings(max_examples=60, deadline=None)
@given(parts=mixtures(), seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 150), max_size=4))
def test_phases_that_go_on_read_a_prefix_of_each_walk(
    parts: list[OrderPart], seed: int, cuts: list[int]
) -> None:
    """No row comes again before all came; oracle: one part alone, whose walk is no mixture."""
    taken: dict[str, list[tuple[int, int]]] = {part.name: [] for part in parts}
    for turn, stop in enumerate(cuts):
        weights = [1 + (part.weight + turn * at) % 5 for at, part in enumerate(parts)]
        phase = [
            replace(part, weight=weight, start=len(taken[part.name]))
            for part, weight in zip(parts, weights, strict=True)
        ]
        order = Order(phase, seed)
        for name, read in sequences(order, stop).items():
            taken[name] += read
        assert order.counts(stop) == [
            len(taken[part.name]) - part.start for part in phase
        ]  # conserved
    for part in parts:
        alone = Order([replace(part, weight=1)], seed)
        read = taken[part.name]
        assert read == [(epoch, row) for _, epoch, row in triples(alone.refs(0, len(read)))]
        times = Counter(row for _, row in read)
        assert len(times) == min(len(read), part.rows)
        assert max(times.values(), default=0) - min(times.values(), default=0) <= 1 + (
            len(times) < part.rows
        )


@settings(max_examples=60, deadline=None)
@given(parts=mixtures(), starts=st.lists(st.integers(0, 300), min_size=8, max_size=8))
def test_a_late_start_is_obeyed_both_ways(parts: list[OrderPart], starts: list[int]) -> None:
    late = [replace(part, start=start) for part, start in zip(parts, starts, strict=False)]
    order, stop = Order(late, 5), 120
    found: dict[tuple[int, int], list[int]] = {}
    for position, (part, _, row) in enumerate(triples(order.refs(0, stop))):
        found.setdefault((part, row), []).append(position)
    for at, part in enumerate(late):
        for row in range(part.rows):
            assert order.positions(at, row, stop) == found.get((at, row), [])
    middle = triples(order.refs(37, stop))
    assert middle == triples(order.refs(0, stop))[37:]
    assert order.counts(stop) == Order(parts, 5).counts(stop)  # shares do not move


def test_a_negative_start_is_refused() -> None:
    with pytest.raises(ValueError, match="start must lie in"):
        Order([OrderPart("a", 1, 5, "d", start=-1)], 1)
