"""FIM on rows: labels exact, nothing lost uncounted, no character cut, spans true."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalmix.prep.fim.document_fim import LEFT_TO_RIGHT, PSM, FimSettings
from crystalmix.prep.fim.row_fim import RowFim
from crystalmix.prep.fim.row_spans import Account, Packed, segments_of
from crystalmix.prep.fim.segments import lay
from crystalmix.prep.rows import pack, shards, spans
from crystalmix.prep.rows import token_blocks as blocks
from crystalmix.prep.rows.pack import Controls, PackSettings, Shape
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers.materials import FIM_TOKENIZERS, crystal, small, texts

Make = Callable[[], Tokenizer]
each = pytest.mark.parametrize("make", FIM_TOKENIZERS.values(), ids=FIM_TOKENIZERS)


@dataclass(frozen=True)
class Case:
    """A packed shard, and what row-level FIM made of it."""

    tokenizer: Tokenizer
    given: Rows
    made: Rows
    given_spans: list[Json]
    made_spans: list[Json]
    account: Account

    def data(self, ids: NDArray[np.integer]) -> bytes:
        return b"".join(self.tokenizer.bytes_of[i] for i in ids.tolist())


def case(
    folder: Path,
    tokenizer: Tokenizer,
    given: list[str],
    msl: int,
    epoch: int = 0,
    **chosen: Any,
) -> Case:
    """Pack documents to one shard and permute its rows."""
    eos = tokenizer.special["eos"]
    controls = Controls(tokenizer.special["bos"], eos, tokenizer.pad)
    framed = [
        pack.frame(Encoded(i, tokenizer.encode(text), 0), controls) for i, text in enumerate(given)
    ]
    account = blocks.write(folder / "block.ids", framed, vocab=tokenizer.vocab)
    stream = Stream((Block(folder / "block.ids", "code", account.tokens, account.wide),))
    kept = PackSettings(msl=msl)
    bounds = (0, pack.rows_of(stream, kept))
    paths = folder / "in" / shards.name(0), folder / "out" / shards.name(0)
    pack.pack(stream, bounds, Shape(kept, tokenizer.pad, ()), paths[0])
    work = RowFim(tokenizer, FimSettings(**{"rate": 0.7, **chosen}), 7, "code", epoch)
    shard, account = work.apply(Packed.of(paths[0]), 0, paths[1])
    assert shard.rows == bounds[1]
    return Case(
        tokenizer,
        *(shards.read(path) for path in paths),
        *(spans.read(spans.path_of(path)).to_pylist() for path in paths),
        account,
    )


def segments(told: Case, row: int) -> list[tuple[Json, NDArray[np.int32], NDArray[np.int32]]]:
    """Return (span, ids before, ids after) of each segment that is left in a row."""
    before = {(s["document"], s["offset"]): s for s in told.given_spans if s["row"] == row}
    found: list[tuple[Json, NDArray[np.int32], NDArray[np.int32]]] = []
    for span in told.made_spans:
        if span["row"] == row:
            old = before[span["document"], span["offset"]]
            ids = told.given[row, 0, old["start"] : old["stop"]]
            found.append((span, ids, told.made[row, 0, span["start"] : span["stop"]]))
    return found


documents = st.lists(texts, min_size=1, max_size=5)
shapes = st.tuples(
    st.integers(2, 40), st.sampled_from(["character", "token"]), st.sampled_from([0.5, 1.0])
)


@each
@settings(max_examples=40, deadline=None)
@given(given=documents, shape=shapes)
def test_labels_are_the_next_inputs_and_none_is_invented(
    tmp_path_factory: pytest.TempPathFactory,
    make: Make,
    given: list[str],
    shape: tuple[int, str, float],
) -> None:
    msl, cut, rate = shape
    told = case(tmp_path_factory.mktemp("fim"), make(), given, msl, cut=cut, rate=rate)
    for row, (inputs, mask, labels) in enumerate(told.made):
        inner = mask[:-1] == 1
        assert (labels[:-1][inner] == inputs[1:][inner]).all()
        used = max((s["stop"] for s in told.made_spans if s["row"] == row), default=0)
        assert mask[: used - 1].all()
        assert not mask[used:].any()
        assert (inputs[used:] == told.tokenizer.pad).all()
        assert (labels[mask == 0] == told.tokenizer.pad).all()
        if used < msl:
            assert mask[used - 1] == 0  # what comes next is in no row
        elif mask[-1]:
            last = [s for s in told.made_spans if s["row"] == row][-1]
            untouched = last["fim"] == LEFT_TO_RIGHT and labels[-1] == told.given[row, 2, -1]
            assert untouched or told.account.overflow > 0


@each
@settings(max_examples=40, deadline=None)
@given(given=documents, shape=shapes)
def test_nothing_is_lost_uncounted_and_whole_segments_rejoin(
    tmp_path_factory: pytest.TempPathFactory,
    make: Make,
    given: list[str],
    shape: tuple[int, str, float],
) -> None:
    msl, cut, rate = shape
    told = case(tmp_path_factory.mktemp("fim"), make(), given, msl, cut=cut, rate=rate)
    size = {True: sum(s["stop"] - s["start"] for s in told.given_spans),
            False: sum(s["stop"] - s["start"] for s in told.made_spans)}  # fmt: skip
    account = told.account
    assert size[True] + account.sentinels + account.recut == size[False] + account.overflow
    assert account.sentinels == 3 * account.permuted
    assert account.recut == 0 or cut == "character"
    assert account.ends == 0
    for row in range(len(told.made)):
        for span, before, after in segments(told, row):
            if span["stop"] < msl:  # else it may be cut off
                check_segment(told, span, before, after, cut)


def check_segment(
    told: Case, span: Json, before: NDArray[np.int32], after: NDArray[np.int32], cut: str
) -> None:
    """Take a permuted segment apart: its bytes, its edges, its cuts."""
    if span["fim"] == LEFT_TO_RIGHT:
        assert after.tolist() == before.tolist()
        assert (span["cut1"], span["cut2"]) == (-1, -1)
        return
    special = told.tokenizer.special
    edges = [special[part] for part in ("bos", "eos") if special[part] is not None]
    for end in (0, -1):
        assert before[end] not in edges or after[end] == before[end]
    old, new = (ids[~np.isin(ids, edges)] for ids in (before, after))
    whole = told.data(old)
    marks = [special[part] for part in ("fim_prefix", "fim_suffix", "fim_middle")]
    places = np.flatnonzero(np.isin(new, marks)).tolist()
    assert new[places].tolist() == marks
    bounds = pairwise([*places, len(new)])
    after_prefix, after_suffix, after_middle = (told.data(new[a + 1 : b]) for a, b in bounds)
    if span["fim"] == PSM:
        joined = after_prefix + after_middle + after_suffix
    else:
        assert after_prefix == b""
        joined = after_middle + after_suffix
    dummy = told.tokenizer.dummy_prefix and span["offset"] == 0 and cut == "character"
    if dummy and span["cut1"] == 0:
        whole = whole.removeprefix(b" ")  # with no prefix, there is nothing for it to stand before
    assert joined == whole
    if cut == "character":  # no cut falls within a character
        ends = {len(whole) - len(after_suffix), len(after_prefix) if span["fim"] == PSM else 0}
        assert all(not 0 < end < len(whole) or whole[end] & 0xC0 != 0x80 for end in ends)
        assert 0 <= span["cut1"] <= span["cut2"]


@each
def test_rate_0_leaves_the_shard_as_it_is(tmp_path: Path, make: Make) -> None:
    told = case(tmp_path, make(), ["one two three", "vier", "日本語"] * 4, 16, rate=0.0)
    assert np.array_equal(told.made, told.given)
    assert told.made_spans == told.given_spans
    assert told.account == Account()


def test_a_padded_last_row_stays_padded_and_grows_into_the_padding(tmp_path: Path) -> None:
    tokenizer = crystal()
    told = case(tmp_path, tokenizer, ["a few words in one row"], 64, rate=1.0)
    used = told.made_spans[-1]["stop"]
    assert told.account.overflow == 0
    assert used == told.given_spans[-1]["stop"] + 3 + told.account.recut
    assert told.made[0, 1].tolist() == [1] * (used - 1) + [0] * (64 - used + 1)
    assert (told.made[0, [0, 2], used:] == tokenizer.pad).all()
    assert told.made[0, 0, [0, used - 1]].tolist() == [1, 2]  # BOS and EOS stay outside


def test_a_full_row_overflows_and_its_last_label_is_what_was_cut_off(tmp_path: Path) -> None:
    told = case(tmp_path, crystal(), ["words " * 200], 32, rate=1.0, cut="token")
    assert told.account.permuted == len(told.made)
    assert told.account.overflow == 3 * (len(told.made) - 1)
    assert told.made[:-1, 1].all()
    work = RowFim(crystal(), FimSettings(rate=1.0, cut="token"), 7, "code", 0)
    table = spans.read(spans.path_of(tmp_path / "in" / shards.name(0)))
    made = work.permute(segments_of(told.given[:1], table, 0)[0], np.array([0]))
    ids = lay(made.runs, 35, 0)[0][0]
    assert made.lengths.tolist() == [35]
    assert told.made[0, 0].tolist() == ids[:32].tolist()
    assert told.made[0, 2].tolist() == ids[1:33].tolist()


def test_epochs_cut_anew_and_rows_are_drawn_by_their_number_in_the_folder(tmp_path: Path) -> None:
    told = [
        case(tmp_path / str(epoch), small(), ["def f(x): return x\n" * 40], 32, epoch)
        for epoch in (0, 1)
    ]
    assert not np.array_equal(told[0].made, told[1].made)
    shard = tmp_path / "0" / "in" / shards.name(0)
    work = RowFim(small(), FimSettings(rate=0.7), 7, "code", 0)
    work.apply(Packed.of(shard), 1000, tmp_path / "other.h5")
    assert not np.array_equal(shards.read(tmp_path / "other.h5"), told[0].made)
    rows, table = shards.read(shard, 2, 5), spans.read(spans.path_of(shard))
    shards.write(tmp_path / "some" / "a.h5", 3, [rows])
    columns = table.to_pydict()
    kept = [i for i, row in enumerate(columns["row"]) if 2 <= row < 5]
    moved = pa.array([columns["row"][i] - 2 for i in kept], pa.int32())
    part = table.take(pa.array(kept)).set_column(0, spans.SPANS.field("row"), moved)
    spans.write(spans.path_of(tmp_path / "some" / "a.h5"), part)
    work.apply(Packed.of(tmp_path / "some" / "a.h5"), 2, tmp_path / "part.h5")
    assert np.array_equal(shards.read(tmp_path / "part.h5"), told[0].made[2:5])
