"""What steps consume: a range counts as its rows do, tokens with loss as the masks say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.mixtures.manifest import rows_of_steps as consuming
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    PartShard,
    loss_tokens_of,
    read_manifests,
)
from crystalmix.prep.rows import shards
from helpers import corpora


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.built(tmp_path_factory.mktemp("small"))


def of(build: Path, phase: str) -> Manifest:
    return next(m for m in read_manifests(build) if m.phase == phase)


def labels(build: Path, manifest: Manifest, start: int, stop: int) -> dict[str, int]:
    """Count the labels that the rows at some positions have, part by part, from the shards."""
    refs = manifest.rows(start, stop)
    counted = {part.name: 0 for part in manifest.parts}
    for part, shard, row in zip(refs.part, refs.shard, refs.row, strict=True):
        mask = shards.read(build / manifest.paths[shard], row, row + 1)[0, 1]
        counted[manifest.parts[part].name] += int(mask.sum())
    return counted


@pytest.mark.parametrize("phase", ["prose", "mixed", "code"])
@pytest.mark.parametrize("ends", [(0, 0), (2, 5), (0, 11)])
def test_the_parts_of_a_range_are_those_of_its_rows(
    small: Path, phase: str, ends: tuple[int, int]
) -> None:
    manifest = of(small, phase)
    rows = [
        row for step in range(ends[0], ends[1] + 1) for row in consuming.step_rows(manifest, step)
    ]
    told = consuming.part_counts(manifest, *ends)
    for each, part in zip(told, manifest.parts, strict=True):
        count = sum(row.part == part.name for row in rows)
        assert (each.part, each.rows, each.tokens) == (
            part.name,
            count,
            count * manifest.msl,
        )
        assert each.got == count / len(rows)
        assert each.asked == part.asked
        assert each.loss_tokens == loss_tokens_of(part.shards, count)


def test_tokens_with_loss_of_a_whole_epoch_are_those_of_the_masks(small: Path) -> None:
    (prose,) = (m for m in read_manifests(small) if m.phase == "prose")
    for part in prose.parts:
        whole = loss_tokens_of(part.shards, part.available)
        read = [shards.read(small / s.path, s.first, s.last)[:, 1].sum() for s in part.shards]
        assert whole == sum(read)
        assert loss_tokens_of(part.shards, 3 * part.available) == 3 * sum(read)


def test_tokens_with_loss_of_a_manifest_are_near_those_its_steps_have(small: Path) -> None:
    for manifest in read_manifests(small):
        counted = labels(small, manifest, 0, manifest.steps * manifest.batch)
        for part in manifest.parts:
            # one row of a stream is incomplete, so that a part epoch may be off by that
            assert part.loss_tokens is not None
            assert abs(part.loss_tokens - counted[part.name]) <= manifest.msl


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 8)), min_size=1, max_size=5),
    rows=st.integers(0, 500),
)
def test_rows_that_are_alike_have_equal_shares(sizes: list[tuple[int, int]], rows: int) -> None:
    made = tuple(PartShard(str(i), n, "", 0, n, 8 * n) for i, (n, _) in enumerate(sizes))
    assert loss_tokens_of(made, rows) == 8 * rows
    mixed = tuple(replace(s, loss_tokens=k * s.rows) for s, (_, k) in zip(made, sizes, strict=True))
    there = sum(s.rows for s in made)
    told = loss_tokens_of(mixed, rows)
    assert told == rows * sum(n * k for n, k in sizes) // there
    assert loss_tokens_of((*mixed, PartShard("u", 3, "", 0, 3, None)), rows) is None


def test_tokens_with_loss_are_exact_however_many_there_are() -> None:
    """A float of 53 bits would be off by some at the scale of a real run."""
    size, labels_ = 10**9 + 7, 2_047_999_999_999
    shard = PartShard("big", size, "", 0, size, labels_)
    for rows in (1, 3 * size - 1, 21 * size, 27 * size):
        assert loss_tokens_of((shard,), rows) == rows * labels_ // size


def test_a_range_is_shown_as_a_table_and_as_json(small: Path) -> None:
    told = orjson.loads(corpora.crystalmix("show", small, "--step", "mixed:2:5", "--json").stdout)
    assert [each["rows"] for each in told] == [4, 12]
    lines = corpora.crystalmix("show", small, "--step", "mixed:2:5").stdout.splitlines()
    assert lines[0].split() == ["part", "asked", "got", "rows", "tokens", "with", "loss"]
    assert lines[1].split()[:4] == ["wiki-odd", "0.250000", "0.250000", "4"]


@pytest.mark.parametrize("asked", ["mixed:5:2", "mixed:0:16", "mixed:99:100"])
def test_a_range_that_is_none_is_refused(small: Path, asked: str) -> None:
    result = corpora.crystalmix("show", small, "--step", asked)
    assert result.exit_code == 2
    assert "phase mixed has the steps 0 to 15, got" in result.stderr
    assert np.char.count(result.stderr, "\n") == 1
