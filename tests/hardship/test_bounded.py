"""Readers stay within 600 MB, whatever a file holds: bombs, long lines, long cells."""

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

from helpers.materials import nasty, raw, squeezed

LIMIT_MB = 600


MEASURE = """
import sys
from pathlib import Path
from crystalmix.prep.documents import scan as documents, source as sources
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.prep.documents.source import Source
root, name = Path(sys.argv[1]), sys.argv[2]
source = Source("s", files=(name,), where=sys.argv[3] or None)
try:
    told = documents.scan(source, root, name, Path(sys.argv[4]))
    print(told.documents, sum(told.dropped.values()))
except CrystalmixError as error:
    print("refused", error)
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


def measured(folder: Path, name: str, scratch: Path, where: str = "") -> str:
    """Scan a file in a process of its own, hold its peak memory to the limit, return its counts."""
    words = [sys.executable, "-c", MEASURE, str(folder), name, where, str(scratch / "out.parquet")]
    done = run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    counts, peak = done.stdout.splitlines()
    assert int(peak) < LIMIT_MB * 1000, f"{name}: {int(peak) // 1000} MB"
    return counts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nasty(tmp_path_factory.mktemp("nasty"))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("jsonl/zstd_bomb_1GB.jsonl.zst", "0 1"),
        ("jsonl/long_line_20MB.jsonl.zst", "1 0"),
        ("jsonl/long_repeat_20MB.jsonl.zst", "2 2"),
        ("jsonl/long_window.jsonl.zst", "20 0"),
        ("jsonl/many_keys.jsonl", "1 0"),
    ],
)
@pytest.mark.parametrize("where", ["", "length(text) > 3"])
def test_memory_stays_bounded(
    root: Path, tmp_path: Path, name: str, counts: str, where: str
) -> None:
    assert measured(root, name, tmp_path, where) == counts


LINE = b'{"text": "' + b" " * (64 << 20) + b'"}\n'


NEWLINES = b'{"text": "a"}' + b"\n" * (1 << 20)


VALUES = b'{"text": "a", "x": [' + b"[]," * (10 << 20) + b'0]}\n{"text": "b"}\n'


WIDE = ('{"text": "' + "a" * (31 << 20) + '\U0001f600"}\n').encode()


@pytest.mark.parametrize(
    ("suffix", "content", "times", "counts"),
    [
        (".gz", LINE, 8, "refused"),
        (".bz2", LINE, 8, "refused"),
        (".zst", NEWLINES, 8, "8 0"),
        (".zst", VALUES, 1, "1 1"),
        (".gz", WIDE, 3, "3 0"),
    ],
    ids=["gzip", "bzip2", "blank lines", "values", "wide characters"],
)
def test_memory_stays_bounded_whatever_a_file_holds(
    tmp_path: Path, suffix: str, content: bytes, times: int, counts: str
) -> None:
    path = tmp_path / f"bomb.jsonl{suffix}"
    path.write_bytes(squeezed(path, content) * times)
    assert measured(tmp_path, path.name, tmp_path).startswith(counts)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_memory_stays_bounded_for_one_row_group_of_300_mb(tmp_path: Path, compression: Any) -> None:
    code = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
rng = np.random.default_rng(0)
rows = ["".join(map(chr, rng.integers(97, 123, 3000))) * 10 for _ in range(200)] * 50
rows[777] = "x" * 20_000_000
pq.write_table(pa.table({"text": rows}), sys.argv[1], compression=sys.argv[2], use_dictionary=False,
               row_group_size=1 << 30)
"""
    run([sys.executable, "-c", code, str(tmp_path / "a.parquet"), compression], check=True)
    assert measured(tmp_path, "a.parquet", tmp_path) == "10000 0"


def test_memory_stays_bounded_for_a_long_cell_that_a_dictionary_repeats(tmp_path: Path) -> None:
    rows = [{"text": "x" * 20_000_000}] * 30
    raw(tmp_path / "a.parquet", rows)
    assert (tmp_path / "a.parquet").stat().st_size < 30_000_000
    assert measured(tmp_path, "a.parquet", tmp_path, "length(text) > 3") == "30 0"


BOMBS = {
    "cell": 'pa.table({"text": ["x" * 300_000_000]})',
    "list": 'pa.table({"text": ["a"], "l": [[1] * 60_000_000]})',
    "cells": 'pa.table({"text": ["x" * 110_000_000, "b"]})',
    "nulls": 'pa.table({"text": pa.nulls(2_000_000, pa.string())})',
}


@pytest.mark.parametrize(
    ("bomb", "where", "counts"),
    [
        ("cell", "", "refused"),
        ("list", "len(l) > 0", "refused"),
        ("list", "", "1 0"),
        ("cells", "length(text) > 0", "1 1"),
        ("nulls", "", "0 2000000"),
    ],
)
def test_memory_stays_bounded_for_parquet_that_unpacks_to_much(
    tmp_path: Path, bomb: str, where: str, counts: str
) -> None:
    code = f"""
import sys, pyarrow as pa, pyarrow.parquet as pq
pq.write_table({BOMBS[bomb]}, sys.argv[1], compression="zstd")
"""
    run([sys.executable, "-c", code, str(tmp_path / "a.parquet")], check=True)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    told = measured(tmp_path, "a.parquet", tmp_path, where)
    assert told.startswith(counts)
    if counts == "refused":
        assert "over 4 times max_record_bytes; write it with smaller pages" in told


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize(
    ("bomb", "counts"), [("cell", "refused"), ("list", "refused"), ("cells", "1 1")]
)
def test_memory_stays_bounded_for_arrow_that_unpacks_to_much(
    tmp_path: Path, bomb: str, counts: str, kind: str, compression: str
) -> None:
    code = f"""
import sys, pyarrow as pa
table = {BOMBS[bomb]}
options = pa.ipc.IpcWriteOptions(compression="{compression}")
with pa.ipc.new_{kind}(sys.argv[1], table.schema, options=options) as writer:
    writer.write_table(table)
"""
    run([sys.executable, "-c", code, str(tmp_path / "a.arrow")], check=True)
    assert (tmp_path / "a.arrow").stat().st_size < 20_000_000  # of 110 MB and more
    report = measured(tmp_path, "a.arrow", tmp_path)
    assert report.startswith(counts)
    if counts == "refused":
        assert "over 8 times max_record_bytes; write it in smaller batches" in report


@pytest.mark.parametrize("where", ["k5 = 5", "meta.k5 = 1"])
def test_memory_stays_bounded_for_a_hundred_thousand_keys(tmp_path: Path, where: str) -> None:
    rows = [{"text": f"{i}", f"k{i}": i, "meta": {f"k{i}": 1}} for i in range(100_000)]
    raw(tmp_path / "a.jsonl", rows)
    assert measured(tmp_path, "a.jsonl", tmp_path, where) == "1 99999"
