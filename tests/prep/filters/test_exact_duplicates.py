"""Exact duplicates: the first by source, block and record stays, in bounded memory."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters import exact_duplicates as duplicates
from crystalmix.prep.filters.exact_duplicates import RECORDS, Duplicates
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.runtime.database import NAME, scratch
from crystalmix.prep.runtime.errors import RefusalError

DOCUMENTS = 1_000_000
# A process of its own: a million digests, half of them repeated, in 64 MB beside the libraries.
BIG = """
import sys
from pathlib import Path
from crystalmix.prep.filters import exact_duplicates as duplicates
from crystalmix.prep.runtime.database import scratch
folder = Path(sys.argv[1])
parts = sorted(folder.glob("*.parquet"))
with scratch(folder) as connection:
    connection.execute("SELECT 1").fetchall()
def peak():  # what getrusage tells begins with the parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
with scratch(folder, memory="64MB") as connection:
    duplicates.find(connection, [], parts)
    print(sum(len(duplicates.repeated(connection, i)[0]) for i in range(len(parts))))
print(peak() - before)
"""


def part(path: Path, digests: Sequence[int]) -> Path:
    raw = np.array(digests, ">u8").repeat(2).tobytes()
    rows = [raw[i : i + 16] for i in range(0, len(raw), 16)]
    records = pa.array(np.arange(len(rows)) * 3, pa.int64())
    pq.write_table(pa.table({"record": records, "digest": pa.array(rows, pa.binary(16))}), path)
    return path


blocks = st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=4)


@settings(max_examples=60, deadline=None)
@given(blocks, blocks)
def test_the_first_of_each_text_stays(
    tmp_path_factory: pytest.TempPathFactory, earlier: list[list[int]], own: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    before = [part(folder / f"before-{i}", block) for i, block in enumerate(earlier)]
    parts = [part(folder / f"own-{i}", block) for i, block in enumerate(own)]
    seen: dict[int, int] = {}
    for number, block in enumerate(earlier):
        for value in block:
            seen.setdefault(value, number - len(earlier))
    with scratch(folder) as connection:
        duplicates.find(connection, before, parts)
        for number, block in enumerate(own):
            expected: list[tuple[int, int]] = []
            for record, value in enumerate(block):
                place = number * RECORDS + 3 * record
                if seen.setdefault(value, place) != place:
                    expected.append((3 * record, seen[value]))
            records, firsts = duplicates.repeated(connection, number)
            assert list(zip(records.tolist(), firsts.tolist(), strict=True)) == expected


def test_a_million_digests_take_little_memory(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.Philox(2))
    values = rng.integers(0, DOCUMENTS, DOCUMENTS)
    for number, some in enumerate(np.split(values, 4)):
        raw = some.astype(">u8").repeat(2).tobytes()
        digests = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(some), [None, pa.py_buffer(raw)]
        )
        table = pa.table({"record": pa.array(np.arange(len(some))), "digest": digests})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    command = [sys.executable, "-c", BIG, str(tmp_path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path.cwd())
    found, kilobytes = map(int, told.stdout.split())
    assert found == DOCUMENTS - len(np.unique(values))
    assert kilobytes < 300_000  # of which DuckDB may hold 64 MB, and Arrow a batch


def test_halves_are_those_of_the_digest() -> None:
    digests = [bytes(range(i, i + 16)) for i in range(5)]
    column = pa.chunked_array(
        [pa.array(digests[:2], pa.binary(16)), pa.array(digests[2:], pa.binary(16))]
    )
    found = duplicates.halves(column)
    assert found.tolist() == [
        [int.from_bytes(d[:8], "big"), int.from_bytes(d[8:], "big")] for d in digests
    ]
    assert duplicates.halves(pa.array(digests, pa.binary(16))[2:4]).tolist() == found[2:4].tolist()
    assert duplicates.halves(pa.array([], pa.binary(16))).shape == (0, 2)


def test_a_scratch_leaves_nothing_and_clears_what_was_left(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "scratch.duckdb").write_bytes(b"half a file")
    with scratch(tmp_path) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS a")
        assert (tmp_path / NAME).is_dir()
    assert not (tmp_path / NAME).exists()


def test_a_scratch_that_runs_out_of_room_is_told(tmp_path: Path) -> None:
    def sort() -> None:
        with scratch(tmp_path, memory="8MB", max_temp_directory_size="1MB") as connection:
            query = "SELECT DISTINCT hash(range) FROM range(9000000) ORDER BY 1"
            connection.execute(query).fetchall()

    with pytest.raises(RefusalError, match="make room on that disk and build again"):
        sort()
    assert not (tmp_path / NAME).exists()


def test_across_tells_whether_sources_depend_on_each_other() -> None:
    assert not Duplicates().across
    assert not Duplicates("source", Near()).across
    assert Duplicates("recipe").across
    assert Duplicates("none", Near(scope="recipe")).across
