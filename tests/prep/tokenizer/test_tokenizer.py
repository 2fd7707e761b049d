"""Tokenizers: equal to the reference, every text spelt, and no text a control."""

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.tokenizer import train_bpe as bpe
from crystalmix.prep.tokenizer.canary_texts import DOCUMENTS
from crystalmix.prep.tokenizer.tokenizer import KNOWN, Tokenizer, TokenizerSettings, load
from helpers.materials import PIECES, TOKENIZERS, byte_level, crystal, llama, made, small, texts

Make = Callable[[], Tokenizer]
each = pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)


def spelt(tokenizer: Tokenizer, text: str) -> str:
    """Return a text as the tokenizer can tell it: Llama's know no U+2581 but the space."""
    return text.replace("▁", " ") if tokenizer.dummy_prefix else text


@lru_cache(maxsize=8)
def reference(raw: bytes) -> tokenizers.Tokenizer:
    """Return the tokenizer as Hugging Face loads it, told to take special tokens for text."""
    model = tokenizers.Tokenizer.from_str(raw.decode())
    model.encode_special_tokens = True
    return model


def fuzz(tokenizer: Tokenizer, count: int) -> list[str]:
    """Return random texts of tricky pieces and of every added token's spelling."""
    rng = randomness.stream(1, "fuzz")
    pieces = [*PIECES, *(tokenizer.bytes_of[i].decode() for i in tokenizer.controls.tolist())]
    return ["".join(rng.choice(pieces, int(rng.integers(1, 9)))) for _ in range(count)]


@each
@settings(max_examples=80, deadline=None)
@given(text=texts)
def test_ids_are_those_of_the_reference_without_special_tokens(make: Make, text: str) -> None:
    tokenizer = make()
    expected = reference(tokenizer.raw).encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text).tolist() == expected
    assert tokenizer.backend == "gigatoken"


@each
@settings(max_examples=80, deadline=None)
@given(text=texts, more=texts)
def test_text_and_the_piece_that_follows_it_come_back_byte_for_byte(
    make: Make, text: str, more: str
) -> None:
    tokenizer = make()
    ids, piece = tokenizer.encode(text), tokenizer.encode_piece(more)
    assert ids.dtype == piece.dtype == np.uint32
    assert tokenizer.decode(ids.tolist()) == spelt(tokenizer, text)
    assert tokenizer.decode(piece.tolist(), whole=False) == spelt(tokenizer, more)
    if text:  # an empty text has no dummy space
        whole = [*ids.tolist(), *piece.tolist()]
        assert tokenizer.decode(whole) == spelt(tokenizer, text + more)
    data = b"".join(tokenizer.bytes_of[i] for i in piece.tolist())
    assert data == spelt(tokenizer, more).encode()


@each
def test_no_control_id_ever_comes_from_text(make: Make) -> None:
    tokenizer = make()
    added = [tokenizer.bytes_of[i].decode() for i in tokenizer.controls.tolist()]
    assert len(added) >= 3
    around = [
        form.format(name) for name in added for form in ("{}", " {} ", "a{}b", "{0}{0}", "\n{}")
    ]
    for text in [*around, *fuzz(tokenizer, 2000)]:
        for ids in (tokenizer.encode(text), tokenizer.encode_piece(text)):
            assert not np.isin(ids, tokenizer.controls).any(), text


@each
def test_the_reference_gives_the_same_where_the_fast_one_is_not_used(make: Make) -> None:
    fast = make()
    slow = made(fast.raw, backend="tokenizers")
    assert slow.backend == "tokenizers"
    for text in [*DOCUMENTS, *fuzz(fast, 100)]:
        assert slow.encode(text).tolist() == fast.encode(text).tolist()
        assert slow.encode_piece(text).tolist() == fast.encode_piece(text).tolist()


