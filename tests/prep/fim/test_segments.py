"""Runs: rows laid out at once are those a loop over slices gives."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.fim.segments import Runs, lay, totals

SOURCE = np.arange(100, 160, dtype=np.int32)
row = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 9)), max_size=6)


@given(rows=st.lists(row, min_size=1, max_size=6), width=st.integers(1, 30))
def test_rows_are_the_concatenated_slices_cut_off_or_padded(
    rows: list[list[tuple[int, int]]], width: int
) -> None:
    rows = [[(start, min(size, 60 - start)) for start, size in row] for row in rows]
    flat = [run for row in rows for run in row]
    starts, lengths = np.array(flat, dtype=np.int64).reshape(-1, 2).T
    ends = np.cumsum([len(row) for row in rows])
    out, used = lay(Runs(SOURCE, starts, lengths, ends), width, -1)
    assert out.dtype == np.int32
    for made, count, given_runs in zip(out.tolist(), used.tolist(), rows, strict=True):
        ids = [i for start, size in given_runs for i in SOURCE[start : start + size].tolist()]
        assert count == len(ids)
        assert made == [*ids, *[-1] * width][:width]
    assert totals(lengths, ends).tolist() == used.tolist()


def test_full_rows_are_gathered_as_they_stand() -> None:
    runs = Runs(SOURCE, np.array([0, 10, 7]), np.array([2, 2, 4]), np.array([2, 3]))
    out, used = lay(runs, 4, -1)
    assert out.tolist() == [[100, 101, 110, 111], [107, 108, 109, 110]]
    assert used.tolist() == [4, 4]
