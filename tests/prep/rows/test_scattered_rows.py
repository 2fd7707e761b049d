"""Scattered rows: the rows asked, in the order asked, from files opened once and never replaced."""

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import scattered_rows as scatter
from crystalmix.prep.rows import shards
from crystalmix.prep.rows.open_shards import Handle, Pool, Rows
from crystalmix.prep.runtime.errors import DamageError

MSL = 8
LAYOUTS: tuple[dict[str, Any] | None, ...] = (
    None,  # ours: short rows, of which several share a chunk
    {"chunks": (1, 3, MSL), "compression": "gzip", "compression_opts": 4},  # Model Zoo's
    {"chunks": (4, 1, 4), "compression": "gzip"},  # of stage 3 of crystalcoder-data-prep
    {},
)
DIRECT = 1  # has a chunk for each row


def rows(count: int, shard: int) -> Rows:
    """Return rows that tell the shard and the row they are: (count, 3, MSL)."""
    data = np.ones((count, 3, MSL), np.int32)
    data[:, 0, 0], data[:, 0, 1] = shard, np.arange(count)
    return data


def sources(folder: Path, size: int = 12) -> list[Path]:
    """Return four shards, each in another layout, written once."""
    paths = [folder / shards.name(shard) for shard in range(len(LAYOUTS))]
    for shard, (path, layout) in enumerate(zip(paths, LAYOUTS, strict=True)):
        if path.exists():
            continue
        if layout is None:
            shards.write(path, size, [rows(size, shard)])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file.create_dataset("data", data=rows(size, shard), **layout)
    return paths


references = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), min_size=1, max_size=60)


class Counting(Pool):
    """A pool that counts what it opens."""

    opened = 0

    def _open(self, path: Path) -> Handle:
        self.opened += 1
        return super()._open(path)


@settings(max_examples=60, deadline=None)
@given(wanted=references)
def test_rows_come_in_the_order_asked(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[int, int]]
) -> None:
    paths = sources(tmp_path_factory.getbasetemp() / "scatter")
    which, numbers = np.array(wanted).T
    found = scatter.gather(paths, which, numbers)
    assert found.dtype == np.int32
    expected = np.concatenate([rows(12, shard)[[row]] for shard, row in wanted])
    assert np.array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(wanted=references, held=st.sampled_from([1, 100, 400, 10**9]))
def test_packed_rows_are_those_rows_and_their_chunks(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[int, int]], held: int
) -> None:
    paths = sources(tmp_path_factory.getbasetemp() / "scatter")
    which, numbers = np.array(wanted).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scatter, "HELD_BYTES", held)
        told = list(scatter.packed(paths, which, numbers))
    assert b"".join(plain for plain, _ in told) == scatter.gather(paths, which, numbers).tobytes()
    for (shard, row), (plain, packed) in zip(wanted, told, strict=True):
        if shard == DIRECT:
            with h5py.File(paths[shard]) as file:
                dataset: Any = file["data"]
                assert dataset.id.read_direct_chunk((row, 0, 0)) == (0, packed)
        else:
            assert packed is None
        assert plain == rows(12, shard)[row].tobytes()


def test_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []
    for shard in range(30):
        paths.append(tmp_path / shards.name(shard))
        shards.write(paths[-1], 20, [rows(20, shard)])
    which, numbers = np.divmod(np.random.default_rng(1).permutation(600), 20)
    pool = Counting(1)
    monkeypatch.setattr(scatter, "POOL", pool)
    found = scatter.gather(paths, which, numbers)
    assert pool.opened == 30
    assert np.array_equal(found[:, 0, :2], np.stack([which, numbers], 1))
    list(scatter.packed(paths, which, numbers))
    assert pool.opened <= 90  # once to find the rows, once to read them


def test_a_row_that_is_not_there_is_told(tmp_path: Path) -> None:
    paths = sources(tmp_path)
    for shard in range(4):
        for row in (12, -1):
            which, numbers = np.array([0, shard, 1]), np.array([3, row, 2])
            with pytest.raises(DamageError, match=rf"{paths[shard].name}: has 12 rows, but rows"):
                scatter.gather(paths, which, numbers)
            with pytest.raises(DamageError, match=rf"{paths[shard].name}: has 12 rows, but rows"):
                list(scatter.packed(paths, which, numbers))


def test_no_rows_have_no_length(tmp_path: Path) -> None:
    none = np.array([], np.int64)
    with pytest.raises(ValueError, match="no rows"):
        scatter.gather(sources(tmp_path), none, none)
    assert list(scatter.packed(sources(tmp_path), none, none)) == []


def test_rows_of_two_lengths_are_refused(tmp_path: Path) -> None:
    long = tmp_path / "long.h5"
    shards.write(long, 2, [np.ones((2, 3, 2 * MSL), np.int32)])
    paths = [*sources(tmp_path), long]
    which, numbers = np.array([4, 0]), np.array([0, 0])
    told = r"long.h5: is not .* \(has rows of 16 tokens, the others of 8\)"
    with pytest.raises(DamageError, match=told):
        scatter.gather(paths, which, numbers)
    with pytest.raises(DamageError, match=told):
        list(scatter.packed(paths, which, numbers))


@pytest.mark.parametrize("held", [1, 10**9])
def test_a_broken_row_is_told_with_its_file(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "HELD_BYTES", held)
    paths = sources(tmp_path)
    which, numbers = np.array([0, 1, 2, 3, 1, 0]), np.array([1, 2, 3, 4, 5, 6])
    with h5py.File(paths[1], "r+") as file:
        dataset: Any = file["data"]
        chunk = bytearray(zlib.compress(rows(12, 1)[5].tobytes()))
        chunk[-2] ^= 4
        dataset.id.write_direct_chunk((5, 0, 0), bytes(chunk), filter_mask=0)
    with pytest.raises(DamageError, match=r"data-00001.h5: is not a readable shard"):
        scatter.gather(paths, which, numbers)
    with pytest.raises(DamageError, match=r"data-00001.h5: is not a readable shard"):
        list(scatter.packed(paths, which, numbers))


def test_a_file_that_is_replaced_between_finding_and_reading_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sources(tmp_path)
    monkeypatch.setattr(scatter, "HELD_BYTES", 1)
    read = scatter.packed(paths, np.array([0, 1, 0]), np.array([4, 4, 5]))
    next(read)
    shards.write(paths[0], 12, [rows(12, 0)])  # the same rows, but it might be others
    next(read)
    with pytest.raises(DamageError, match=r"data-00000.h5: .* \(was replaced while it was read\)"):
        next(read)
