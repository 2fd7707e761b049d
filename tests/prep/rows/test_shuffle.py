"""Shuffling: every row once, its origin told, the same for any cut of the output."""

from pathlib import Path
from typing import Any

import deflate
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import scattered_rows as scatter
from crystalmix.prep.rows import shards, shuffle, spans
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.rows.shuffle import Input
from crystalmix.prep.runtime.errors import DamageError
from helpers.materials import content_digest

MSL = 4


def rows_of(shard: int, count: int, msl: int = MSL) -> Rows:
    """Return rows that tell the shard and the row they are: (count, 3, msl)."""
    data = np.zeros((count, 3, msl), np.int32)
    data[:, 0, 0], data[:, 0, 1] = shard, np.arange(count)
    return data


def inputs_of(folder: Path, sizes: list[int], msl: int = MSL) -> tuple[Input, ...]:
    made: list[Input] = []
    for i, size in enumerate(sizes):
        path = folder / "in" / shards.name(i)
        shards.write(path, size, [rows_of(i, size, msl)])
        made.append(Input(f"epoch-0/{path.name}", path, size))
    return tuple(made)


def shuffled(
    inputs: tuple[Input, ...], out: Path, size: int, seed: int | None = 7, domain: str = "code"
) -> list[shards.Shard]:
    """Shuffle into shards of `size` rows."""
    total = sum(item.rows for item in inputs)
    return [
        shuffle.shuffle(
            inputs,
            shuffle.order(inputs, (first, min(first + size, total)), seed, domain),
            out / shards.name(number),
        )
        for number, first in enumerate(range(0, total, size))
    ]


def identities(folder: Path) -> list[tuple[int, int]]:
    parts = [shards.read(path)[:, 0, :2] for path in shards.folder(folder)]
    return [(int(shard), int(row)) for shard, row in np.concatenate(parts)]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    size=st.integers(1, 30),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)
def test_every_row_is_kept_once_and_its_origin_is_told(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], size: int, seed: int | None
) -> None:
    folder = tmp_path_factory.mktemp("shuffle")
    inputs = inputs_of(folder, sizes)
    made = shuffled(inputs, folder / "out", size, seed)
    every = [(shard, row) for shard, rows in enumerate(sizes) for row in range(rows)]
    found = identities(folder / "out")
    assert sorted(found) == every
    if seed is None:
        assert found == every
    origins = [
        origin
        for path in shards.folder(folder / "out")
        for origin in spans.read(spans.path_of(path, "origin")).to_pylist()
    ]
    assert [(o["origin"], o["origin_row"]) for o in origins] == [
        (inputs[shard].name, row) for shard, row in found
    ]
    assert [o["row"] for o in origins] == [row for shard in made for row in range(shard.rows)]
    before = sum(
        shards.write(folder / "x.h5", n, [rows_of(i, n)]).rows_sum for i, n in enumerate(sizes)
    )
    assert sum(shard.rows_sum for shard in made) % 2**64 == before % 2**64


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), size=st.integers(1, 90))
def test_the_order_does_not_depend_on_how_the_output_is_cut(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], size: int
) -> None:
    folder = tmp_path_factory.mktemp("shuffle")
    inputs = inputs_of(folder, sizes)
    shuffled(inputs, folder / "whole", 10**6)
    shuffled(inputs, folder / "cut", size)
    assert identities(folder / "whole") == identities(folder / "cut")


def test_another_seed_or_domain_is_another_order_and_the_same_is_the_same(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [40, 25])
    orders: list[list[tuple[int, int]]] = []
    for i, (seed, domain) in enumerate([(7, "code"), (7, "code"), (8, "code"), (7, "web")]):
        shuffled(inputs, tmp_path / str(i), 65, seed, domain)
        orders.append(identities(tmp_path / str(i)))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]
    assert orders[0] != sorted(orders[0])


def test_rows_are_gathered_in_the_order_asked(tmp_path: Path) -> None:
    paths = [item.path for item in inputs_of(tmp_path, [9, 9, 9])]
    which, rows = np.array([2, 0, 2, 1, 0, 2]), np.array([8, 3, 0, 5, 3, 8])
    found = scatter.gather(paths, which, rows)
    assert found[:, 0, :2].tolist() == np.stack([which, rows], 1).tolist()
    with pytest.raises(ValueError, match="no rows"):
        scatter.gather(paths, which[:0], rows[:0])


def chunks_of(path: Path) -> list[bytes]:
    with h5py.File(path) as file:
        dataset: Any = file["data"]
        return [dataset.id.read_direct_chunk((row, 0, 0))[1] for row in range(len(dataset))]


def zoo(path: Path, msl: int) -> None:
    """Write 6 rows as Model Zoo does: a chunk for each."""
    layout: dict[str, Any] = {"chunks": (1, 3, msl), "compression": "gzip", "compression_opts": 9}
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=rows_of(2, 6, msl), **layout)


