"""Chunks: the places that HDF5 itself tells, for any rows; what is not known is left to HDF5."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import hdf5_layout as chunks
from crystalmix.prep.rows import shards
from helpers.materials import shared

MSL = 2


def made(folder: Path, count: int, *, ours: bool = False) -> Path:
    """Return a shard of `count` rows, written once: a chunk each, or ours of short rows."""
    path = folder / f"rows-{count}-{ours}.h5"
    rows = np.arange(count * 3 * MSL, dtype=np.int32).reshape(-1, 3, MSL)
    if ours and not path.exists():
        shards.write(path, count, [rows])
    elif not path.exists():
        with h5py.File(path, "w") as file:
            file.attrs["n_examples"] = count
            file.create_dataset("data", data=rows, chunks=(1, 3, MSL), compression="gzip")
    return path


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, chunks.Chunks | None]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd, chunks.read(fd, path.stat().st_size)
    finally:
        os.close(fd)


def told_by_hdf5(path: Path, rows: list[int]) -> list[tuple[int, int]]:
    with h5py.File(path) as file:
        dataset: Any = file["data"]
        infos = [dataset.id.get_chunk_info_by_coord((row, 0, 0)) for row in rows]
        assert all(info.filter_mask == 0 for info in infos)
    return [(info.byte_offset, info.size) for info in infos]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.sampled_from([1, 2, 63, 64, 65, 200, 6000]), ours=st.booleans())
def test_rows_lie_where_hdf5_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int, ours: bool
) -> None:
    # 6,000 chunks: a tree of three levels
    path = made(tmp_path_factory.getbasetemp(), count, ours=ours)
    rows = sorted(data.draw(st.lists(st.integers(0, count - 1), max_size=20)))
    with opened(path) as (fd, found):
        assert found is not None
        together = min(8, count) if ours else 1
        assert (found.rows, found.msl, found.together) == (count, MSL, together)
        told = found.locate(fd, np.array(rows, np.int64))
    assert list(zip(told["at"].tolist(), told["size"].tolist(), strict=True)) == told_by_hdf5(
        path, rows
    )


def test_all_rows_of_a_large_shard_lie_where_hdf5_says(tmp_path: Path) -> None:
    path = made(tmp_path, 6000)
    with opened(path) as (fd, found):
        assert found is not None
        told = found.locate(fd, np.arange(6000))
    sample = list(range(0, 6000, 37))
    assert [(int(told["at"][r]), int(told["size"][r])) for r in sample] == told_by_hdf5(
        path, sample
    )


@pytest.mark.parametrize(
    ("msl", "together"), [(1, 8), (128, 8), (129, 7), (300, 3), (511, 2), (512, 1), (2048, 1)]
)
def test_rows_share_a_chunk_of_1024_tokens_where_they_are_short(msl: int, together: int) -> None:
    assert chunks.rows_together(4096, msl) == together
    assert chunks.rows_together(1, msl) == 1  # HDF5 has no chunk larger than the dataset


LAYOUTS: dict[str, dict[str, Any]] = {
    "several rows": {"chunks": (2, 3, MSL), "compression": "gzip"},
    "stage 3": {"chunks": (2, 1, 2), "compression": "gzip"},
    "contiguous": {},
    "uncompressed": {"chunks": (1, 3, MSL)},
    "shuffle filter": {"chunks": (1, 3, MSL), "compression": "gzip", "shuffle": True},
    "checksums": {"chunks": (1, 3, MSL), "compression": "gzip", "fletcher32": True},
    "lzf": {"chunks": (1, 3, MSL), "compression": "lzf"},
    "int64": {"chunks": (1, 3, MSL), "compression": "gzip", "dtype": "<i8"},
    "unsigned": {"chunks": (1, 3, MSL), "compression": "gzip", "dtype": "<u4"},
    "big endian": {"chunks": (1, 3, MSL), "compression": "gzip", "dtype": ">i4"},
    "floats": {"chunks": (1, 3, MSL), "compression": "gzip", "dtype": "<f4"},
    "resizable": {"chunks": (1, 3, MSL), "compression": "gzip", "maxshape": (None, 3, MSL)},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("version", ["earliest", "v108", "v110", "latest"])
def test_another_layout_is_left_to_hdf5(
    tmp_path: Path, version: str, layout: dict[str, Any]
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=(version, "latest")) as file:
        file.create_dataset("data", data=np.ones((5, 3, MSL), np.int32), **layout)
    known = (version, layout) == ("earliest", LAYOUTS["resizable"])  # is laid out as ours are
    with opened(path) as (_, found):
        assert (found is not None) is known


def test_other_datasets_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("before", data=[1.0])
        file.create_dataset(
            "data", data=np.ones((5, 3, MSL), np.int32), chunks=(1, 3, MSL), compression="gzip"
        )
        file.create_dataset("data2", data=[1.0])
        file.attrs["n_examples"] = 5
    with opened(path) as (fd, found):
        assert found is not None
        told = found.locate(fd, np.arange(5))
    assert told["size"].tolist() == [size for _, size in told_by_hdf5(path, list(range(5)))]


@pytest.mark.parametrize("count", [4, 6])
def test_a_wrong_number_of_examples_is_left_to_hdf5(tmp_path: Path, count: int) -> None:
    path = made(tmp_path, 5)
    with h5py.File(path, "r+") as file:
        file.attrs["n_examples"] = count
    with opened(path) as (_, found):
        assert found is None


def test_a_row_that_was_never_written_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset: Any = file.create_dataset(
            "data", (5, 3, MSL), "<i4", chunks=(1, 3, MSL), compression="gzip"
        )
        dataset[1:3] = 7
    for rows in ([0], [3], [4], [0, 1], [1, 2, 3], [0, 1, 2, 3, 4]):
        with opened(path) as (fd, found):
            assert found is not None
            with pytest.raises(ValueError, match="not in its table of chunks"):
                found.locate(fd, np.array(rows))


@pytest.mark.parametrize("rows", [[0], [5999], [0, 5999], list(range(6000))])
@pytest.mark.parametrize("harm", ["mark", "level", "count", "past the end"])
def test_a_broken_tree_is_told(tmp_path: Path, harm: str, rows: list[int]) -> None:
    path = made(tmp_path, 6000)
    with opened(path) as (_, found):
        assert found is not None
    content = bytearray(path.read_bytes())
    match harm:
        case "mark":
            content[found.tree : found.tree + 4] = b"BEAR"
        case "level":
            content[found.tree + 5] += 1
        case "count":
            content[found.tree + 6] = 200
        case _:  # where the children of the root lie
            for at in range(found.tree + 24 + 40, found.tree + 24 + 48 * 4, 48):
                content[at : at + 8] = (len(content) + 5).to_bytes(8, "little")
    path.write_bytes(content)
    with opened(path) as (fd, broken):
        assert broken is not None
        with pytest.raises(ValueError, match="table of chunks"):
            broken.locate(fd, np.array(rows))


@pytest.mark.golden
def test_the_original_code_lays_out_most_of_its_files_as_ours_are() -> None:
    files = sorted(shared("golden", "pipeline").rglob("*.h5"))
    left = [path for path in files if not _known(path)]
    assert len(files) > 100
    assert {path.parent.parent.name for path in left} == {"stage3_procs2"}


def _known(path: Path) -> bool:
    with opened(path) as (_, found):
        return found is not None
