"""Packing: the naive concatenation, cut to rows; nothing lost, nothing counted twice."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import pack, shards, spans
from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.pack import CerebrasSettings, Controls, Packed, PackSettings, Shape
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from helpers.materials import whole

PAD, BOS, EOS = 3, 1, 2
lengths = st.lists(st.lists(st.integers(0, 15), max_size=4), min_size=1, max_size=3)


@dataclass
class Case:
    """Documents by block, their stream, and what packing made of it."""

    folder: Path
    sizes: list[list[int]]
    settings: PackSettings

    def __post_init__(self) -> None:
        bos, eos = BOS if self.settings.bos else None, EOS if self.settings.eos else None
        self.controls = Controls(bos, eos, PAD)
        flat = [size for block in self.sizes for size in block]
        self.documents = [
            pack.frame(
                Encoded(number, 1000 + 50 * number + np.arange(size), 0, fim=number % 3),
                self.controls,
            )
            for number, size in enumerate(flat)
        ]
        self.stream = self._stream()
        self.rows = pack.rows_of(self.stream, self.settings)
        self.packed = [
            self._pack(number, bounds)
            for number, bounds in enumerate(pack.shards_of(self.rows, self.settings))
        ]

    def _stream(self) -> Stream:
        made: list[Block] = []
        first = 0
        for i, block in enumerate(self.sizes):
            here = self.documents[first : first + len(block)]
            path = self.folder / f"block-{i}.ids"
            account = blocks.write(path, here, vocab=60_000)
            made.append(Block(path, f"source{i}", account.tokens, account.wide))
            first += len(block)
        return Stream(tuple(made))

    def _pack(self, number: int, bounds: tuple[int, int]) -> Packed:
        near, rows = pack.part(self.stream, bounds, self.settings)
        assert set(near.blocks) <= set(self.stream.blocks)
        out = self.folder / shards.name(number)
        return pack.pack(near, rows, Shape(self.settings, PAD, (BOS, EOS, PAD)), out)

    @property
    def naive(self) -> list[int]:
        """Every document's ids, one after the other."""
        return [i for document in self.documents for i in whole(document)]

    def data(self) -> shards.Rows:
        """Every row of every shard: (rows, 3, msl)."""
        parts = [shards.read(path) for path in shards.folder(self.folder)]
        return np.concatenate([np.empty((0, 3, self.settings.msl), np.int32), *parts])


cases = st.builds(
    PackSettings,
    msl=st.integers(1, 12),
    bos=st.booleans(),
    eos=st.booleans(),
    tail=st.sampled_from(["keep", "drop"]),
    rows_per_shard=st.sampled_from([4, 7, 100]),
)


@settings(max_examples=50, deadline=None)
@given(sizes=lengths, chosen=cases)
def test_rows_are_the_naive_concatenation(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], chosen: PackSettings
) -> None:
    case = Case(tmp_path_factory.mktemp("pack"), sizes, chosen)
    data, naive, msl = case.data(), case.naive, chosen.msl
    assert len(data) == case.rows
    for r, (inputs, mask, labels) in enumerate(data.tolist()):
        window = naive[r * msl : (r + 1) * msl + 1]
        have, next_ = min(len(window), msl), max(0, len(window) - 1)
        assert inputs == window[:have] + [PAD] * (msl - have)
        assert mask == [1] * next_ + [0] * (msl - next_)
        assert labels == window[1:] + [PAD] * (msl - next_)
    if chosen.tail == "drop":
        assert case.rows == max(0, (len(naive) - 1) // msl)
        assert data[:, 1].all()
    else:
        assert case.rows * msl >= len(naive) > (case.rows - 1) * msl or not naive


@settings(max_examples=50, deadline=None)
@given(sizes=lengths, chosen=cases)
def test_spans_cover_every_input_once_at_its_place_in_its_document(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], chosen: PackSettings
) -> None:
    case = Case(tmp_path_factory.mktemp("pack"), sizes, chosen)
    firsts = np.cumsum([0, *map(len, sizes)])
    for path, packed in zip(shards.folder(case.folder), case.packed, strict=True):
        data = shards.read(path)
        covered = np.zeros((len(data), chosen.msl), dtype=int)
        for piece in spans.read(spans.path_of(path)).to_pylist():
            row, place = piece["row"], slice(piece["start"], piece["stop"])
            covered[row, place] += 1
            document = case.documents[piece["document"]]
            ids = whole(document)
            size = piece["stop"] - piece["start"]
            assert size > 0
            assert ids[piece["offset"] : piece["offset"] + size] == data[row, 0, place].tolist()
            source = int(np.searchsorted(firsts, piece["document"], side="right")) - 1
            assert piece["source"] == f"source{source}"
            assert (piece["fim"], piece["cut1"], piece["cut2"]) == (document.fim, -1, -1)
        assert covered.max() == 1
        assert covered.sum() == packed.tokens == spans.tokens(spans.path_of(path))
        assert (data[:, 0][covered == 0] == PAD).all()
        assert packed.tokens + packed.padding == data[:, 0].size


@settings(max_examples=30, deadline=None)
@given(sizes=lengths, chosen=cases)
def test_tokens_in_are_tokens_out_and_tail(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], chosen: PackSettings
) -> None:
    case = Case(tmp_path_factory.mktemp("pack"), sizes, chosen)
    text = sum(map(sum, sizes))
    controls = sum(document.controls for document in case.documents)
    assert controls == len(case.documents) * (chosen.bos + chosen.eos)
    used = sum(packed.tokens for packed in case.packed)
    tail = text + controls - used
    if chosen.tail == "keep":
        assert tail == 0
    else:
        # The last label is used too; what no row holds as its input is at most one row and a label.
        assert 0 <= tail <= chosen.msl
    counted = sum(packed.controls for packed in case.packed)
    assert counted == sum(i in (BOS, EOS) for i in case.naive[:used])


