"""Shards: standard HDF5, equal to what plain h5py reads, and never silently broken."""

import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import deflate
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import shards
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.runtime import randomness, receipts
from crystalmix.prep.runtime.errors import DamageError
from helpers.materials import content_digest, names

STACKS = 16  # threads, each with a stack at an address of its own


def rows(count: int, msl: int = 16, seed: int = 1) -> Rows:
    """Return rows of random 32-bit numbers: (count, 3, msl)."""
    drawn = randomness.stream(seed, "rows").integers(-(2**31), 2**31, (count, 3, msl))
    return drawn.astype(np.int32)


def foreign(path: Path, data: Rows, **layout: Any) -> Path:
    """Write a shard as others would, without our code."""
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=data, **layout)
    return path


def chunk_places(path: Path, msl: int) -> list[tuple[int, int]]:
    """Return where the chunk of each row lies in the file, and its size."""
    with h5py.File(path, "r") as file:
        dataset: Any = file["data"]
        told = [dataset.id.get_chunk_info_by_coord((row, 0, 0)) for row in range(dataset.shape[0])]
        assert dataset.chunks == (1, 3, msl)
    return [(info.byte_offset, info.size) for info in told]


@pytest.mark.parametrize(
    ("count", "msl"), [(1, 1), (3, 16), (700, 128), (600, 256), (5, 2048), (2, 9000)]
)
def test_a_file_made_in_memory_has_the_bytes_of_one_made_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, msl: int
) -> None:
    data, path = rows(count, msl), tmp_path / shards.name(0)
    in_memory = shards.write(path, count, [data])
    written = path.read_bytes()
    monkeypatch.setattr(shards, "SMALL_BYTES", 0)
    assert shards.write(path, count, [data]) == in_memory
    assert path.read_bytes() == written


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    msl=st.integers(1, 40) | st.sampled_from([128, 300, 511, 512]),
)
def test_what_is_written_in_blocks_is_what_h5py_reads(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], msl: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / shards.name(3)
    data = rows(sum(sizes), msl)
    told = shards.write(path, len(data), iter(np.split(data, np.cumsum(sizes)[:-1])))
    with h5py.File(path, "r") as file:
        dataset: Any = file["data"]
        assert np.array_equal(dataset[:], data)
        assert (dataset.dtype, dataset.shape) == (np.int32, data.shape)
        assert dataset.chunks == (
            min(len(data), 8, max(1, 1024 // msl) if msl < 512 else 1),
            3,
            msl,
        )
        assert dataset.compression == "gzip"
        assert file.attrs["n_examples"] == len(data)
    assert np.array_equal(shards.read(path), data)
    assert shards.shape(path) == (len(data), msl)
    assert (told.name, told.rows, told.msl) == ("data-00003.h5", len(data), msl)
    assert told.digest == sha256(data.tobytes()).hexdigest() == content_digest(path)
    entry = told.entry()
    assert {key: entry[key] for key in ("name", "bytes", "xxh3")} == receipts.describe(path)


def test_a_row_checksum_tells_multisets_of_rows_apart(tmp_path: Path) -> None:
    data = rows(9)
    sums = [
        shards.write(tmp_path / "a.h5", len(each), [each]).rows_sum
        for each in (data, data[::-1], data[[*range(8), 0]])
    ]
    assert sums[0] == sums[1] != sums[2]
    halves = [shards.write(tmp_path / "b.h5", len(d), [d]).rows_sum for d in (data[:4], data[4:])]
    assert sum(halves) % 2**64 == sums[0]


@settings(max_examples=50, deadline=None)
@given(wanted=st.lists(st.integers(0, 19), max_size=30))
def test_rows_are_taken_in_the_order_asked(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "taken"
    data = rows(20)
    if not folder.exists():
        shards.write(folder / "data-00000.h5", 20, [data])
    found = shards.take(folder / "data-00000.h5", np.array(wanted, np.int64))
    assert found.dtype == np.int32
    assert np.array_equal(found, data[np.array(wanted, int)])


def test_ranges_and_blocks_are_slices(tmp_path: Path) -> None:
    path, data = tmp_path / "data-00000.h5", rows(10)
    shards.write(path, 10, [data])
    assert np.array_equal(shards.read(path, 3, 7), data[3:7])
    assert np.array_equal(shards.read(path, 8, 99), data[8:])
    assert shards.read(path, 5, 5).shape == (0, 3, 16)
    assert [len(block) for block in shards.blocks(path, 4)] == [4, 4, 2]
    assert np.array_equal(np.concatenate(list(shards.blocks(path, 3))), data)


@pytest.mark.parametrize("wanted", [[10], [-1], [0, 99]])
@pytest.mark.parametrize("ours", [True, False])
def test_a_row_that_is_not_there_is_no_row(tmp_path: Path, wanted: list[int], ours: bool) -> None:
    path = tmp_path / "data-00000.h5"
    if ours:
        shards.write(path, 10, [rows(10)])
    else:
        foreign(path, rows(10))
    with pytest.raises(DamageError, match=r"has 10 rows, but rows .* are asked"):
        shards.take(path, np.array(wanted))


LAYOUTS: dict[str, dict[str, Any]] = {
    "model zoo": {"chunks": (1, 3, 16), "compression": "gzip", "compression_opts": 4},
    "stage 3": {"chunks": (8, 1, 4), "compression": "gzip"},
    "automatic": {"chunks": True},
    "contiguous": {},
    "uncompressed": {"chunks": (1, 3, 16)},
    "shuffle filter": {"chunks": (1, 3, 16), "compression": "gzip", "shuffle": True},
    "checksums": {"chunks": (1, 3, 16), "compression": "gzip", "fletcher32": True},
    "lzf": {"chunks": (1, 3, 16), "compression": "lzf"},
    "large chunks": {"chunks": (30, 3, 16), "compression": "gzip"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_other_layouts_are_read_too(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = foreign(tmp_path / "examples_0_0.h5", rows(30), **layout)
    assert np.array_equal(shards.read(path), rows(30))
    assert np.array_equal(shards.take(path, np.array([29, 0, 7])), rows(30)[[29, 0, 7]])


def test_a_chunk_that_skipped_its_filter_is_read(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.h5", rows(2), chunks=(1, 3, 16), compression="gzip")
    with h5py.File(path, "r+") as file:
        dataset: Any = file["data"]
        dataset.id.write_direct_chunk((1, 0, 0), rows(2)[0].tobytes(), filter_mask=1)
    assert np.array_equal(shards.read(path), rows(2)[[0, 0]])


def test_a_flipped_bit_in_any_row_is_damage_or_harmless(tmp_path: Path) -> None:
    path, data = tmp_path / "data-00000.h5", rows(4, 512)
    shards.write(path, 4, [data])
    sound = path.read_bytes()
    rng = randomness.stream(1, "flips")
    refused = 0
    for row, (start, size) in enumerate(chunk_places(path, 512)):
        others = np.delete(np.arange(4), row)
        for _ in range(25):
            broken = bytearray(sound)
            broken[start + int(rng.integers(size))] ^= 1 << int(rng.integers(8))
            path.write_bytes(broken)
            try:  # deflate has a few bits that stand for nothing
                assert np.array_equal(shards.take(path, np.array([row])), data[[row]])
            except DamageError:
                refused += 1
            assert np.array_equal(shards.take(path, others), data[others])
    assert refused > 90


@pytest.mark.parametrize("msl", [16, 128, 300, 511, 512])
def test_a_chunk_is_the_deflate_of_its_rows_alone(tmp_path: Path, msl: int) -> None:
    data, together = rows(21, msl), {16: 8, 128: 8, 300: 3, 511: 2, 512: 1}[msl]
    files: list[bytes] = []
    for number, cuts in enumerate(([21], [1, 20], [5, 7, 9], [8, 8, 5], [1] * 21)):
        path = tmp_path / f"{number}.h5"
        shards.write(path, 21, np.split(data, np.cumsum(cuts)[:-1]))
        files.append(path.read_bytes())
    assert len(set(files)) == 1
    with h5py.File(tmp_path / "0.h5") as file:
        dataset: Any = file["data"]
        for first in range(0, 21, together):
            plain = np.zeros((together, 3, msl), "<i4")
            plain[: 21 - first] = data[first : first + together]
            chunk = dataset.id.read_direct_chunk((first, 0, 0))
            assert chunk == (0, deflate.zlib_compress(plain.tobytes(), 1))


def test_a_flipped_bit_anywhere_never_gives_another_row(tmp_path: Path) -> None:
    # All 41,848 bits of such a file were tried once: 8,271 are refused, none gives another row.
    path, data = tmp_path / "data-00000.h5", rows(5)
    shards.write(path, 5, [data])
    sound = path.read_bytes()
    bits = randomness.stream(1, "anywhere").permutation(8 * len(sound))[:400]
    # And the superblock, the dataset's header and its tree more closely.
    bits = np.concatenate([bits, np.arange(0, 96 * 8, 9), np.arange(800 * 8, 1800 * 8, 19)])
    refused = 0
    for bit in bits.tolist():
        broken = bytearray(sound)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            assert np.array_equal(shards.read(path), data), bit
        except DamageError:
            refused += 1
    assert refused > 100


def test_a_row_of_another_length_or_checksum_is_damage(tmp_path: Path) -> None:
    plain = rows(1)[0].tobytes()
    short, long = zlib.compress(plain[:-4]), zlib.compress(plain + b"abcd")
    sums = bytearray(zlib.compress(plain))
    sums[-1] ^= 1
    for number, chunk in enumerate((short, long, bytes(sums), plain, b"x")):
        path = foreign(tmp_path / f"{number}.h5", rows(3), chunks=(1, 3, 16), compression="gzip")
        with h5py.File(path, "r+") as file:
            dataset: Any = file["data"]
            dataset.id.write_direct_chunk((1, 0, 0), chunk, filter_mask=0)
        with pytest.raises(DamageError, match=f"{number}.h5: is not a readable shard"):
            shards.read(path)
        assert np.array_equal(shards.take(path, np.array([2, 0])), rows(3)[[2, 0]])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_damage(tmp_path: Path, share: float) -> None:
    path = tmp_path / "data-00000.h5"
    shards.write(path, 40, [rows(40)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DamageError, match=r"data-00000.h5: is not a readable shard"):
        shards.read(path)


def test_what_is_no_shard_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DamageError, match=r"none.h5: is missing"):
        shards.read(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    flat = foreign(tmp_path / "flat.h5", rows(4)[:, 0])
    two = foreign(tmp_path / "two.h5", rows(4)[:, :2])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_group("data")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for path in (tmp_path / "text.h5", flat, two, tmp_path / "other.h5", tmp_path / "empty.h5"):
        with pytest.raises(DamageError, match=f"{path.name}: is not a readable shard"):
            shards.shape(path)


def test_an_error_midway_leaves_no_file_and_the_old_one_whole(tmp_path: Path) -> None:
    def breaking() -> Iterator[Rows]:
        yield rows(2)
        raise RuntimeError("midway")

    path = tmp_path / "data-00000.h5"
    with pytest.raises(RuntimeError, match="midway"):
        shards.write(path, 4, breaking())
    assert names(tmp_path) == []
    shards.write(path, 3, [rows(3)])
    with pytest.raises(RuntimeError, match="midway"):
        shards.write(path, 4, breaking())
    assert names(tmp_path) == ["data-00000.h5"]
    assert np.array_equal(shards.read(path), rows(3))


def test_a_shard_of_many_blocks_is_the_same_with_and_without_a_second_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(2000, 8)
    told = []
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        told.append(shards.write(tmp_path / "a.h5", 2000, np.array_split(data, 30)))
    assert told[0] == told[1]
    assert told[0].digest == sha256(data.tobytes()).hexdigest()


@pytest.mark.parametrize("cores", [{0}, {0, 1}])
def test_an_error_of_any_block_is_raised_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: set[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    for broken in (0, 1, 5):
        blocks: list[Any] = [rows(100)] * 6
        blocks[broken] = "no rows"
        with pytest.raises(ValueError, match="could not convert|invalid literal"):
            shards.write(tmp_path / "a.h5", 600, blocks)
        assert names(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("deflate")]


def test_rows_of_two_lengths_make_no_shard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows of 192 and of 96 bytes"):
        shards.write(tmp_path / "a.h5", 4, [rows(2), rows(2, 8)])
    assert names(tmp_path) == []


@pytest.mark.parametrize(("asked", "given"), [(3, 2), (2, 3), (0, 0)])
def test_a_wrong_number_of_rows_is_refused(tmp_path: Path, asked: int, given: int) -> None:
    with pytest.raises(ValueError, match="rows, expected"):
        shards.write(tmp_path / "a.h5", asked, [rows(given)] if given else [])
    assert names(tmp_path) == []


def test_a_replaced_shard_is_read_anew_even_within_one_tick(tmp_path: Path) -> None:
    path = tmp_path / "data-00000.h5"
    for seed in range(8):
        shards.write(path, 2, [rows(2, seed=seed)])
        os.utime(path, ns=(10**18, 10**18))
        assert np.array_equal(shards.read(path), rows(2, seed=seed))


def test_a_folder_lists_its_shards_by_name(tmp_path: Path) -> None:
    for number in (2, 0, 10, 1):
        shards.write(tmp_path / shards.name(number), 1, [rows(1)])
    (tmp_path / "data-00000.spans.parquet").write_bytes(b"")
    told = [path.name for path in shards.folder(tmp_path)]
    assert told == [shards.name(number) for number in (0, 1, 2, 10)]


WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from crystalmix.prep.rows import shards, shuffle

folder, seed, cores = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
order = np.random.default_rng(seed).permutation(12)
for number in order.tolist():  # what was deflated before must not show
    rng = np.random.default_rng(number)
    ids = rng.zipf(1.1 + number / 20, (300 + number, 257)).astype(np.int32) % 32_000
    rows = np.ones((len(ids), 3, 256), np.int32)
    rows[:, 0], rows[:, 2] = ids[:, :-1], ids[:, 1:]
    blocks = [rows[i : i + 64] for i in range(0, len(rows), 64)]
    shards.write(folder / shards.name(number), len(rows), blocks)
inputs = tuple(shuffle.Input(p.name, p, shards.shape(p)[0]) for p in shards.folder(folder))
shuffle.shuffle(inputs, shuffle.order(inputs, (0, 500), 1, "web"), folder / "out" / "shuffled.h5")
"""


def test_equal_rows_make_equal_files_whatever_memory_held_before(tmp_path: Path) -> None:
    """Processes write the same shards at other times, in other orders, over other memory."""
    for seed, cores in ((1, 1), (2, 2), (3, 2)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        environment = {**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.perturb={seed * 77}"}
        words = [sys.executable, "-c", WRITER, str(folder), str(seed), str(cores)]
        subprocess.run(words, check=True, env=environment)
    files = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / str(seed) for seed in (1, 2, 3))
    ]
    assert len(files[0]) == 14
    assert files[0] == files[1] == files[2]


def test_equal_rows_make_equal_files_whatever_stack_they_are_deflated_on(tmp_path: Path) -> None:
    """A row whose first token comes twice finds the second in every thread, or in none.

    ISA-L's levels 1 and 2 (python-isal 1.9.1) hash the third byte of a stream by the address of its
    state on the stack, not by the data: where that slot is the first token's, the match that
    follows is lost. Short rows have small tables of hashes, so that some of them meet it.
    """
    ids = np.repeat(np.arange(256, dtype=np.int32)[:, None], 17, axis=1)
    ids[:, 2:] = np.arange(1000, 1015)
    block = np.ones((len(ids), 3, 16), np.int32)
    block[:, 0], block[:, 2] = ids[:, :-1], ids[:, 1:]
    together = threading.Barrier(STACKS)

    def write(number: int) -> None:
        together.wait()  # all stacks are there at once, so each has an address of its own
        shards.write(tmp_path / shards.name(number), len(block), [block])
        together.wait()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(STACKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in shards.folder(tmp_path)}) == 1
