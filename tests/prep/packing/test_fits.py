"""Fits against slow scans of lists: the same rows, and as full as best fit must be."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.packing import pieces
from crystalmix.prep.packing.fits import Fit, best_fit, next_fit
from crystalmix.prep.rows.pack import PackSettings

capacities = st.sampled_from([1, 2, 7, 8, 33, 2048, 2049, 8192])


@st.composite
def sized(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(capacities)
    return draw(st.lists(st.integers(1, capacity), max_size=60)), capacity


def scanned(sizes: list[int], capacity: int) -> list[list[int]]:
    """Best fit by looking at every row: the least room left, of equals the first to have it."""
    rows: list[list[int]] = []
    since: list[tuple[int, int]] = []  # room, and the turn in which the row came to it
    ordered = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    for turn, piece in enumerate(ordered):
        fitting = [(room, when, i) for i, (room, when) in enumerate(since) if room >= sizes[piece]]
        if fitting:
            room, _, here = min(fitting)
            rows[here].append(piece)
            since[here] = (room - sizes[piece], turn)
        else:
            rows.append([piece])
            since.append((capacity - sizes[piece], turn))
    return rows


def listed(fit: Fit) -> list[list[int]]:
    return [fit.piece[fit.row == row].tolist() for row in range(fit.rows)]


@given(sized())
def test_best_fit_gives_the_rows_of_a_slow_scan(case: tuple[list[int], int]) -> None:
    """Packing invariant 5."""
    sizes, capacity = case
    fit = best_fit(np.array(sizes, np.int64), capacity)
    assert listed(fit) == scanned(sizes, capacity)
    for row in listed(fit):  # places follow each other from 0
        starts = np.cumsum([0, *(sizes[piece] for piece in row)])
        assert starts[-1] <= capacity
        assert fit.start[np.isin(fit.piece, row)].tolist() == starts[:-1].tolist()


@given(sized())
def test_no_two_rows_of_a_group_would_fit_into_one(case: tuple[list[int], int]) -> None:
    """Packing invariant 4."""
    sizes, capacity = case
    used = [sum(sizes[piece] for piece in row) for row in scanned(sizes, capacity)]
    used_here = [
        sum(sizes[piece] for piece in row)
        for row in listed(best_fit(np.array(sizes, np.int64), capacity))
    ]
    assert sorted(used) == sorted(used_here)
    assert all(a + b > capacity for a, b in combinations(used_here, 2))


@given(sized())
def test_next_fit_never_looks_back(case: tuple[list[int], int]) -> None:
    sizes, capacity = case
    rows: list[list[int]] = []
    for piece in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if not rows or sum(sizes[p] for p in rows[-1]) + sizes[piece] > capacity:
            rows.append([])
        rows[-1].append(piece)
    assert listed(next_fit(np.array(sizes, np.int64), capacity)) == rows


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=40)


@given(
    lengths,
    st.integers(1, 12),
    st.integers(1, 60),
    st.sampled_from(["split", "truncate", "drop"]),
    st.data(),
)
def test_groups_follow_from_lengths_and_not_from_blocks(
    tokens: list[int], msl: int, size: int, too_long: str, data: st.DataObject
) -> None:
    """Packing invariant 3."""
    settings = PackSettings(msl=msl, pack="best_fit", group_tokens=size, too_long=too_long)  # pyright: ignore[reportArgumentType]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    blocks = np.split(np.array(tokens, np.int64), cuts)
    bounds = pieces.groups(blocks, 5, settings)
    assert bounds == pieces.groups([np.array(tokens, np.int64)], 5, settings)
    assert (bounds[0], bounds[-1]) == (5, 5 + sum(tokens))
    ends = 5 + np.cumsum(tokens)
    cut = pieces.pieces(np.array(tokens, np.int64), settings)
    places = (ends - tokens)[cut.document] + cut.offset
    held = [int(cut.size[(places >= a) & (places < b)].sum()) for a, b in pairwise(bounds)]
    assert sum(held) == int(pieces.kept(np.array(tokens, np.int64), settings).sum())
    assert all(size <= count < size + msl for count in held[:-1])
    assert held[-1] < 2 * size + msl


@given(lengths, st.integers(1, 12))
def test_only_longer_documents_are_cut_and_into_the_fewest_pieces(
    tokens: list[int], msl: int
) -> None:
    """Packing invariant 2."""
    cut = pieces.pieces(np.array(tokens, np.int64), PackSettings(msl=msl, pack="best_fit"))
    for document, size in enumerate(tokens):
        here = cut.document == document
        assert int(here.sum()) == -(-size // msl)
        assert int(cut.size[here].sum()) == size
        ends = np.cumsum(cut.size[here])
        assert cut.offset[here].tolist() == (ends - cut.size[here]).tolist()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"too_long": "drop"}, "too_long: drop has no meaning in a stream"),
        ({"pack": "best_fit", "tail": "drop"}, "tail: drop can't go with pack: best_fit"),
        ({"pack": "next_fit", "loss_across": False}, "loss_across: is fixed with next_fit"),
        ({"pack": "next_fit", "too_long": "drop"}, "too_long: is fixed with next_fit"),
        ({"pack": "best_fit", "group_tokens": 0}, "group_tokens: must be positive"),
        ({"pack": "best_fit", "group_tokens": 1 << 29}, "group_tokens: must be at most"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PackSettings(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("msl", "most"), [(2048, 0.003), (8192, 0.008)])
def test_groups_of_a_million_tokens_are_padded_by_little(msl: int, most: float) -> None:
    """Packing invariant 5."""
    rng = np.random.Generator(np.random.Philox(4))  # lengths as of prose: median 300, a long tail
    tokens = np.maximum(8, rng.lognormal(np.log(300), 1.1, 12_000)).astype(np.int64)
    settings = PackSettings(msl=msl, pack="best_fit")
    bounds, starts = pieces.groups([tokens], 0, settings), np.cumsum(tokens) - tokens
    assert len(bounds) > 5
    rows = 0
    for first, last in pairwise(bounds):
        near = slice(
            np.searchsorted(starts + tokens, first, "right"), np.searchsorted(starts, last)
        )
        cut = pieces.of_group(starts[near], tokens[near], (first, last), settings)
        rows += best_fit(cut.size, msl).rows
    assert 0 <= 1 - int(tokens.sum()) / (rows * msl) <= most
