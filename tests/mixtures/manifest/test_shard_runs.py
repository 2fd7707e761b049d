"""Runs of shards against the shards themselves, one by one."""

import numpy as np
import pytest

from crystalmix.mixtures.manifest import shard_runs
from crystalmix.mixtures.manifest.shard_runs import Runs, Shard


def numbered(
    numbers: range, rows: int = 10, first: int = 0, last: int | None = None
) -> list[Shard]:
    last = rows if last is None else last
    return [Shard(f"domains/d/shuffled/data-{n:05d}.h5", rows, first, last) for n in numbers]


LISTS = {
    "one folder": numbered(range(50)),
    "with a short last shard": [*numbered(range(50)), *numbered(range(50, 51), 3)],
    "odd shards, cut at both ends": [
        *numbered(range(1, 3, 2), 10, 4, 10),
        *numbered(range(3, 41, 2)),
        *numbered(range(41, 42), 10, 0, 7),
    ],
    "none drawn of some": [*numbered(range(3), 10, 5, 5), *numbered(range(3, 9))],
    "digits that grow": numbered(range(99_995, 100_007)),
    "backwards and twice": [
        *numbered(range(7, 3, -1)),
        *numbered(range(4, 5)),
        *numbered(range(4)),
    ],
    "names without numbers": [
        Shard("a.h5", 4, 0, 4),
        Shard("b/c", 5, 1, 5),
        Shard("a.h5", 4, 0, 4),
    ],
    "other extensions": [Shard("p/examples_0_1", 4, 0, 4), Shard("p/examples_1_1", 4, 0, 4)],
    "long numbers": [Shard(f"x{10**17 + n}.h5", 2, 0, 2) for n in range(5)],
    "none": [],
}


@pytest.mark.parametrize("shards", LISTS.values(), ids=LISTS)
def test_runs_are_the_shards_that_they_were_made_of(shards: list[Shard]) -> None:
    runs = Runs.from_json(Runs.of(shards).content())
    assert [*runs] == [runs[place] for place in range(len(runs))] == [s.path for s in shards]
    assert [runs.shard(place) for place in range(len(runs))] == shards
    rows = [(place, row) for place, s in enumerate(shards) for row in range(s.first, s.last)]
    which, inside = runs.located(np.arange(runs.rows))
    assert [*zip(which.tolist(), inside.tolist(), strict=True)] == rows
    ends = np.cumsum([0, *(s.last - s.first for s in shards)]).tolist()
    assert [runs.row(place) for place in range(len(runs) + 1)] == ends
    for path in {s.path for s in shards}:
        assert runs.places(path) == [p for p, s in enumerate(shards) if s.path == path]
    assert runs.places("domains/d/shuffled/data-7.h5") == runs.places("a") == []


def test_regular_shards_are_few_runs() -> None:
    assert [len(Runs.of(shards).runs) for shards in LISTS.values()][:5] == [1, 2, 3, 2, 2]


def test_ranges_meet_where_shards_do() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        lists = [
            numbered(range(*sorted(rng.integers(0, 30, 2).tolist()), int(rng.integers(1, 4))))
            + numbered(range(30, 31), 6)
            for _ in range(3)
        ]
        if rng.random() < 0.5:
            lists[0] += numbered(range(31, 40), 10, int(rng.integers(0, 5)), 9)
        found = shard_runs.ranges([Runs.of(shards) for shards in lists])
        sets = [{(u, n) for u, first, last in own for n in range(first, last)} for own in found]
        true = [{(s.path, n) for s in own for n in range(s.first, s.last)} for own in lists]
        assert [len(s) for s in sets] == [len(s) for s in true]
        for one in range(3):
            for other in range(3):
                assert len(sets[one] & sets[other]) == len(true[one] & true[other])


def test_ranges_are_as_many_as_runs_and_not_as_shards() -> None:
    halves = [Runs.of(numbered(range(half, 40_000, 2))) for half in (0, 1)]
    every = shard_runs.ranges([*halves, Runs.of(numbered(range(40_000)))])
    assert [len(ranges) for ranges in every] == [1, 1, 2]


def test_shards_cut_otherwise_are_units_of_their_own() -> None:
    cut = Runs.of(numbered(range(1000), 10, 1, 9))
    whole = Runs.of(numbered(range(1000)))
    own, other = shard_runs.ranges([cut, whole])
    assert len(own) == len(other) == 1000
    assert {unit for unit, _, _ in own} == {unit for unit, _, _ in other}
