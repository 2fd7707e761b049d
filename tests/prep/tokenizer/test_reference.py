"""The reference is the user's file; what it calls text is matched, whatever its flags."""

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.tokenizer import backends
from crystalmix.prep.tokenizer.long_texts import WINDOW, way_of
from crystalmix.prep.tokenizer.reference import reference
from crystalmix.prep.tokenizer.tokenizer import (
    MOST_BYTES,
    SAMPLED,
    Tokenizer,
    TokenizerSettings,
    load,
)
from helpers.materials import KINDS, Make, byte_level, crystal, llama, made, qwen_like, small

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
each = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def token(number: int, content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys((*FLAGS, "special"), False)
    return {"id": number, "content": content, **plain, **flags}


def flagged() -> Iterator[dict[str, bool]]:
    for values in product((False, True), repeat=len(FLAGS)):
        yield dict(zip(FLAGS, values, strict=True))


def with_text_tokens(make: Make, names: tuple[str, ...], **flags: bool) -> Tokenizer:
    content = orjson.loads(make().raw)
    first = make().vocab
    content["added_tokens"] += [token(first + i, name, **flags) for i, name in enumerate(names)]
    return made(content)


def around(name: str) -> list[str]:
    forms = ("{}", " {} ", "a{}b", "{0}{0}", "\n{}\n", "  {}  x", "1{}", "<s>{}</s>", ".{}!")
    return [form.format(name) for form in forms]


def ids_of_the_file(tokenizer: Tokenizer, text: str) -> list[int]:
    model = tokenizers.Tokenizer.from_str(tokenizer.raw.decode())
    model.encode_special_tokens = True
    return model.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("flags", [*flagged()], ids=lambda flags: "".join(map(str, flags.values())))
def test_tokens_that_are_text_are_matched_with_all_their_flags(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool]
) -> None:
    monkeypatch.setattr(backends, "_apart", lambda *_: [])  # tables are tried elsewhere: seconds
    for make in (small, qwen_like):
        names = ("  ", "the", "<tag>", "É2")
        tokenizer = with_text_tokens(make, names, **flags)
        assert not any_control(tokenizer, names)
        for name in names:
            for text in around(name):
                expected = ids_of_the_file(tokenizer, text)
                assert tokenizer.encode(text).tolist() == expected, (tokenizer.backend, text)


def any_control(tokenizer: Tokenizer, names: tuple[str, ...]) -> bool:
    return bool({*tokenizer.controls.tolist()} & {tokenizer.added[name] for name in names})


def test_a_special_token_that_holds_one_of_text_hides_it_as_the_library_does() -> None:
    content = orjson.loads(byte_level().raw)
    first = byte_level().vocab
    content["added_tokens"] += [token(first, "<|a b|>", special=True), token(first + 1, " b|")]
    tokenizer = made(content)
    for text in ("<|a b|>", "x b|>", "<|a b|> b|", " b|<|a b|>"):
        assert tokenizer.encode(text).tolist() == ids_of_the_file(tokenizer, text)
    assert first + 1 not in tokenizer.encode("<|a b|>").tolist()
    assert first + 1 in tokenizer.encode("x b|>").tolist()


def test_the_proof_and_the_samples_do_not_share_the_derivation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sound = backends.derived

    def lossy(content: dict[str, Any], form: Any) -> dict[str, Any]:
        return {**sound(content, form), "added_tokens": []}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backends, "derived", lossy)
    assert with_text_tokens(small, ("  ",)).backend == "tokenizers"
    monkeypatch.setattr(backends, "_compare", lambda *_: backends.Proof(None))
    unproven = with_text_tokens(small, ("   ",))
    assert unproven.backend == "gigatoken"
    unproven.verify("one two", "here")
    with pytest.raises(InputError, match="here: gigatoken gives other ids"):
        unproven.verify("one   two", "here")


