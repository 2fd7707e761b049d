"""Bucket files: rows go in in any order and come out in theirs, whole or not at all."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import deflate
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import bucket_files, open_shards, shards, shuffle
from crystalmix.prep.rows.bucket_files import Reader, Writer
from crystalmix.prep.rows.shuffle import Input
from crystalmix.prep.runtime.errors import DamageError

MOST_MB = 400  # of 350 MB that pass


def row(number: int) -> bytes:
    return f"row {number}".encode() * (1 + number % 5)


def written(folder: Path, ends: list[int], groups: list[list[int]]) -> list[Path]:
    """Write a file, or some, of each group of places."""
    files: list[Path] = []
    for number, places in enumerate(groups):
        writer = Writer(folder / f"rows-{number}.bin", np.array(ends))
        for place in places:
            writer.add(np.array([place]), [row(place)])
        writer.flush()
        assert sum(rows for _, rows, _ in writer.files) == len(places)
        files += [folder / name for name, _, _ in writer.files]
        assert [(folder / name).stat().st_size for name, _, _ in writer.files] == [
            size for _, _, size in writer.files
        ]
    return files


@settings(max_examples=30, deadline=None)
@given(
    total=st.integers(1, 60),
    cuts=st.sets(st.integers(1, 59), max_size=6),
    groups=st.integers(1, 5),
    held=st.sampled_from([1, 60, 10_000]),
    seed=st.integers(0, 99),
)
def test_rows_come_back_in_the_order_whatever_is_held(
    tmp_path_factory: pytest.TempPathFactory,
    total: int,
    cuts: set[int],
    groups: int,
    held: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("buckets")
    ends = sorted({cut for cut in cuts if cut < total} | {total})
    places = np.random.default_rng(seed).permutation(total)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bucket_files, "HELD_BYTES", held)
        files = written(folder, ends, [part.tolist() for part in np.array_split(places, groups)])
        reader = Reader(files, np.array(ends), 12.0, total)
        asked = sorted({0, total, *np.random.default_rng(seed).integers(0, total, 3).tolist()})
        found = [bytes(one) for pair in pairwise(asked) for one in reader.rows(*pair)]
    assert found == [row(place) for place in range(total)]


def test_a_flipped_byte_is_damage(tmp_path: Path) -> None:
    [path] = written(tmp_path, [3, 6], [[5, 0, 4, 2, 1, 3]])
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
        try:
            found = [bytes(one) for one in Reader([path], np.array([3, 6]), 9.0, 6).rows(0, 6)]
        except DamageError as error:
            assert str(path.parent) in str(error)  # noqa: PT017
        else:
            assert found == [
                row(number) for number in range(6)
            ]  # the index of the end has a digest
    path.unlink()
    with pytest.raises(DamageError, match="is not as it was written"):
        list(Reader([path], np.array([3, 6]), 9.0, 6).rows(0, 6))


def test_a_row_that_is_missing_or_there_twice_is_damage(tmp_path: Path) -> None:
    for number, places in enumerate(([0, 1, 3], [0, 1, 1, 2, 3], [0, 1, 2, 2])):
        folder = tmp_path / str(number)
        files = written(folder, [4], [places])
        with pytest.raises(DamageError, match="each row of 0 to 4 once"):
            list(Reader(files, np.array([4]), 9.0, 4).rows(0, 4))


def test_a_shard_is_read_forwards_in_large_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, path = np.random.default_rng(1), tmp_path / shards.name(0)
    rows = rng.integers(0, 99, (3000, 3, 16)).astype(np.int32)
    with h5py.File(path, "w") as file:  # a chunk for each row
        layout: dict[str, Any] = {"chunks": (1, 3, 16), "compression": "gzip"}
        dataset: Any = file.create_dataset("data", rows.shape, "<i4", **layout)
        for number, one in enumerate(rows):
            dataset.id.write_direct_chunk((number, 0, 0), deflate.zlib_compress(one.tobytes(), 1))
    size, reads, pread = path.stat().st_size, [0], os.pread

    def counted(fd: int, count: int, place: int) -> bytes:
        reads[0] += 1
        return pread(fd, count, place)

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(open_shards, "WINDOW_BYTES", size // 4)
    chunks = [*shards.chunks(path, 3000, 16)]
    assert reads[0] <= 13  # its head, its tables, its rows
    expected = [deflate.zlib_compress(one.tobytes(), shards.LEVEL) for one in rows]
    assert chunks == expected
    assert [*shards.chunks(path, 7, 16)] == expected[:7]
    with pytest.raises(DamageError, match="has 3000 rows, but"):
        list(shards.chunks(path, 3001, 16))
    with pytest.raises(DamageError, match="rows of 16 tokens, the others of 32"):
        list(shards.chunks(path, 3000, 32))


@pytest.mark.parametrize("layout", [{"chunks": (2, 1, 2), "compression": "gzip"}, {}])
def test_rows_of_other_layouts_are_deflated(tmp_path: Path, layout: dict[str, Any]) -> None:
    rows = np.arange(600 * 12, dtype=np.int32).reshape(600, 3, 4)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("data", data=rows, **layout)
    expected = [deflate.zlib_compress(one.tobytes(), shards.LEVEL) for one in rows]
    assert [*shards.chunks(tmp_path / "other.h5", 600, 4)] == expected


def test_a_broken_row_is_told_by_the_shard_that_it_came_from(tmp_path: Path) -> None:
    inputs = tuple(Input(name, tmp_path / name, 2) for name in ("a.h5", "b.h5"))
    good = deflate.zlib_compress(bytes(48), 1)
    for broken in (good[:-1] + b"x", deflate.zlib_compress(bytes(52), 1)):
        chunks = [good, good, broken, good]
        with pytest.raises(DamageError, match=r"b\.h5: is not a readable shard"):
            shuffle.write_deflated(inputs, np.array([0, 1, 3, 2]), tmp_path / "o.h5", 4, chunks)
    assert not (tmp_path / "o.h5").exists()


WORK = """
import os, sys
from pathlib import Path
import numpy as np
from crystalmix.prep.rows.bucket_files import Reader, Writer

count, ends = 350, np.arange(20, 361, 20).clip(max=350)
order = np.random.default_rng(1).permutation(count)
writer = Writer(Path(sys.argv[1]) / "rows.bin", ends)
for place in order.tolist():
    writer.add(np.array([place]), [place.to_bytes(4, "little") + os.urandom(1 << 20)])
writer.flush()
files = [Path(sys.argv[1]) / name for name, _, _ in writer.files]
rows = Reader(files, ends, 1 << 20, count).rows(0, count)
assert [int.from_bytes(row[:4], "little") for row in rows] == [*range(count)]
print(len(files), int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_a_worker_stays_small_however_many_rows_there_are(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WORK, str(tmp_path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    files, peak = map(int, done.stdout.split())
    assert files > 1
    assert peak < MOST_MB