def test_deflated_rows_are_copied_as_they_are(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [7, 5], 512)
    zoo(tmp_path / "in" / "zoo.h5", 512)
    inputs = (*inputs, Input("zoo", tmp_path / "in" / "zoo.h5", 6))
    shuffled(inputs, tmp_path / "out", 18)
    (path,) = shards.folder(tmp_path / "out")
    given = [chunks_of(item.path) for item in inputs]
    assert chunks_of(path) == [given[shard][row] for shard, row in identities(tmp_path / "out")]


@pytest.mark.parametrize("msl", [16, 300])
def test_short_rows_are_deflated_anew_however_they_were(tmp_path: Path, msl: int) -> None:
    inputs = inputs_of(tmp_path, [7, 5], msl)
    zoo(tmp_path / "in" / "zoo.h5", msl)
    inputs = (*inputs, Input("zoo", tmp_path / "in" / "zoo.h5", 6))
    order = shuffle.order(inputs, (0, 18), 7, "web")
    shuffle.shuffle(inputs, order, tmp_path / "out" / "a.h5")
    every = np.concatenate([shards.read(item.path) for item in inputs])[order]
    shards.write(tmp_path / "out" / "b.h5", 18, [every])
    assert (tmp_path / "out" / "a.h5").read_bytes() == (tmp_path / "out" / "b.h5").read_bytes()
    spilt = [deflate.zlib_compress(row.tobytes(), 1) for row in every]
    shuffle.write_deflated(inputs, order, tmp_path / "out" / "c.h5", msl, spilt)
    assert (tmp_path / "out" / "c.h5").read_bytes() == (tmp_path / "out" / "b.h5").read_bytes()


@pytest.mark.parametrize("seed", [3, None])
def test_rows_of_other_layouts_are_shuffled_too(tmp_path: Path, seed: int | None) -> None:
    inputs = inputs_of(tmp_path, [7])
    for shard, layout in enumerate(({"chunks": (2, 1, 2), "compression": "gzip"}, {}), 1):
        path = tmp_path / "in" / f"other-{shard}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=rows_of(shard, 6), **layout)
        inputs = (*inputs, Input(path.name, path, 6))
    made = shuffled(inputs, tmp_path / "out", 10, seed)
    found = identities(tmp_path / "out")
    assert sorted(found) == [(0, i) for i in range(7)] + [(s, i) for s in (1, 2) for i in range(6)]
    for shard, path in zip(made, shards.folder(tmp_path / "out"), strict=True):
        assert content_digest(path) == shard.digest
        with h5py.File(path) as file:
            dataset: Any = file["data"]
            assert np.array_equal(dataset[:], shards.read(path))
            together = min(8, len(dataset))
            assert (dataset.chunks, dataset.compression) == ((together, 3, MSL), "gzip")


def test_a_broken_input_leaves_no_output(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [40, 40])
    content = bytearray(inputs[1].path.read_bytes())
    with h5py.File(inputs[1].path) as file:
        dataset: Any = file["data"]
        info = dataset.id.get_chunk_info_by_coord((13, 0, 0))
    content[info.byte_offset + info.size - 1] ^= 1  # of the checksum of a row
    inputs[1].path.write_bytes(content)
    with pytest.raises(DamageError, match=r"data-00001.h5: is not a readable shard"):
        shuffled(inputs, tmp_path / "out", 80)
    assert not list((tmp_path / "out").glob("*.h5*"))
    inputs[1].path.unlink()
    with pytest.raises(DamageError, match=r"data-00001.h5: is missing"):
        shuffled(inputs, tmp_path / "out", 80)


def test_a_shuffle_in_small_memory_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(tmp_path, [40, 25, 30])
    whole = shuffled(inputs, tmp_path / "whole", 60)
    monkeypatch.setattr(scatter, "HELD_BYTES", 200)
    assert shuffled(inputs, tmp_path / "small", 60) == whole


def test_more_shards_than_16_bits_count_have_their_origins_told() -> None:
    index = spans.ORIGIN.field("origin").type.index_type
    assert index.bit_width >= 32  # CommonCrawl has some 44,000 shards of 4,096 rows


def test_origins_name_the_shards_of_their_rows_and_no_others(tmp_path: Path) -> None:
    inputs = tuple(Input(f"epoch-0/{shards.name(i)}", Path(), 2) for i in range(5000))
    order, out = np.array([9999, 4, 8, 5]), tmp_path / shards.name(0)
    shuffle.write(inputs, order, out, [rows_of(0, len(order))])
    place = spans.path_of(out, "origin")
    column: Any = spans.read(place)["origin"].combine_chunks()
    assert column.to_pylist() == [f"epoch-0/{shards.name(i)}" for i in (4999, 2, 4, 2)]
    assert column.dictionary.to_pylist() == [f"epoch-0/{shards.name(i)}" for i in (2, 4, 4999)]
    assert place.stat().st_size < 4000