@pytest.mark.parametrize("rows_per_shard", [1, 2, 3, 100])
@pytest.mark.parametrize("split", [[[30, 50, 7, 0, 41]], [[30], [50, 7], [], [0, 41]]])
def test_shards_and_blocks_split_the_same_rows(
    tmp_path: Path, rows_per_shard: int, split: list[list[int]]
) -> None:
    whole = Case(tmp_path / "whole", [[30, 50, 7, 0, 41]], PackSettings(msl=8))
    parts = Case(tmp_path / "parts", split, PackSettings(msl=8, rows_per_shard=rows_per_shard))
    assert np.array_equal(whole.data(), parts.data())
    assert [p.shard.rows for p in parts.packed[:-1]] == [rows_per_shard] * (len(parts.packed) - 1)


@pytest.mark.parametrize(
    ("size", "tail", "rows", "last_mask"),
    [
        (24, "keep", 3, [1, 1, 1, 1, 1, 1, 1, 0]),  # three whole rows, the last label unknown
        (24, "drop", 2, [1, 1, 1, 1, 1, 1, 1, 1]),
        (25, "keep", 4, [0, 0, 0, 0, 0, 0, 0, 0]),  # one token more: it is kept, without a label
        (25, "drop", 3, [1, 1, 1, 1, 1, 1, 1, 1]),
        (26, "keep", 4, [1, 0, 0, 0, 0, 0, 0, 0]),
        (1, "keep", 1, [0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_end_of_the_stream_is_exact(
    tmp_path: Path, size: int, tail: str, rows: int, last_mask: list[int]
) -> None:
    chosen = PackSettings(msl=8, bos=False, eos=False, tail=tail)
    case = Case(tmp_path, [[size]], chosen)
    data = case.data()
    assert len(data) == rows
    assert data[-1, 1].tolist() == last_mask
    masked = data[:, 1] == 0
    assert (data[:, 2][masked] == PAD).all()


def test_a_stream_too_short_for_a_row_gives_none(tmp_path: Path) -> None:
    streams = [
        Stream((Block(tmp_path / "block.ids", "source", tokens, wide=False),))
        for tokens in (0, 1, 8, 9, 16, 17)
    ]
    drop = PackSettings(msl=8, tail="drop")
    assert [pack.rows_of(stream, drop) for stream in streams] == [0, 0, 0, 1, 1, 2]
    keep = PackSettings(msl=8)
    assert [pack.rows_of(stream, keep) for stream in streams] == [0, 1, 1, 2, 2, 3]
    assert pack.shards_of(0, keep) == []


def apart(case: Case) -> list[tuple[int, int, list[int]]]:
    """Return what rows of single documents should hold: document, offset, window."""
    least = max(2, case.settings.cerebras.min_tokens) if case.settings.cerebras else 2
    msl = case.settings.msl
    return [
        (document.number, first, window)
        for document in case.documents
        for first in range(0, len(whole(document)), msl)
        if len(window := whole(document)[first : first + msl + 1]) >= least
    ]


@settings(max_examples=50, deadline=None)
@given(
    sizes=lengths,
    msl=st.integers(1, 12),
    least=st.integers(1, 4),
    rows=st.sampled_from([1, 3, 100]),
    framed=st.booleans(),
)
def test_rows_that_are_not_joined_hold_one_document_each(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[list[int]],
    msl: int,
    least: int,
    rows: int,
    framed: bool,
) -> None:
    alone = CerebrasSettings(join=False, min_tokens=least)
    chosen = PackSettings(msl=msl, bos=framed, eos=framed, rows_per_shard=rows, cerebras=alone)
    case = Case(tmp_path_factory.mktemp("pack"), sizes, chosen)
    wanted, data = apart(case), case.data()
    assert len(data) == len(wanted) == case.rows
    for (inputs, mask, labels), (_, _, window) in zip(data.tolist(), wanted, strict=True):
        padding = msl - len(window) + 1
        assert inputs == window[:-1] + [PAD] * padding
        assert labels == window[1:] + [PAD] * padding
        assert mask == [1] * (len(window) - 1) + [0] * padding
    pieces = [
        piece
        for path in shards.folder(case.folder)
        for piece in spans.read(spans.path_of(path)).to_pylist()
    ]
    told = [(piece["document"], piece["offset"], piece["stop"]) for piece in pieces]
    assert told == [(number, first, len(window) - 1) for number, first, window in wanted]
    assert sum(packed.tokens for packed in case.packed) == sum(stop for _, _, stop in told)


def test_the_names_of_model_zoo_are_told_by_shard_and_process() -> None:
    ours, theirs = PackSettings(), PackSettings(cerebras=CerebrasSettings())
    assert [pack.name(ours, 7, 0), pack.name(theirs, 7, 3)] == ["data-00007.h5", "examples_7_3.h5"]
    assert [pack.number("data-00007.h5"), pack.number("examples_7_3.h5")] == [7, 7]
    assert theirs.tail == "drop"


@pytest.mark.parametrize("name", ["msl", "rows_per_shard"])
def test_settings_refuse_what_is_not_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: must be positive, got 0"):
        PackSettings(**{name: 0})
