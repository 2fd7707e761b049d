"""Spellings: every added token that ids spell as text is found, and encoded as it is matched."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.crystalcoder.added_tokens import Spellings
from crystalmix.prep.tokenizer.safe_cuts import joints
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers.materials import crystal, made, small, texts
from helpers.originals import tokenizer as original

MAKES = {"crystal": crystal, "original": original}
NORMALIZED = ("<s>", "</s>", "<unk>")  # matched after a space only
PLAIN = ("<fim_prefix>", "<filename>", "<gh_stars>")


@lru_cache(maxsize=4)
def spellings(tokenizer: Tokenizer) -> Spellings:
    known = joints(tokenizer)
    assert known is not None
    return Spellings(tokenizer, known)


@pytest.mark.parametrize("name", MAKES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_spelling_is_found_where_it_stands(name: str, data: st.DataObject) -> None:
    tokenizer = MAKES[name]()
    added = [tokenizer.bytes_of[i].decode() for i in tokenizer.controls.tolist()]
    parts = data.draw(st.lists(st.one_of(st.sampled_from(added), texts), max_size=9))
    ids = tokenizer.encode("".join(parts)).astype(np.int32)
    pieces = [tokenizer.bytes_of[i] for i in ids.tolist()]
    ends = np.cumsum([0, *map(len, pieces)])
    found = spellings(tokenizer).find(ids)
    whole = b"".join(pieces)
    wanted = set()
    for text in {text.encode() for text in added}:
        place = whole.find(text)
        while place >= 0:
            start = int(np.searchsorted(ends, place, side="right")) - 1
            stop = int(np.searchsorted(ends, place + len(text), side="left"))
            wanted.add((start, stop))
            place = whole.find(text, place + 1)
    assert {(each.start, each.stop) for each in found} == wanted
    assert [each.start for each in found] == sorted(each.start for each in found)


def test_an_added_id_is_no_spelling() -> None:
    ids = np.array([1, *crystal().encode("text > s").tolist(), 32000, 2], dtype=np.int32)
    assert spellings(crystal()).find(ids) == []


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(PLAIN), texts), max_size=6))
def test_text_is_encoded_as_the_reference_matches_it(parts: list[str]) -> None:
    text = "".join(part for part in parts if not any(name in part for name in NORMALIZED))
    reference = original().encode_matched("x" + text).tolist()  # the x takes the dummy space
    assert spellings(original()).encode(" x" + text) == reference


def _added(number: int, text: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": True}


def test_a_token_without_an_inner_unit_is_told() -> None:
    content = {**crystal().json, "added_tokens": [_added(32000, "!")]}
    assert not spellings(made(content)).found_all
    assert not spellings(small()).found_all  # it was trained on their text, and merges in it
    assert spellings(crystal()).found_all
    assert spellings(original()).found_all
