"""What became of an order between two manifests: a part's own rows move for no other's sake."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.manifest import cerebras_order as zoo
from crystalmix.mixtures.manifest import manifest
from crystalmix.mixtures.manifest import moved_rows as differing
from crystalmix.mixtures.manifest.cerebras_order import ZooSettings
from crystalmix.mixtures.manifest.exact_order import VERSION
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PartShard,
    TokenizerIdentity,
)
from crystalmix.mixtures.manifest.moved_rows import order_lines

SAME = "none of its rows moved: its own sequence is the same"


def part(name: str, weight: int, rows: int, content: str = "") -> ManifestPart:
    digest = content or f"rows of {name}"
    shards = (PartShard(f"domains/{name}/data-00000.h5", rows, digest, 0, rows, 8 * rows),)
    told = {"weight": float(weight)}
    own = manifest.part_digest(shards)
    return ManifestPart(
        name, name, told, 0.5, weight, 60, 1, 1, 0.5, rows, 1.0, None, 1, shards, own
    )  # fmt: skip


def sealed(*parts: ManifestPart, steps: int = 10, **changes: Any) -> Manifest:
    made = Manifest(
        "m", "p", steps, 6, 8, 7, VERSION, None, TokenizerIdentity(3), parts, None, None
    )
    return manifest.sealed(replace(made, **changes))


def zoos(*parts: ManifestPart, seed: int = 1) -> Manifest:
    return sealed(*parts, cerebras=ZooSettings(seed), order_version=zoo.VERSION)


def moved(old: Manifest, new: Manifest) -> int:
    """Count the positions that hold another row, one by one."""
    count = 0
    for position in range(min(old.steps, new.steps) * 6):
        keys = []
        for each in (old, new):
            refs = each.rows(position, position + 1)
            shards = [shard for one in each.parts for shard in one.shards]
            keys.append((shards[refs.shard[0]].digest, int(refs.row[0])))
        count += keys[0] != keys[1]
    return count


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    other=st.integers(1, 9),
    steps=st.integers(1, 12),
)
def test_parts_that_stay_as_they_were_keep_their_sequence(
    weights: list[int], other: int, steps: int
) -> None:
    parts = [part(f"p{i}", weight, 20 + i) for i, weight in enumerate(weights)]
    old = sealed(*parts)
    new = sealed(*parts[1:], part("new", other, 33), steps=steps)
    *told, last = order_lines(old, new)
    assert told == [f"order: part {each.name}: {SAME}" for each in parts[1:]]
    count, common = moved(old, new), min(10, steps) * 6
    assert last.startswith(f"order: {count} of the first {common} positions hold another row (")
    before, after = (each.rows(0, common) for each in (old, new))
    for place, each in enumerate(parts[1:]):  # and it is so
        rows = before.row[before.part == place + 1], after.row[after.part == place]
        shorter = min(map(len, rows))
        np.testing.assert_array_equal(rows[0][:shorter], rows[1][:shorter], each.name)


def test_another_seed_other_rows_and_another_kind_of_order_are_told() -> None:
    a, b = part("a", 1, 20), part("b", 1, 30)
    old = sealed(a, b)
    seeded = order_lines(old, sealed(a, part("b", 1, 30, "others"), seed=8))
    assert seeded[0] == (
        "order: part a: its rows are the same, in another sequence (seed 7, now 8)"
    )
    assert seeded[1] == "order: part b: its rows are others, so is its sequence"
    assert order_lines(old, zoos(a, b))[0] == (
        "order: part a: its rows are the same, in the sequence of another kind of order"
    )
    assert order_lines(old, sealed(a, b, order_version="exact-0")) == [
        "order: can't be compared: one is of version exact-0"
    ]
    renamed = [replace(each, name=f"{each.name}2") for each in (a, b)]
    assert order_lines(old, sealed(*renamed)) == [
        "order: 0 of the first 60 positions hold another row (0 %)"
    ]


def test_in_model_zoos_order_rows_come_in_turn_whatever_the_seed() -> None:
    a, b = part("a", 1, 20), part("b", 1, 30)
    told = order_lines(zoos(a, b), zoos(a, b, seed=2))
    assert told[:2] == [f"order: part {name}: {SAME}" for name in "ab"]
    assert " 0 of " not in told[2]
    heavier = order_lines(zoos(a, b), zoos(part("a", 3, 20), b))
    assert heavier[0] == (  # an epoch takes 30 rows of each, then 90 and 30
        f"order: part a: {SAME} for its first 30 rows; then an epoch of the mixture ends"
    )
    assert heavier[1] == f"order: part b: {SAME}"


def test_of_very_many_positions_blocks_are_looked_at_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = part("a", 1, 2000), part("b", 1, 3000)
    old, new = sealed(a, b, steps=1000), sealed(a, part("b", 2, 3000), steps=1000)
    [*_, exact] = order_lines(old, new)
    monkeypatch.setattr(differing, "MOST", 1 << 10)
    [*_, sampled] = order_lines(old, new)
    assert sampled.startswith("order: about ")
    assert sampled.endswith("of 1,024 looked at, in 64 blocks)")
    share = float(exact.partition("(")[2].split()[0])
    assert abs(float(sampled.split()[2]) - share) < 10