@each
def test_matched_ids_are_those_of_the_file_as_it_is(make: Make) -> None:
    tokenizer = make()
    plain = tokenizers.Tokenizer.from_str(tokenizer.raw.decode())
    found = 0
    for text in [*DOCUMENTS, *fuzz(tokenizer, 2000)]:
        ids = tokenizer.encode_matched(text)
        assert ids.dtype == np.uint32
        assert ids.tolist() == plain.encode(text, add_special_tokens=False).ids, text
        found += int(np.isin(ids, tokenizer.controls).sum())
    assert found > 100


@pytest.mark.parametrize("make", [llama, crystal, small])
def test_the_dummy_space_is_before_documents_only(make: Make) -> None:
    tokenizer = make()
    assert tokenizer.dummy_prefix
    assert tokenizer.encode("a").tolist() == tokenizer.encode_piece(" a").tolist()
    assert tokenizer.encode("").tolist() == tokenizer.encode_piece("").tolist() == []
    assert tokenizer.decode(tokenizer.encode(" a").tolist()) == " a"


def test_a_byte_level_prefix_space_is_left_out_of_pieces() -> None:
    tokenizer = byte_level(prefix_space=True)
    assert tokenizer.dummy_prefix
    assert tokenizer.encode("the").tolist() == tokenizer.encode(" the").tolist()
    assert tokenizer.decode(tokenizer.encode("the").tolist()) == "the"
    for text in ("the", " the", "日本語", "  x"):
        ids = tokenizer.encode_piece(text).tolist()
        assert tokenizer.decode(ids, whole=False) == text


def test_who_encodes_a_document_again_while_they_are_remembered_has_the_same_ids() -> None:
    tokenizer, text = llama(), "quartz grain"
    before = tokenizer.encode(text)
    with tokenizer.remembering():
        first = tokenizer.encode(text)
        assert tokenizer.encode(text) is first
        assert tokenizer.encode(text + text) is not first
    assert tokenizer.encode(text) is not first
    assert first.tolist() == before.tolist()


def test_ids_that_hold_parts_of_characters_are_known() -> None:
    tokenizer = byte_level()
    parts = np.flatnonzero(~tokenizer.is_text)
    assert any(len(tokenizer.bytes_of[i]) > 1 for i in parts)
    assert tokenizer.is_text[tokenizer.encode("the quick").astype(int)].all()
    assert np.flatnonzero(~small().is_text).tolist() == list(range(3 + 0x80, 3 + 0x100))


def test_the_parts_of_the_published_tokenizers_are_found() -> None:
    assert llama().special == {
        "bos": 1, "eos": 2, "fim_prefix": None, "fim_middle": None, "fim_suffix": None, "pad": None,
    }  # fmt: skip
    assert list(crystal().special.values()) == [1, 2, 32000, 32001, 32002, 32003]
    assert (llama().vocab, crystal().vocab) == (32000, 32022)
    assert (llama().pad, crystal().pad) == (2, 32003)
    assert crystal().controls.tolist() == [0, 1, 2, *range(32000, 32022)]
    assert list(crystal().special) == list(KNOWN)


def test_a_missing_part_is_told_with_what_was_looked_for() -> None:
    with pytest.raises(RecipeError, match=r"has no fim_prefix token .*name it as tokenizer"):
        llama().id_of("fim_prefix")
    with pytest.raises(RecipeError, match=r"here: has no bos token"):
        byte_level().id_of("bos")


def test_a_part_may_be_named_and_must_be_an_added_token() -> None:
    raw = small().raw
    named = Tokenizer(TokenizerSettings("here", eos="<unk>", pad="</s>"), raw)
    assert (named.id_of("eos"), named.pad) == (0, 2)
    with pytest.raises(RecipeError, match=r"tokenizer.eos: '<eot>' is no added token of here"):
        Tokenizer(TokenizerSettings("here", eos="<eot>"), raw)


