"""Cuts between characters: pieces are encoded as their texts, locally as plainly, rows apart."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.fim import token_cuts as tokencuts
from crystalmix.prep.fim.segments import PSM, Permuted, Plans, Segments, Sentinels, lay
from crystalmix.prep.fim.text_cuts import Local, Plain, TextCuts, core, text_cuts
from crystalmix.prep.tokenizer.safe_cuts import joints
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers.materials import FIM_TOKENIZERS, byte_level, crystal, small, texts

Make = Callable[[], Tokenizer]
each = pytest.mark.parametrize("make", FIM_TOKENIZERS.values(), ids=FIM_TOKENIZERS)
MARKS = Sentinels(1_000_000, 1_000_001, 1_000_002)
documents = st.lists(texts, min_size=1, max_size=5)


def rows(tokenizer: Tokenizer, given: list[str], msl: int) -> Segments:
    """Lay documents out as rows without control ids; the segments are their pieces."""
    ids = [tokenizer.encode(text).astype(np.int32) for text in given]
    flat = np.concatenate(ids)
    flat = flat[: len(flat) // msl * msl]
    starts = np.cumsum([0, *map(len, ids)])[:-1]
    begins = np.unique(np.concatenate([starts, np.arange(0, len(flat), msl)]))
    begins = begins[begins < len(flat)]
    stop = np.append(begins[1:], len(flat))
    first = np.isin(begins, starts)
    return Segments(flat, len(flat) // msl, begins // msl, begins, stop, first)


def told(made: Permuted) -> list[list[int]]:
    """Return the ids of each permuted row."""
    out, used = lay(made.runs, 4096, -1)
    return [row[:size].tolist() for row, size in zip(out, used, strict=True)]


def permuted(cuts: TextCuts, seed: int) -> Permuted:
    draws = np.random.default_rng(seed).random((len(cuts.lengths), 4))
    return cuts.permute(tokencuts.plan((0.9, 0.5), draws, cuts.lengths), MARKS)


@pytest.mark.parametrize("make", [crystal, small], ids=["crystal", "small"])
@settings(max_examples=150, deadline=None)
@given(given=documents, msl=st.integers(1, 30), seed=st.integers(0, 99))
def test_local_cuts_give_what_encoding_anew_gives(
    make: Make, given: list[str], msl: int, seed: int
) -> None:
    tokenizer = make()
    segments = rows(tokenizer, given, msl)
    known = joints(tokenizer)
    assert known is not None
    if segments.rows:
        bodies = segments.start, segments.stop
        plain, local = Plain(tokenizer, segments, bodies), Local(known, segments, bodies)
        assert local.lengths.tolist() == plain.lengths.tolist()
        one, other = permuted(plain, seed), permuted(local, seed)
        assert told(other) == told(one)
        assert other.lengths.tolist() == one.lengths.tolist()
        assert other.middles.tolist() == one.middles.tolist()


@each
@settings(max_examples=100, deadline=None)
@given(text=texts.filter(bool), data=st.data())
def test_a_documents_pieces_are_the_encodings_of_its_pieces(
    make: Make, text: str, data: st.DataObject
) -> None:
    tokenizer = make()
    text = text.replace("▁", " ") if tokenizer.dummy_prefix else text
    ids = tokenizer.encode(text).astype(np.int32)
    zero, size = np.array([0]), np.array([len(ids)])
    segments = Segments(ids, 1, zero, zero, size, np.array([True]))
    cuts = text_cuts(tokenizer, segments, (zero, size))
    assert cuts.lengths.tolist() == [len(text)]
    first, second = sorted(data.draw(st.integers(0, len(text))) for _ in range(2))
    plans = Plans(np.array([PSM], np.int8), np.array([first]), np.array([second]))
    prefix = tokenizer.encode(text[:first]).tolist() if first else []
    middle = tokenizer.encode_piece(text[first:second]).tolist()
    suffix = tokenizer.encode_piece(text[second:]).tolist()
    wanted = [MARKS.prefix, *prefix, MARKS.suffix, *suffix, MARKS.middle, *middle]
    made = cuts.permute(plans, MARKS)
    assert told(made) == [wanted]
    assert made.middles.tolist() == [len(wanted) - len(middle)]


@each
@settings(max_examples=100, deadline=None)
@given(given=documents, msl=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_bytes_of_rows_rejoin(make: Make, given: list[str], msl: int, seed: int) -> None:
    tokenizer = make()
    segments = rows(tokenizer, given, msl)
    if not segments.rows:
        return
    made = permuted(text_cuts(tokenizer, segments, (segments.start, segments.stop)), seed)
    flat = np.concatenate([np.array(row, np.int64) for row in told(made)])
    for i, ids in enumerate(np.split(flat, np.cumsum(made.lengths)[:-1])):
        whole = data(tokenizer, segments.ids[segments.start[i] : segments.stop[i]])
        if made.plans.form[i]:
            ends = {int(ids[j]): j for j in np.flatnonzero(ids >= MARKS.prefix).tolist()}
            a, b = ends[MARKS.suffix], ends[MARKS.middle]
            parts = [data(tokenizer, part) for part in (ids[1:a], ids[b + 1 :], ids[a + 1 : b])]
            if segments.begins[i] and tokenizer.dummy_prefix and made.plans.first[i] == 0:
                whole = whole.removeprefix(b" ")
            assert b"".join(parts) == whole
        else:
            assert data(tokenizer, ids) == whole


def data(tokenizer: Tokenizer, ids: np.ndarray) -> bytes:
    return b"".join(tokenizer.bytes_of[i] for i in ids.tolist())


def one(ids: np.ndarray, *, begins: bool = False) -> Segments:
    zero, size = np.array([0]), np.array([len(ids)])
    return Segments(ids.astype(np.int32), 1, zero, zero, size, np.array([begins]))


@each
def test_a_character_that_a_row_divides_stays_with_its_piece(make: Make) -> None:
    tokenizer = make()
    ids = tokenizer.encode_piece("ab 𝔘 cd 𝔘")
    for start in range(len(ids)):
        for stop in range(start + 1, len(ids) + 1):
            segments = one(ids[start:stop])
            found = core(tokenizer, segments, (segments.start, segments.stop), 0)
            assert found.text is not None
            inner = data(tokenizer, segments.ids[found.start : found.stop])
            assert inner.decode() == found.text
            around = data(tokenizer, segments.ids).replace(inner, b"", 1)
            assert "𝔘".encode() not in around or not inner


def test_ids_that_are_no_text_are_cut_between_tokens() -> None:
    tokenizer = crystal()
    ids = np.array([3 + 0xF0, *tokenizer.encode_piece("ab cd"), 3 + 0x9F, 3 + 0x98, 300])
    segments = one(ids)
    bodies = segments.start, segments.stop
    plain, local = Plain(tokenizer, segments, bodies), text_cuts(tokenizer, segments, bodies)
    assert isinstance(local, Local)
    assert local.lengths.tolist() == plain.lengths.tolist()
    for seed in range(20):
        assert told(permuted(local, seed)) == told(permuted(plain, seed))
        kept = [i for i in told(permuted(local, seed))[0] if i < MARKS.prefix]
        assert sorted(kept) == sorted(ids.tolist())


def test_words_that_depend_on_their_surroundings_are_cut_plainly() -> None:
    segments = one(byte_level().encode("def f(x):"))
    cuts = text_cuts(byte_level(), segments, (segments.start, segments.stop))
    assert isinstance(cuts, Plain)
