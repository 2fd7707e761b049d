"""Joints: cutting ids apart and encoding the units at the cuts is encoding the pieces' texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.tokenizer import safe_cuts as joints
from crystalmix.prep.tokenizer.safe_cuts import Joints
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers.materials import byte_level, crystal, llama, made, small, texts

LOCAL = {"llama": llama, "crystal": crystal, "small": small}


def facts(tokenizer: Tokenizer) -> Joints:
    found = joints.joints(tokenizer)
    assert found is not None
    return found


def cuts(tokenizer: Tokenizer, ids: list[int]) -> list[tuple[int, int]]:
    """Return every place between characters as a token and the characters before it."""
    known = facts(tokenizer)
    found = [(i, n) for i, token in enumerate(ids) for n in range(known.sizes[token])]
    return [*found, (len(ids), 0)]


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=150, deadline=None)
@given(text=texts, data=st.data(), whole=st.booleans())
def test_a_piece_is_what_its_text_encodes_to(
    name: str, text: str, data: st.DataObject, whole: bool
) -> None:
    tokenizer = LOCAL[name]()
    array = tokenizer.encode_piece(text).astype("int32")
    ids = array.tolist()
    places = cuts(tokenizer, ids)
    told = text.replace("▁", " ")
    assert len(places) == len(told) + 1
    first, last = sorted(data.draw(st.integers(0, len(told))) for _ in range(2))
    head, (start, stop), tail = facts(tokenizer).piece(
        array.data, places[first], places[last], whole=whole
    )
    encode = tokenizer.encode if whole else tokenizer.encode_piece
    wanted = encode(told[first:last]).tolist() if first < last else []
    assert [*head, *ids[start:stop], *tail] == wanted
    assert facts(tokenizer).text(array.data, places[first], places[last]) == told[first:last]


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=80, deadline=None)
@given(text=texts, data=st.data())
def test_any_run_of_tokens_is_the_encoding_of_its_own_text(
    name: str, text: str, data: st.DataObject
) -> None:
    tokenizer = LOCAL[name]()
    ids = tokenizer.encode(text).tolist()
    first, last = sorted(data.draw(st.integers(0, len(ids))) for _ in range(2))
    part = b"".join(tokenizer.bytes_of[i] for i in ids[first:last])
    try:
        told = part.decode()
    except UnicodeDecodeError:  # the run begins or ends within a character
        return
    assert tokenizer.encode_piece(told).tolist() == ids[first:last]


@settings(max_examples=100, deadline=None)
@given(one=texts, other=texts)
def test_texts_encode_apart_at_a_safe_joint(one: str, other: str) -> None:
    tokenizer = crystal()
    a, b = (tokenizer.encode_piece(text).tolist() for text in (one, other))
    if a and b and not facts(tokenizer).joined(a[-1], b[0]):
        assert tokenizer.encode_piece(one + other).tolist() == [*a, *b]


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=100, deadline=None)
@given(text=texts, data=st.data(), dummy=st.booleans())
def test_a_text_is_divided_as_its_pieces_are_encoded(
    name: str, text: str, data: st.DataObject, dummy: bool
) -> None:
    tokenizer = LOCAL[name]()
    encode = tokenizer.encode if dummy else tokenizer.encode_piece
    first, second = sorted(data.draw(st.integers(0, len(text))) for _ in range(2))
    made = facts(tokenizer).divide(encode(text), (first, second), dummy=dummy and bool(text))
    rest = tokenizer.encode_piece
    wanted = encode(text[:first]), rest(text[first:second]), rest(text[second:])
    assert [piece.tolist() for piece in made] == [piece.tolist() for piece in wanted]


def test_a_unit_reaches_to_the_next_safe_joints() -> None:
    tokenizer = llama()
    ids = tokenizer.encode("one  tokenisation; two").astype("int32")
    known = facts(tokenizer)
    place = ids.tolist().index(tokenizer.encode("one  tokenisation").tolist()[-1])
    low, high = known.unit(ids.data, (place, place + 1), (0, len(ids)))
    assert known.text(ids.data, (low, 0), (high, 0)) == "  tokenisation"
    assert known.unit(ids.data, (place, place + 1), (place, place + 1)) == (place, place + 1)


def test_what_stands_side_by_side_in_a_merge_is_not_safe() -> None:
    known = facts(llama())
    assert known.pair("t", "h")
    assert known.pair("▁", "t")
    assert known.pair("▁", "▁")
    for before, after in (
        ("x", "▁"),
        ("1", "2"),
        ("a", "<"),
        (">", "a"),
        ("日", "本"),
        ("\n", "a"),
    ):
        assert not known.pair(before, after), (before, after)
    assert known.spaces_stand_first


def test_a_tokenizer_whose_words_depend_on_their_surroundings_has_none() -> None:
    assert joints.joints(byte_level()) is None
    content = {**crystal().json, "pre_tokenizer": {"type": "Digits", "individual_digits": True}}
    assert joints.joints(made(content)) is None
    model = {**crystal().json["model"], "ignore_merges": True}
    assert joints.joints(made({**crystal().json, "model": model})) is None


def test_ids_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joints, "MOST_REMEMBERED", 3)
    known = Joints(small())
    for _ in range(2):
        for text in ("one", "two", "three", "four", "five"):
            assert known.encode(text, whole=True) == small().encode(text).tolist()
            assert known.encode(text, whole=False) == small().encode_piece(text).tolist()
