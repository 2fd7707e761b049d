"""Handles: few files open, right rows from any thread, other layouts only where they are whole."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from crystalmix.prep.rows import check_rows, shards
from crystalmix.prep.rows import open_shards as handles
from crystalmix.prep.rows.open_shards import Handle, Pool, Rows
from crystalmix.prep.runtime.errors import DamageError

MSL = 8


def rows(count: int, shard: int = 0) -> Rows:
    """Return rows that tell the shard and the row they are: (count, 3, MSL)."""
    data = np.ones((count, 3, MSL), np.int32)
    data[:, 0, 0], data[:, 0, 1] = shard, np.arange(count)
    return data


def folder(path: Path, count: int, size: int = 10) -> list[Path]:
    """Write `count` shards; every fourth in a layout that HDF5 must read."""
    for shard in range(count):
        if shard % 4 == 3:
            foreign(path / shards.name(shard), rows(size, shard))
        else:
            shards.write(path / shards.name(shard), size, [rows(size, shard)])
    return shards.folder(path)


def foreign(path: Path, data: Any, **layout: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=data, **layout)
    return path


def taken(handle: Handle, wanted: list[int]) -> list[tuple[int, int]]:
    out = np.empty((len(wanted), 3, MSL), np.int32)
    handle.into(out, np.arange(len(wanted)), np.array(wanted))
    return [(int(shard), int(row)) for shard, row in out[:, 0, :2]]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_pool_keeps_few_files_open_and_closes_the_others(tmp_path: Path) -> None:
    paths, pool = folder(tmp_path, 40), Pool(16)
    before = descriptors()
    for _ in range(2):
        for shard, path in enumerate(paths):
            assert taken(pool.get(path), [1, 2, 9]) == [(shard, row) for row in (1, 2, 9)]
            assert pool.weight <= 16
            assert descriptors() - before <= 16
    pool.clear()
    assert (len(pool), pool.weight, descriptors()) == (0, 0, before)


def test_a_chunk_of_several_rows_is_inflated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, inflated, sizes = tmp_path / shards.name(0), handles.inflated, list[int]()

    def counted(packed: Any, skipped: int, size: int) -> Any:
        sizes.append(size)
        return inflated(packed, skipped, size)

    monkeypatch.setattr(handles, "inflated", counted)
    shards.write(path, 20, [rows(20)])
    handle = Handle(path)
    wanted = [0, 1, 7, 8, 16, 19]  # of chunks of 8 rows
    assert taken(handle, wanted) == [(0, row) for row in wanted]
    assert sizes == [8 * handle.row_bytes] * 3


def test_the_latest_used_files_stay_open(tmp_path: Path) -> None:
    paths, pool = folder(tmp_path, 3), Pool(2)
    first = pool.get(paths[0])
    pool.get(paths[1])
    assert pool.get(paths[0]) is first
    pool.get(paths[2])
    assert pool.get(paths[0]) is first


def test_who_holds_an_evicted_file_may_go_on(tmp_path: Path) -> None:
    paths, pool = folder(tmp_path, 20), Pool(1)
    held = [pool.get(path) for path in paths]
    for shard, handle in enumerate(held):
        assert taken(handle, [3]) == [(shard, 3)]


def test_a_replaced_file_is_opened_anew(tmp_path: Path) -> None:
    pool, path = Pool(4), tmp_path / shards.name(0)
    for shard in range(6):
        shards.write(path, 10, [rows(10, shard)])
        os.utime(path, ns=(10**18, 10**18))
        assert taken(pool.get(path), [7]) == [(shard, 7)]
        assert len(pool) == 1


def test_many_threads_share_a_small_pool(tmp_path: Path) -> None:
    paths, pool = folder(tmp_path, 12), Pool(9)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            shard, wanted = int(rng.integers(12)), np.sort(rng.integers(0, 10, 3)).tolist()
            assert taken(pool.get(paths[shard]), wanted) == [(shard, row) for row in wanted]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(16)))


FEW = """
import os, resource, sys
from pathlib import Path
import numpy as np
from crystalmix.prep.rows import check_rows, shards
paths = shards.folder(Path(sys.argv[1]))
for path in paths[:8]:
    shards.read(path)
others = [os.open(os.devnull, os.O_RDONLY)]
resource.setrlimit(resource.RLIMIT_NOFILE, (others[-1] + 1, others[-1] + 1))
for path in paths:
    assert len(shards.read(path)) == 10
for _ in range(2):
    try:
        while True:
            others.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        shards.read(paths[0])
    except OSError as error:
        assert "Too many open files" in str(error) and error.filename == str(paths[0]), error
        sys.exit(0)
