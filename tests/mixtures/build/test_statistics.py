"""Statistics: tallies of parts are those of the whole, and cut documents are counted one by one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.mixtures.build import statistics
from crystalmix.mixtures.build.statistics import Lengths

lengths = st.lists(st.integers(0, 40), max_size=60)


@given(parts=st.lists(lengths, min_size=1, max_size=5))
def test_quantiles_are_exact_however_the_lengths_come(parts: list[list[int]]) -> None:
    tally = Lengths()
    for part in parts:
        tally.add(np.array(part, np.int64))
    every = sorted(length for part in parts for length in part)
    if not every:
        assert tally.account() == {}
        return
    told = tally.account()
    assert (told["min"], told["max"]) == (every[0], every[-1])
    for percent in statistics.PERCENT:
        found = told[f"p{percent}"]
        at_most = sum(length <= found for length in every)
        below = sum(length < found for length in every)
        assert 100 * at_most >= percent * len(every) > 100 * below or (below == 0 <= at_most)


@given(sizes=lengths, msl=st.integers(1, 12), dropped=st.booleans())
def test_cut_documents_are_those_in_more_than_one_row(
    sizes: list[int], msl: int, dropped: bool
) -> None:
    total = sum(sizes)
    stop = (total - 1) // msl * msl if dropped and total else -(-total // msl) * msl
    cut, place = 0, 0
    for size in sizes:
        rows = {token // msl for token in range(place, place + size) if token < stop}
        lost = bool(rows) and place + size > stop
        cut += len(rows) > 1 or lost
        place += size
    array = np.array(sizes, np.int64)
    assert statistics.cut_documents(array, 0, stop, msl) == cut
    # Block by block it is the same.
    half = len(sizes) // 2
    first = statistics.cut_documents(array[:half], 0, stop, msl)
    second = statistics.cut_documents(array[half:], sum(sizes[:half]), stop, msl)
    assert first + second == cut


def test_the_documents_of_a_file_are_told_by_characters_and_bytes(tmp_path: Path) -> None:
    table = pa.table({"characters": [3, 1, 2], "bytes": [4, 1, 6], "other": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "documents.parquet", row_group_size=1)
    told = statistics.of_documents(tmp_path / "documents.parquet")
    assert told["characters"] == {
        "min": 1, "p1": 1, "p10": 1, "p50": 2, "p90": 3, "p99": 3, "max": 3
    }  # fmt: skip
    assert (told["bytes"]["min"], told["bytes"]["max"]) == (1, 6)
