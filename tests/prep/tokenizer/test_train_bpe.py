"""The small tokenizer: laid out as LLaMA's, deterministic, and whole for any text."""

import orjson
import pytest
from hypothesis import given, settings

from crystalmix.prep.tokenizer import train_bpe as bpe
from helpers.materials import TRAINING, made, small, texts


def test_the_layout_is_that_of_llama() -> None:
    vocab = orjson.loads(small().raw)["model"]["vocab"]
    assert [piece for piece, _ in sorted(vocab.items(), key=lambda item: item[1])][:259] == [
        *bpe.CONTROLS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    assert sorted(vocab.values()) == list(range(400))
    assert small().special == {
        "bos": 1,
        "eos": 2,
        "fim_prefix": 400,
        "fim_middle": 401,
        "fim_suffix": 402,
        "pad": 403,
    }
    assert small().vocab == 404
    assert small().dummy_prefix


def test_the_same_texts_give_the_same_bytes() -> None:
    assert bpe.train(iter(TRAINING), 400) == small().raw
    assert bpe.train(TRAINING[:1], 300) != bpe.train(TRAINING[1:2], 300)


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_every_text_can_be_spelt(text: str) -> None:
    ids = small().encode(text).tolist()
    assert small().decode(ids) == text.replace("▁", " ")
    assert max(ids, default=0) < 400


def test_training_makes_pieces_of_what_is_frequent() -> None:
    text = "the quick brown fox jumps over the lattice"
    assert len(small().encode(text)) < len(text) / 3


def test_words_and_lines_are_not_merged_across() -> None:
    pieces = orjson.loads(small().raw)["model"]["vocab"]
    for piece in pieces:
        inner = piece.lstrip("▁")
        assert "▁" not in inner
        assert piece == "\n" or "\n" not in piece


def test_the_json_stands_on_its_own_without_a_pre_tokenizer() -> None:
    content = orjson.loads(small().raw)
    assert content["pre_tokenizer"] is None
    assert [entry["content"] for entry in content["added_tokens"]] == [*bpe.CONTROLS, *bpe.FIM]
    assert made(content).canary == small().canary


@pytest.mark.parametrize("texts", [[], [""], ["a"]])
def test_little_text_gives_a_little_tokenizer(texts: list[str]) -> None:
    tokenizer = made(bpe.train(texts, 400))
    assert tokenizer.vocab <= 270
    assert tokenizer.decode(tokenizer.encode("日本 x").tolist()) == "日本 x"


def test_characters_beyond_the_limit_are_chosen_the_same_way_each_time() -> None:
    """Of 900 characters that are equally rare the same ones become pieces; the space always is."""
    rare = [chr(0x4E00 + i) for i in range(900)]
    texts = [*TRAINING, " ".join(rare), " ".join(reversed(rare))]
    made = {bpe.train(texts, 700) for _ in range(6)} | {bpe.train(texts[::-1], 700)}
    assert len(made) == 1
    vocab = orjson.loads(made.pop())["model"]["vocab"]
    assert "▁" in vocab
    assert len([piece for piece in vocab if len(piece) == 1]) == bpe.MOST_CHARACTERS
    chosen = [character for character in rare if character in vocab]
    assert chosen == rare[: len(chosen)]
