"""Remixing: a mixture is an order over a sealed pool, its shares met as exactly as any order's."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.mixtures.ablations.small_manifest import (
    UNITS,
    Portion,
    Window,
    cut,
    remix,
    whole_shares,
)
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.exact_order import PREFIX_BOUND
from crystalmix.mixtures.manifest.manifest import Manifest, PartShard
from crystalmix.prep.runtime.errors import RefusalError
from helpers.ablations import tiny

SHARES = {"wiki": 0.5, "python": 0.3, "javascript": 0.2}


def pool() -> Manifest:
    return manifests.read(tiny() / "build" / "phases" / "pool")


def stratified() -> Manifest:
    """The pool, its code in two sources of a domain `code`."""
    parts = [
        part if part.domain == "wiki" else replace(part, domain=f"code.from-{part.domain}")
        for part in pool().parts
    ]
    return replace(pool(), parts=tuple(parts))


def portion(shares: dict[str, float] | None = None, last: int = 20) -> Portion:
    windows = {name: Window(0, last) for name in SHARES}
    return Portion("mine", shares or SHARES, 30, 4, windows)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda found: sum(found) > 1e-6))
def test_shares_become_whole_millionths_that_sum_to_one(found: list[float]) -> None:
    shares = {f"d{i}": share for i, share in enumerate(found)}
    whole = whole_shares(shares)
    assert sum(whole.values()) == UNITS
    for name, share in shares.items():
        assert abs(whole[name] / UNITS - share / sum(found)) <= 1 / UNITS


def test_what_is_nearest_to_the_next_millionth_is_rounded_up() -> None:
    assert whole_shares({"a": 1, "b": 2}) == {"a": 333_333, "b": 666_667}
    sevenths = whole_shares({"a": 1, "b": 2, "c": 4})
    assert sevenths == {"a": 142_857, "b": 285_714, "c": 571_429}


@pytest.mark.parametrize("shares", [{}, {"a": 0.0}, {"a": -0.5, "b": 1.5}])
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares: must not be negative"):
        whole_shares(shares)


def test_every_prefix_of_a_mixture_has_the_asked_shares_within_the_bound() -> None:
    made = remix(pool(), portion())
    for position in (4, 40, 77, 120):
        counts = made.order.counts(position)
        for part, count in zip(made.parts, counts, strict=True):
            assert abs(count - part.asked * position) <= PREFIX_BOUND


def test_all_mixtures_walk_through_one_permutation_of_a_domain() -> None:
    """One that takes more of a domain takes the same rows first, whatever the others take."""
    little, much = (
        remix(pool(), portion({"wiki": share, "python": 0.9 - share, "javascript": 0.1}))
        for share in (0.1, 0.6)
    )
    walks: list[list[tuple[int, int]]] = []
    for made in (little, much):
        refs = made.rows(0, made.steps * made.batch)
        wiki = refs.part == [part.name for part in made.parts].index("wiki")
        walks.append(list(zip(refs.shard[wiki].tolist(), refs.row[wiki].tolist(), strict=True)))
    assert len(walks[0]) < len(walks[1])
    assert walks[1][: len(walks[0])] == walks[0]


def test_a_window_bounds_the_rows_and_so_the_epochs() -> None:
    made = remix(pool(), portion(last=10))
    refs = made.rows(0, made.steps * made.batch)
    for place, part in enumerate(made.parts):
        assert part.available == 10
        here = {*zip(refs.shard[refs.part == place], refs.row[refs.part == place], strict=True)}
        assert len(here) == 10
        assert part.epochs == part.rows / 10


def test_labels_that_count_are_counted_for_the_rows_that_a_mixture_takes() -> None:
    made = remix(pool(), portion())
    for part in made.parts:
        assert part.loss_tokens == manifests.loss_tokens_of(part.shards, part.rows)
        assert 0 < (part.loss_tokens or 0) <= part.tokens
        assert part.got == part.rows / 120  # of 30 steps of 4


def test_windows_one_after_the_other_cover_a_part_once() -> None:
    part = pool().parts[0]
    size = part.available
    edges = [0, 1, size // 3, size // 2, size]
    pieces = [cut(part, Window(a, b)) for a, b in itertools.pairwise(edges)]
    rows = [
        (shard.path, row)
        for shards in pieces
        for shard in shards
        for row in range(shard.first, shard.last)
    ]
    whole = [(s.path, row) for s in part.shards for row in range(s.first, s.last)]
    assert rows == whole


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=5), st.data())
def test_a_window_over_several_shards_has_the_rows_of_a_naive_listing(
    ranges: list[tuple[int, int]], data: st.DataObject
) -> None:
    shards = tuple(
        PartShard(str(i), 99, str(i), first, first + size, 1)
        for i, (first, size) in enumerate(ranges)
    )
    whole = [(s.path, row) for s in shards for row in range(s.first, s.last)]
    first = data.draw(st.integers(0, len(whole) - 1))
    last = data.draw(st.integers(first + 1, len(whole)))
    found = cut(replace(pool().parts[0], shards=shards), Window(first, last))
    assert [(s.path, row) for s in found for row in range(s.first, s.last)] == whole[first:last]


def test_a_mixture_says_what_was_asked_of_it_and_which_rows_it_has() -> None:
    made = remix(pool(), portion({"wiki": 2.0, "python": 1.0, "javascript": 1.0}))
    assert [part.budget for part in made.parts] == [{"weight": w} for w in (0.5, 0.25, 0.25)]
    assert [part.asked for part in made.parts] == [0.5, 0.25, 0.25]
    before = {part.domain: part for part in pool().parts}
    for part in made.parts:
        assert part.digest == manifests.part_digest(part.shards) != before[part.domain].digest


def test_a_domain_without_a_share_is_no_part() -> None:
    made = remix(pool(), portion({"wiki": 1.0, "python": 0.0}))
    assert [part.name for part in made.parts] == ["wiki"]


def test_a_window_past_the_rows_is_refused() -> None:
    part = pool().parts[0]
    with pytest.raises(RefusalError, match=f"holds {part.available} rows"):
        remix(pool(), portion(last=part.available + 1))


def test_a_domain_that_the_pool_lacks_is_refused() -> None:
    with pytest.raises(RefusalError, match="no part of the pool holds domain rust"):
        remix(pool(), portion({"rust": 1.0}))


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="first: must be 0 <= first < last"):
        Window(3, 3)


def test_a_remixed_manifest_is_sealed_and_can_be_written_and_read(tmp_path: object) -> None:
    made = remix(pool(), portion(), previous="before")
    assert made.previous == "before"
    assert made.digest == manifests.sealed(replace(made, digest="")).digest
    assert made.seed == pool().seed


def test_every_prefix_of_a_share_has_its_sources_in_proportion_to_their_rows() -> None:
    own = {part.name: part.available for part in stratified().parts if part.name != "wiki"}
    whole = sum(own.values())
    made = remix(
        stratified(), Portion("mine", {"wiki": 0.9, "code": 0.1}, 30, 4, {"code": Window(3, 60)})
    )
    assert sum(part.asked for part in made.parts) == pytest.approx(1)
    for position in (4, 40, 77, 120):
        counts = made.order.counts(position)
        for part, count in zip(made.parts, counts, strict=True):
            share = 0.9 if part.name == "wiki" else 0.1 * own[part.name] / whole
            assert part.asked == pytest.approx(share, abs=1 / UNITS)
            assert abs(count - share * position) <= PREFIX_BOUND + 0.001
    assert sum(part.available for part in made.parts if part.name != "wiki") <= 57 + len(own)


def test_windows_of_a_domain_one_after_the_other_cover_each_source_once() -> None:
    whole = sum(part.available for part in stratified().parts if part.name != "wiki")
    edges = [0, whole // 3, whole // 2, whole]
    read: dict[str, list[tuple[str, int]]] = {}
    for first, last in itertools.pairwise(edges):
        made = remix(
            stratified(), Portion("mine", {"code": 1.0}, 9, 4, {"code": Window(first, last)})
        )
        for part in made.parts:
            rows = [(s.path, row) for s in part.shards for row in range(s.first, s.last)]
            read.setdefault(part.name, []).extend(rows)
    for part in pool().parts[1:]:
        rows = [(s.path, row) for s in part.shards for row in range(s.first, s.last)]
        assert read[part.name] == rows
