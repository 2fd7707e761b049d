"""Pieces: they join to the text, end before spaces, and are each encoded on their own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.crystalcoder.lmdata import PieceEncoder, cut, slices
from crystalmix.prep.documents.source import Document
from crystalmix.prep.rows.pack import CerebrasSettings
from helpers.materials import llama, texts


@given(text=texts, size=st.integers(1, 9))
def test_pieces_join_to_the_text_and_begin_with_the_space_they_were_cut_at(
    text: str, size: int
) -> None:
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert all(piece.startswith(" ") for piece in pieces[1:])
    assert all(len(piece) >= size for piece in pieces[:-1])
    assert all(" " not in piece[size:] for piece in pieces)
    assert list(cut(text, None)) == [text]


@given(files=st.integers(1, 30), processes=st.integers(1, 12))
def test_slices_are_contiguous_and_as_long_as_the_first(files: int, processes: int) -> None:
    found = slices(files, processes)
    assert [i for first, last in found for i in range(first, last)] == list(range(files))
    assert len(found) <= processes
    assert len({last - first for first, last in found[:-1]}) <= 1


def test_each_piece_is_encoded_as_a_text_of_its_own() -> None:
    tokenizer = llama()
    document = Document(3, 0, "one two three")
    encode = PieceEncoder(tokenizer, CerebrasSettings(pieces=2), 1)
    parts = [tokenizer.encode(piece).tolist() for piece in ("one", " two", " three")]
    made = encode(document)
    assert made.ids.tolist() == [i for part in parts for i in part]
    assert (made.number, made.controls) == (3, 0)
    again = PieceEncoder(tokenizer, CerebrasSettings(pieces=2, piece_bos=True), 1)(document)
    assert again.ids.tolist() == [*parts[0], 1, *parts[1], 1, *parts[2]]
    assert again.controls == 2


def test_a_control_that_a_text_spells_is_matched_and_counted() -> None:
    tokenizer = llama()
    made = PieceEncoder(tokenizer, CerebrasSettings(), 1)(Document(0, 0, "a </s> b"))
    assert made.controls == 1
    assert np.isin(2, made.ids)
    assert not np.isin(2, tokenizer.encode("a </s> b"))


@pytest.mark.parametrize("name", ["pieces", "processes", "min_tokens"])
def test_settings_refuse_what_is_not_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: must be positive, got 0"):
        CerebrasSettings(**{name: 0})