def test_samples_are_taken_by_default_and_long_texts_among_them() -> None:
    assert TokenizerSettings("x").verify_every == SAMPLED > 0
    tokenizer = made(small().raw)
    long = "the quick brown fox " * (WINDOW // 10)
    tokenizer.verify(long, "here")
    plain = tokenizer._document
    for name in ("_document", "_piece"):
        vars(tokenizer)[name] = lambda text: plain(text)[::-1]
    with pytest.raises(InputError, match="here: gigatoken gives other ids"):
        tokenizer.verify(long, "here")


@each
def test_a_piece_is_a_text_with_nothing_in_front(make: Make) -> None:
    tokenizer = make()
    piece = reference(tokenizer.raw, "piece")
    for text in ("the", "x y", "\n", "é", "a<b"):
        after = reference(tokenizer.raw, "document").encode(f"\n{text}", add_special_tokens=False)
        ids = piece.encode(text, add_special_tokens=False).ids
        assert after.ids[-len(ids) :] == ids
        assert tokenizer.encode_piece(text).tolist() == ids


def test_only_a_tokenizer_with_boundaries_is_cut_into_windows() -> None:
    content = byte_level().json
    whole = {**content, "pre_tokenizer": {**content["pre_tokenizer"], "use_regex": False}}
    assert (way_of(content), way_of(whole)) == ("words", None)
    reaching = (
        token(999, "New York"),
        token(999, "the", rstrip=True),
        token(999, " the", single_word=True),
    )
    for added in reaching:
        assert way_of({**content, "added_tokens": [added]}) is None
    assert way_of({**content, "added_tokens": [token(999, "   ")]}) == "words"
    content = small().json
    assert way_of({**content, "added_tokens": [token(999, "  ")]}) is None


def unigram() -> bytes:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("▁", -2.0), ("▁the", -1.0)]
    pieces += [(letter, -3.0) for letter in "the<>s/"]
    model = tokenizers.Tokenizer(models.Unigram(pieces, 0))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.add_special_tokens(["<unk>", "<s>"])
    return model.to_str().encode()


def word_pieces() -> bytes:
    words = {"[UNK]": 0, "[SEP]": 1, "the": 2, "##s": 3, "s": 4}
    model = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer()
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.add_special_tokens(["[UNK]", "[SEP]"])
    return model.to_str().encode()


@pytest.mark.parametrize("raw", [unigram(), word_pieces()], ids=["unigram", "word pieces"])
def test_what_is_no_bpe_is_encoded_by_the_reference(raw: bytes) -> None:
    tokenizer = made(raw)
    assert tokenizer.backend == "tokenizers"
    for text in ("the thes", "<s> the", "日本", "[SEP]"):
        ids = tokenizer.encode(text)
        assert ids.tolist() == ids_of_the_file(tokenizer, text)
        assert tokenizer.count_controls(ids) == int(tokenizer.is_control[ids].sum())
    assert tokenizer.decode(tokenizer.encode("the thes").tolist()) == "the thes"
    assert any("does not give every text back" in note for note in tokenizer.notes())


@pytest.mark.parametrize("make", [llama, crystal, small, byte_level])
def test_a_tokenizer_that_gives_every_text_back_has_no_note(make: Make) -> None:
    assert [*make().notes()] == []


def test_what_a_tokenizer_drops_is_shown_by_an_example() -> None:
    content = orjson.loads(byte_level().raw)
    steps = [{"type": "Whitespace"}, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    [note] = made(content, backend="tokenizers").notes()
    assert note == (
        r"here: does not give every text back: 'def f(x):\n    return x\n' becomes "
        "'deff(x):returnx'; rows hold what it leaves of a text"
    )


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="devices are files of Unix")
def test_what_is_no_regular_file_of_some_size_is_refused_unread(tmp_path: Path) -> None:
    pipe, folder, huge = (tmp_path / name for name in ("pipe.json", "folder", "huge.json"))
    os.mkfifo(pipe)
    (folder / "tokenizer.json").mkdir(parents=True)
    with huge.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    for path in (Path("/dev/zero"), pipe, folder):
        with pytest.raises(InputError, match=r"^/.*: is no regular file; give a tokenizer.json$"):
            load(TokenizerSettings(str(path)))
    with pytest.raises(InputError, match=r"huge.json: holds 256 MiB, too much for a tokenizer"):
        load(TokenizerSettings(str(huge)))