"""


def test_when_descriptors_run_out_the_pool_gives_its_own_back(tmp_path: Path) -> None:
    folder(tmp_path, 16)
    subprocess.run([sys.executable, "-c", FEW, str(tmp_path)], check=True)


def test_the_pool_leaves_most_descriptors_to_others() -> None:
    assert 16 <= handles.POOL.most <= 512


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u4", "<f4", "<i2"])
def test_what_is_not_int32_is_refused(tmp_path: Path, dtype: str) -> None:
    layouts: list[dict[str, Any]] = [{}, {"chunks": (1, 3, MSL), "compression": "gzip"}]
    for layout in layouts:
        path = foreign(tmp_path / "a.h5", rows(4).astype(dtype), **layout)
        with pytest.raises(DamageError, match=r"a\.h5: is not .* \(`data` is .*, not int32\)"):
            shards.read(path)


@pytest.mark.parametrize("told", [3, 5, -4])
@pytest.mark.parametrize("layout", [{}, {"chunks": (1, 3, MSL), "compression": "gzip"}])
def test_a_file_that_counts_its_rows_otherwise_is_refused(
    tmp_path: Path, told: int, layout: dict[str, Any]
) -> None:
    path = foreign(tmp_path / "a.h5", rows(4), **layout)
    with h5py.File(path, "r+") as file:
        file.attrs["n_examples"] = told
    with pytest.raises(DamageError, match=rf"n_examples is {told}, but `data` has 4 rows"):
        shards.shape(path)


@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
@pytest.mark.parametrize("chunks", [(1, 3, MSL), (2, 3, MSL), (2, 1, 4)])
def test_rows_that_were_never_written_are_not_zeros(
    tmp_path: Path, chunks: tuple[int, ...], compression: str | None
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset: Any = file.create_dataset(
            "data", (8, 3, MSL), "<i4", chunks=chunks, compression=compression
        )
        dataset[:6] = rows(6)
    with pytest.raises(DamageError, match=r"a\.h5: is not a readable shard"):
        shards.read(path)


def test_a_contiguous_file_that_was_never_filled_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (8, 3, MSL), "<i4")
    with pytest.raises(DamageError, match="holds 0 bytes of rows"):
        shards.shape(tmp_path / "a.h5")


def test_chunks_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "data", (10**6, 3, 64), "<i4", chunks=(10**6, 3, 64), compression="gzip"
        )
    with pytest.raises(DamageError, match="too large: repack it in chunks of a row"):
        shards.shape(tmp_path / "a.h5")


GROWING: dict[str, Any] = {"maxshape": (None, 3, MSL), "chunks": (1, 3, MSL)}


@pytest.mark.parametrize("layout", [{}, GROWING, {**GROWING, "compression": "gzip"}])
def test_a_file_of_no_rows_has_none(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = foreign(tmp_path / "a.h5", np.zeros((0, 3, MSL), np.int32), **layout)
    assert shards.shape(path) == (0, MSL)
    assert shards.read(path).shape == (0, 3, MSL)
    assert list(shards.blocks(path)) == []
    with pytest.raises(DamageError, match="has 0 rows, but rows 0 to 0 are asked"):
        shards.take(path, np.array([0]))


def linked(folder: Path, how: str) -> Path:
    """Write a shard whose rows lie elsewhere, need a plugin, or are none."""
    path, other = folder / "a.h5", folder / "other.h5"
    shards.write(other, 2, [np.ones((2, 3, 8), np.int32)])
    (folder / "raw.bin").write_bytes(bytes(2 * 3 * 8 * 4))
    with h5py.File(path, "w") as file:
        file.attrs["n_examples"] = 2
        if how == "external storage":
            file.create_dataset("data", (2, 3, 8), "<i4", external=[(folder / "raw.bin", 0, 192)])
        elif how == "soft link":
            file.create_dataset("else", data=np.ones((2, 3, 8), np.int32))
            file["data"] = h5py.SoftLink("/else")
        elif how == "external link":
            file["data"] = h5py.ExternalLink(str(other), "data")
        elif how == "virtual":
            layout = h5py.VirtualLayout((2, 3, 8), "<i4")
            layout[:] = h5py.VirtualSource(str(other), "data", (2, 3, 8))
            file.create_virtual_dataset("data", layout)
        elif how == "plugin":
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_chunk((1, 3, 8))
            settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
            space = h5py.h5s.create_simple((2, 3, 8))
            made = h5py.h5d.create(file.id, b"data", h5py.h5t.STD_I32LE, space, settings)
            for row in range(2):
                made.write_direct_chunk((row, 0, 0), bytes(96), 0)
        else:
            file.create_dataset("data", (2, 3, 0), "<i4")
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("external storage", "its rows lie in other files"),
        ("soft link", "`data` is a link to elsewhere"),
        ("external link", "`data` is a link to elsewhere"),
        ("virtual", "its rows lie in other files"),
        ("plugin", "HDF5 filter 32015"),
        ("no tokens", "its rows are of 0 tokens"),
    ],
)
def test_what_a_shard_does_not_hold_itself_is_refused(tmp_path: Path, how: str, words: str) -> None:
    path = linked(tmp_path, how)
    for work in (shards.shape, shards.read, check_rows.check):
        with pytest.raises(DamageError, match=words) as met:
            work(path)
        assert "\n" not in str(met.value)


def test_a_fifo_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(DamageError, match="is no regular file"):
        shards.shape(tmp_path / "a.h5")
