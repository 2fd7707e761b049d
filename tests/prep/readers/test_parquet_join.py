"""Joined parquet files: the bytes that one writer writes of the same row groups."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.readers.parquet_join import join


def written(path: Path, groups: Sequence[pa.Table]) -> Path:
    with pq.ParquetWriter(path, groups[0].schema, compression="zstd") as writer:
        for group in groups:
            if len(group):
                writer.write_table(group)
    return path


def group(first: int, size: int) -> pa.Table:
    """A row group with nulls, long texts, a nested column and one of each kind of number."""
    numbers = range(first, first + size)
    return pa.table(
        {
            "number": pa.array(numbers, pa.int64()),
            "text": pa.array([None if i % 5 == 0 else f"t{i}" * (i % 200) for i in numbers]),
            "same": pa.array(["x"] * size).dictionary_encode(),
            "digest": pa.array([i.to_bytes(16, "big") for i in numbers], pa.binary(16)),
            "share": pa.array([i / 7 for i in numbers]),
            "flag": pa.array([i % 2 == 0 for i in numbers]),
            "list": pa.array([[{"a": i}] * (i % 3) for i in numbers]),
            "small": pa.array([i % 100 for i in numbers], pa.int8()),
        }
    )


@pytest.mark.parametrize("cuts", [(0, 1, 40), (0, 13, 13, 39, 40), (0, 40)])
def test_a_joined_file_is_that_of_one_writer(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    groups = [group(i * 1000, 50 + i) for i in range(40)]
    whole = written(tmp_path / "whole.parquet", groups)
    files = [
        written(tmp_path / f"{number}.parquet", groups[cut:stop] or [groups[0].slice(0, 0)])
        for number, (cut, stop) in enumerate(pairwise(cuts))
    ]
    join(files, tmp_path / "joined.parquet")
    assert (tmp_path / "joined.parquet").read_bytes() == whole.read_bytes()
    assert pq.read_table(tmp_path / "joined.parquet").equals(pa.concat_tables(groups))


def test_no_rows_at_all_are_joined(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{i}.parquet", [group(0, 0)]) for i in range(2)]
    join(files, tmp_path / "joined.parquet")
    assert pq.read_table(tmp_path / "joined.parquet").num_rows == 0


def test_what_has_another_schema_or_is_no_parquet_is_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "one.parquet", [group(0, 3)])
    two = written(tmp_path / "two.parquet", [group(0, 3).select(["number"])])
    with pytest.raises(ValueError, match=r"two.parquet: has another schema than .*one.parquet"):
        join([one, two], tmp_path / "out.parquet")
    two.write_bytes(one.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"two.parquet: is no parquet file"):
        join([one, two], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
