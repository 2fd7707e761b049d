"""Manifests: canonical bytes, the rows of every step, where a row goes, and what differs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PartShard,
    TokenizerIdentity,
)
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.runtime.errors import DamageError, InputError
from helpers import corpora

Row = tuple[str, int]  # shard, row


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.built(tmp_path_factory.mktemp("small"))


@st.composite
def sealed_manifests(draw: st.DrawFn) -> Manifest:
    """Draw manifests of a few parts, each with some rows of a few shards."""
    parts: list[ManifestPart] = []
    for number in range(draw(st.integers(1, 4))):
        bounds = st.lists(st.integers(0, 9), min_size=2, max_size=2, unique=True).map(sorted)
        ranges = draw(st.lists(bounds, min_size=1, max_size=4))
        shards = tuple(
            PartShard(
                f"domains/d{number}/shuffled/data-{i:05d}.h5", 9, f"{number}{i}", low, high, 30
            )
            for i, (low, high) in enumerate(ranges)
        )
        available = sum(shard.last - shard.first for shard in shards)
        digest, weight = manifests.part_digest(shards), draw(st.integers(1, 9))
        parts.append(
            ManifestPart(f"p{number}", f"d{number}", {"weight": weight}, 0.5, weight, 1, 1, 1, 0.5,
                         available, 1.5,
                         draw(st.none() | st.just({"rate": 0.5})), 1, shards, digest)
        )  # fmt: skip
    steps, batch, seed = (draw(st.integers(1, 9)) for _ in range(3))
    return manifests.sealed(
        Manifest(
            "m",
            "p",
            steps,
            batch,
            8,
            seed,
            "exact-1",
            None,
            TokenizerIdentity(3),
            tuple(parts),
            None,
            None,
        )
    )


def listed(part: ManifestPart) -> list[Row]:
    """Return the rows of a part one by one."""
    return [(s.path, row) for s in part.shards for row in range(s.first, s.last)]


def rows(manifest: Manifest, start: int, stop: int) -> list[tuple[str, int, Row]]:
    """Return part, epoch and row at each position."""
    refs = manifest.rows(start, stop)
    return [
        (manifest.parts[p].name, epoch, (manifest.paths[shard], row))
        for p, epoch, shard, row in zip(
            *(each.tolist() for each in (refs.part, refs.epoch, refs.shard, refs.row)), strict=True
        )
    ]


@settings(max_examples=60, deadline=None)
@given(sealed_manifests(), st.integers(0, 100), st.integers(0, 60))
def test_the_rows_of_positions_are_those_of_a_naive_listing(
    manifest: Manifest, start: int, size: int
) -> None:
    refs = manifest.order.refs(start, start + size)
    naive = [
        (manifest.parts[part].name, epoch, listed(manifest.parts[part])[row])
        for part, epoch, row in zip(
            refs.part.tolist(), refs.epoch.tolist(), refs.row.tolist(), strict=True
        )
    ]
    assert rows(manifest, start, start + size) == naive


@settings(max_examples=60, deadline=None)
@given(sealed_manifests())
def test_positions_lists_where_a_row_is_consumed_and_a_step_is_its_positions(
    manifest: Manifest,
) -> None:
    total = manifest.steps * manifest.batch
    consumed: dict[Row, list[int]] = {row: [] for part in manifest.parts for row in listed(part)}
    for position, (_, _, row) in enumerate(rows(manifest, 0, total)):
        consumed[row].append(position)
    assert {row: manifest.positions(*row) for row in consumed} == consumed
    assert manifest.positions("no/such/shard.h5", 0) == []
    beside = {(path, row) for path in manifest.paths for row in range(-1, 11)} - consumed.keys()
    assert [row for row in beside if manifest.positions(*row)] == []
    steps = [manifest.step(step) for step in range(manifest.steps)]
    whole = manifest.rows(0, total)
    assert np.array_equal(np.concatenate([step.row for step in steps]), whole.row)
    assert np.array_equal(np.concatenate([step.shard for step in steps]), whole.shard)


@settings(max_examples=40, deadline=None)
@given(sealed_manifests())
def test_a_manifest_is_read_as_it_was_written_and_written_with_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.json"
    manifests.write(path, manifest)
    assert manifests.read(path) == manifest == manifests.read(path.parent)
    first = path.read_bytes()
    manifests.write(path, manifests.read(path))
    assert path.read_bytes() == first
    assert first == canonical(orjson.loads(first))


@settings(max_examples=40, deadline=None)
@given(sealed_manifests(), st.data())
def test_listing_the_parts_otherwise_changes_no_step(
    manifest: Manifest, data: st.DataObject
) -> None:
    parts = tuple(data.draw(st.permutations(manifest.parts)))
    other = manifests.sealed(replace(manifest, parts=parts))
    assert rows(other, 0, 80) == rows(manifest, 0, 80)


def sequence(manifest: Manifest, name: str, stop: int) -> list[tuple[int, Row]]:
    return [(epoch, row) for part, epoch, row in rows(manifest, 0, stop) if part == name]


@settings(max_examples=40, deadline=None)
@given(sealed_manifests(), sealed_manifests())
def test_adding_a_part_leaves_the_sequences_of_the_others(before: Manifest, more: Manifest) -> None:
    added = replace(more.parts[0], name="added", digest="other")
    after = manifests.sealed(replace(before, parts=(added, *before.parts)))
    for part in before.parts:
        pairs = zip(sequence(before, part.name, 60), sequence(after, part.name, 120), strict=False)
        assert all(one == other for one, other in pairs)


def edited(path: Path, change: Any, *, sealed: bool) -> Path:
    """Change a manifest on disk, its digest made anew or not."""
    content = orjson.loads(path.read_bytes())
    change(content)
    if sealed:
        content["digest"] = receipts.digest({k: v for k, v in content.items() if k != "digest"})
    path.write_bytes(canonical(content))
    return path


def test_a_manifest_that_is_none_is_told(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"

    def told(change: Any, *, sealed: bool = True) -> str:
        path.write_bytes((small / "phases" / "mixed" / "manifest.json").read_bytes())
        with pytest.raises(DamageError) as caught:
            manifests.read(edited(path, change, sealed=sealed))
        return str(caught.value).removeprefix(f"{path}: ")

    edit = "was edited (its digest does not match its content); restore it, or remove it and"
    assert told(lambda c: c.update(seed=8), sealed=False).startswith(edit)
    assert told(lambda c: c.pop("digest"), sealed=False).startswith(edit)
    assert told(lambda c: c.update(schema=1)) == "has schema 1, not one of (3, 4); build again"
    assert "is no manifest ('parts')" in told(lambda c: c.pop("parts"))
    assert "is no manifest (" in told(lambda c: c.update(colour="red"))
    assert "is no manifest (" in told(lambda c: c["parts"][0].pop("weight"))
    with pytest.raises(InputError, match="no such manifest; build the phase first"):
        manifests.read(tmp_path / "none")
    path.write_bytes(b"{")
    with pytest.raises(DamageError, match=r"manifest.json: is not valid JSON"):
        manifests.read(path)


def differences(manifest: Manifest) -> Iterator[tuple[Manifest, list[str]]]:
    """Yield a changed manifest and what must be told of it."""
    first, *rest = manifest.parts
    yield manifest, []
    yield replace(manifest, steps=17), ["steps: 16, now 17"]
    yield replace(manifest, previous=None), [f'previous: "{manifest.previous[:56]}..., now null']  # type: ignore[index]
    told = ["parts.wiki-odd.rows: 16, now 15", "parts.wiki-odd.weight: 1, now 2"]
    yield replace(manifest, parts=(replace(first, weight=2, rows=15), *rest)), told
    yield (
        replace(manifest, parts=(*rest, first)),
        ['parts: listed as: ["wiki-odd","code"], now ["code","wiki-odd"]'],
    )
    yield replace(manifest, parts=(first,)), ["parts.code: is gone"]
    gone = ["parts.new: is new", "parts.wiki-odd: is gone"]
    yield replace(manifest, parts=(replace(first, name="new"), *rest)), gone


def test_what_differs_between_two_manifests_is_told_line_by_line(small: Path) -> None:
    manifest = manifests.read(small / "phases" / "mixed")
    for other, told in differences(manifest):
        assert manifests.compare(manifest, manifests.sealed(other)) == told
        assert (manifests.sealed(other).digest == manifest.digest) == (not told)
