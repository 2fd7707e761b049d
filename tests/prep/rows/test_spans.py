"""Spans: every token of a stream in exactly one piece, at its place in its document."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalmix.prep.rows import spans
from helpers.materials import names

Int64s = NDArray[np.int64]


def by_hand(starts: list[int], first: int, last: int, msl: int) -> list[tuple[int, ...]]:
    """Return (row, place in the row, document, place in the document) of every token."""
    told: list[tuple[int, ...]] = []
    for token in range(first, last):
        document = max(i for i, start in enumerate(starts) if start <= token)
        row, place = divmod(token - first, msl)
        told.append((row, place, document, token - starts[document]))
    return told


def unfolded(pieces: dict[str, Int64s]) -> list[tuple[int, ...]]:
    """Return the same of the pieces that `cut` gives."""
    columns = [pieces[name].tolist() for name in ("row", "start", "stop", "document", "offset")]
    return [
        (row, place, document, offset + place - start)
        for row, start, stop, document, offset in zip(*columns, strict=True)
        for place in range(start, stop)
    ]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any),
    msl=st.integers(1, 9),
    data=st.data(),
)
def test_every_token_lies_in_exactly_one_piece(
    lengths: list[int], msl: int, data: st.DataObject
) -> None:
    starts = np.cumsum([0, *lengths[:-1]])  # a document without tokens shares its start
    total = sum(lengths)
    first = msl * data.draw(st.integers(0, (total - 1) // msl))
    last = data.draw(st.integers(first + 1, total))
    pieces = spans.cut(starts, first, last, msl)
    assert unfolded(pieces) == by_hand(starts.tolist(), first, last, msl)
    assert (pieces["stop"] > pieces["start"]).all()
    assert pieces["stop"].max() <= msl


def test_pieces_are_as_long_as_they_can_be() -> None:
    pieces = spans.cut(np.array([0, 7, 8]), 0, 20, 5)
    columns = [pieces[name].tolist() for name in ("row", "start", "stop", "document", "offset")]
    assert list(zip(*columns, strict=True)) == [
        (0, 0, 5, 0, 0),
        (1, 0, 2, 0, 5),
        (1, 2, 3, 1, 0),
        (1, 3, 5, 2, 0),
        (2, 0, 5, 2, 2),
        (3, 0, 5, 2, 7),
    ]


def table(stop: int) -> pa.Table:
    row = {"row": 0, "start": 0, "stop": stop, "source": "code", "document": 3, "offset": 0}
    return pa.Table.from_pylist([{**row, "fim": 0, "cut1": -1, "cut2": -1}], schema=spans.SPANS)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = spans.path_of(tmp_path / "deep" / "data-00007.h5")
    assert path.name == "data-00007.spans.parquet"
    assert spans.path_of(path.parent / "data-1.h5", "origin").name == "data-1.origin.parquet"
    spans.write(path, table(9))
    assert spans.read(path).schema == spans.SPANS
    assert spans.read(path).equals(table(9))
    assert spans.tokens(path) == 9
    assert names(path.parent) == [path.name]


def test_an_error_midway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data-00000.spans.parquet"
    spans.write(path, table(9))
    with pytest.raises(AttributeError):
        spans.write(path, None)
    assert names(tmp_path) == [path.name]
    assert spans.tokens(path) == 9
