"""Rows at given places: made in any order from the frames of ids that hold them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import pack, placed_rows, shards, spans, token_blocks
from crystalmix.prep.rows.pack import PackSettings, Shape
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from crystalmix.prep.runtime import frames

PAD = 60_000


def stream_of(folder: Path, sizes: list[int]) -> Stream:
    """Write blocks of so many ids, counted on from block to block."""
    made: list[Block] = []
    first = 0
    for number, size in enumerate(sizes):
        path = folder / f"block-{number}.ids"
        token_blocks.write(path, [Encoded(0, np.arange(first, first + size), 0)], vocab=50_000)
        made.append(Block(path, "source", size, wide=False))
        first += size
    return Stream(tuple(made))


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 15), min_size=1, max_size=5).filter(any),
    msl=st.integers(1, 9),
    frame=st.integers(1, 6),
    data=st.data(),
)
def test_rows_in_any_order_are_those_that_packing_cuts(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    msl: int,
    frame: int,
    data: st.DataObject,
) -> None:
    total = sum(sizes)
    count = -(-total // msl)
    numbers = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1)), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "FRAME", frame)
        stream = stream_of(tmp_path_factory.mktemp("blocks"), sizes)
        ids = placed_rows.scattered_ids(stream, numbers * msl, msl + 1, PAD)
    flat = [*range(total), *[PAD] * (msl + 1)]
    assert ids.tolist() == [flat[n * msl : n * msl + msl + 1] for n in numbers.tolist()]
    lengths = np.minimum(msl + 1, total - numbers * msl)
    made = np.concatenate(list(placed_rows.rows_of(ids, lengths)))
    every = pack.cut(np.arange(total, dtype=np.int32), count, msl, PAD)
    assert np.array_equal(made, every[numbers])


def test_a_frame_is_decoded_once_for_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "FRAME", 8)
    stream = stream_of(tmp_path, [40, 30])
    decoded: list[int] = []
    original = frames.Frames.frames

    def counted(self: frames.Frames, places: np.ndarray) -> object:
        decoded.extend(places.tolist())
        return original(self, places)

    monkeypatch.setattr(frames.Frames, "frames", counted)
    starts = np.array([60, 0, 4, 56, 2, 60])
    placed_rows.scattered_ids(stream, starts, 5, PAD)
    assert decoded == [0, 1, 2, 3]  # of the first block 0 and 1, of the second 2 and 3


def test_rows_that_are_laid_out_are_counted_as_if_they_were_written(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [700, 0, 330])
    settings = PackSettings(msl=8, rows_per_shard=100)
    rows, shape = (20, 129), Shape(settings, PAD, (25, 900, PAD))
    written = pack.pack(stream, rows, shape, tmp_path / "written" / "data-00000.h5")
    counted = replace(shape, written=False)
    laid = pack.pack(stream, rows, counted, tmp_path / "laid" / "data-00000.h5")
    assert [p.name for p in (tmp_path / "laid").iterdir()] == ["data-00000.spans.parquet"]
    for key in ("tokens", "padding", "controls", "sides"):
        assert getattr(laid, key) == getattr(written, key)
    entry = written.shard.entry()
    assert laid.shard.entry() == {k: v for k, v in entry.items() if k not in ("bytes", "xxh3")}
    sides = [spans.path_of(tmp_path / name / "data-00000.h5") for name in ("written", "laid")]
    assert sides[0].read_bytes() == sides[1].read_bytes()
    with pytest.raises(ValueError, match="got 3 rows, expected 4"):
        shards.count(tmp_path / "x.h5", 4, [np.zeros((3, 3, 8), np.int32)])