def test_identity_follows_the_file_and_the_canary_follows_the_ids() -> None:
    content = orjson.loads(small().raw)
    again = made(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    assert again.fingerprint != small().fingerprint
    assert again.canary == small().canary
    content["model"]["merges"] = content["model"]["merges"][:-40]
    assert made(content).canary != small().canary


@pytest.mark.parametrize(
    "change",
    [
        {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                        "stride": 0}},
        {"padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}},
        {"model": {"dropout": 0.5}},
    ],
    ids=["truncation", "padding", "dropout"],
)  # fmt: skip
def test_what_a_file_says_of_training_leaves_documents_alone(change: dict[str, Any]) -> None:
    content = orjson.loads(small().raw)
    for key, value in change.items():
        content[key] = {**content[key], **value} if key == "model" else value
    other = made(content, backend="tokenizers")
    for text in DOCUMENTS:
        assert other.encode(text).tolist() == small().encode(text).tolist()


def without_byte_fallback() -> bytes:
    model = tokenizers.Tokenizer(models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>"))
    model.add_special_tokens(["<unk>"])
    return model.to_str().encode()


def with_a_control_in_its_words() -> bytes:
    words = {"<s>": 0, "a": 1, "<": 2, "s": 3, ">": 4}
    model = tokenizers.Tokenizer(models.BPE(words, [], ignore_merges=True))
    model.add_special_tokens(["<s>"])
    return model.to_str().encode()


@pytest.mark.parametrize("make", [without_byte_fallback, with_a_control_in_its_words])
def test_a_tokenizer_that_gives_controls_for_text_is_refused(make: Callable[[], bytes]) -> None:
    with pytest.raises(InputError, match="gives the control id 0 for the text"):
        made(make())


def json_of(model: Any) -> bytes:
    return tokenizers.Tokenizer(model).to_str().encode()


UNFIT: dict[str, bytes] = {
    "no json": b"{",
    "a list": b"[]",
    "nothing in it": b"{}",
    "no vocabulary": b'{"added_tokens": [], "model": {"vocab": {}, "merges": []}}',
    "a broken merge": b'{"added_tokens": [], "model": {"vocab": {"a": 0}, "merges": ["a b"]}}',
    "a vocabulary of nothing": b'{"added_tokens": [], "model": {"vocab": 3, "merges": []}}',
}


@pytest.mark.parametrize("content", UNFIT.values(), ids=UNFIT)
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer.json: is no tokenizer.json \(.*\); give"):
        load(TokenizerSettings(str(tmp_path / "tokenizer.json")))


@pytest.mark.parametrize(
    ("content", "key"), [(b"{}", "model"), (b'{"model": {}}', "added_tokens"), (b"[]", "object")]
)
def test_what_a_tokenizer_lacks_is_told(tmp_path: Path, content: bytes, key: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(TokenizerSettings(str(tmp_path / "tokenizer.json")))
    fault = f"it lacks the key {key!r}" if content != b"[]" else "it holds a list, not an object"
    assert f"is no tokenizer.json ({fault}); give one that `tokenizers` saved" in str(caught.value)


def test_a_file_a_folder_and_a_file_written_anew_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(small().raw)
    first = load(TokenizerSettings(str(path)))
    assert load(TokenizerSettings(str(path))) is first
    assert load(TokenizerSettings(str(tmp_path))).fingerprint == first.fingerprint
    path.write_bytes(bpe.train(["another text"] * 9, 300))
    assert load(TokenizerSettings(str(path))).fingerprint != first.fingerprint
    with pytest.raises(InputError, match=r"none.json: no such tokenizer file"):
        load(TokenizerSettings(str(tmp_path / "none.json")))


def test_an_unusual_tokenizer_falls_back_to_the_reference_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Byte-level, but without the bytes: what is not in the alphabet is left out by the reference.
    model = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    with caplog.at_level(logging.WARNING, "crystalmix"):
        tokenizer = made(model.to_str().encode())
    assert tokenizer.backend == "tokenizers"
    assert tokenizer.encode("abba").tolist() == [2, 1, 0]
    [record] = caplog.records
    assert "using tokenizers" in record.getMessage()
    assert "\n" not in record.getMessage()


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=30))
def test_any_ids_decode_to_some_text(data: bytes) -> None:
    tokenizer = small()
    ids = [i % tokenizer.vocab for i in data]
    assert isinstance(tokenizer.decode(ids), str)
