"""Encoders: every library gives the reference's ids or is not used; proofs are kept and checked."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
import tokenizers
from hypothesis import given, settings
from tokenizers import models

from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.tokenizer import backends as encoders
from crystalmix.prep.tokenizer import canary_texts as canary
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings
from helpers.materials import (
    KINDS,
    byte_level,
    llama_3_like,
    made,
    metaspace,
    qwen_like,
    small,
    starcoder_like,
    texts,
)

if TYPE_CHECKING:
    from crystalmix.prep.tokenizer.reference import Ids

Make = Callable[[], Tokenizer]
each = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
FAST = ("gigatoken", "fastokens")


@each
@pytest.mark.parametrize("library", FAST)
def test_every_library_gives_the_references_ids(make: Make, library: str) -> None:
    if library == "fastokens":
        pytest.importorskip("fastokens")
    tokenizer = made(make().raw, backend=library)
    spelt = [token["content"] for token in tokenizer.json["added_tokens"]]
    for text in canary.texts(spelt)[::3]:
        for form, encode in (("document", tokenizer.encode), ("piece", tokenizer.encode_piece)):
            ids = encode(text)
            assert ids.dtype == np.uint32
            assert ids.tolist() == ids_of(tokenizer.reference(form), text)  # type: ignore[arg-type]


def ids_of(model: tokenizers.Tokenizer, text: str) -> list[int]:
    return model.encode(text, add_special_tokens=False).ids


@each
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_documents_come_back_from_their_ids(make: Make, text: str) -> None:
    tokenizer = make()
    if tokenizer is qwen_like():
        text = tokenizer.reference("document").normalizer.normalize_str(text)  # type: ignore[union-attr]
    if tokenizer.dummy_prefix:
        text = text.replace("▁", " ")
    if tokenizer.json["pre_tokenizer"] and tokenizer.dummy_prefix and text.startswith(" "):
        text = text.lstrip(" ")  # such a file puts a space only where there is none: it is lost
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


@pytest.mark.parametrize("make", [byte_level, llama_3_like, qwen_like, metaspace])
def test_the_common_kinds_are_encoded_fast(make: Make) -> None:
    assert make().backend == "gigatoken"


def test_what_gigatoken_cannot_take_is_for_fastokens(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastokens")
    assert made(starcoder_like().raw).backend == "fastokens"
    find = encoders.find_spec
    monkeypatch.setattr(
        encoders, "find_spec", lambda name: None if name == "fastokens" else find(name)
    )
    assert made(starcoder_like().raw).backend == "tokenizers"
    assert made(starcoder_like().raw, backend="tokenizers").backend == "tokenizers"


def test_an_added_token_that_is_matched_after_normalising_is_found() -> None:
    content = orjson.loads(qwen_like().raw)
    assert qwen_like().vocab == 330
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    content["added_tokens"].append({"id": 330, "content": "été", **flags, "normalized": True})
    tokenizer = made(content)
    for text in ("e\u0301te\u0301", "été", "x éte\u0301 y", "plain", "<|endoftext|>"):
        expected = ids_of(tokenizers.Tokenizer.from_str(tokenizer.raw.decode()), text)
        assert tokenizer.encode_matched(text).tolist() == expected
    assert tokenizer.encode_matched("éte\u0301").tolist() == [330]
    assert tokenizer.encode("éte\u0301").tolist() == [330]  # it is not special: text like any other


def wide() -> bytes:
    """Return a tokenizer of 70,000 pieces: pairs of characters, then the specials."""
    letters = [chr(0x4E00 + i) for i in range(265)]
    words = {f"<0x{byte:02X}>": byte for byte in range(256)}
    words |= {letter: 256 + i for i, letter in enumerate(letters)}
    pairs = [(a, b) for a in letters for b in letters][:69_400]
    words |= {a + b: 521 + i for i, (a, b) in enumerate(pairs)}
    model = tokenizers.Tokenizer(models.BPE(words, pairs, byte_fallback=True))
    model.add_special_tokens(["<s>", "</s>"])
    return model.to_str().encode()


def test_more_than_65536_pieces_have_their_ids() -> None:
    tokenizer = made(wide())
    text = "".join(map(chr, [0x4E00 + 250, 0x4E00 + 264, 0x4E00, 0x4E01]))
    ids = tokenizer.encode(text).tolist()
    assert max(ids) > 65_536
    assert tokenizer.decode(ids) == text
    assert ids == ids_of(tokenizer.reference("document"), text)
    assert tokenizer.vocab > 65_536


def test_a_library_that_is_not_there_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = encoders.find_spec
    monkeypatch.setattr(
        encoders, "find_spec", lambda name: None if name == "fastokens" else find(name)
    )
    with pytest.raises(RecipeError, match=r"tokenizer.backend: fastokens is not installed; pip"):
        made(small().raw, backend="fastokens")


def lying(_content: dict[str, Any]) -> Callable[[str], Ids]:
    return lambda text: np.zeros(len(text), np.uint32)


def test_a_library_that_gives_other_ids_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(encoders.LIBRARIES, "gigatoken", lying)
    monkeypatch.setitem(encoders.LIBRARIES, "fastokens", lying)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, "crystalmix"):
            tokenizer = made(small().raw)
        assert tokenizer.backend == "tokenizers"
        assert tokenizer.encode("a b").tolist() == small().encode("a b").tolist()
        [record] = caplog.records
        assert "gigatoken differs from tokenizers on ' '" in record.getMessage()
        assert "using tokenizers" in record.getMessage()


def proofs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def test_a_proof_is_made_once_and_used_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made(small().raw)
    [kept] = proofs(tmp_path)
    assert orjson.loads(kept.read_bytes())["fault"] is None
    monkeypatch.setattr(encoders, "by_reference", lambda *_: pytest.fail("proven again"))
    assert made(small().raw).backend == "gigatoken"


@pytest.mark.parametrize("change", ["canary", "library", "tokenizer", "form"])
def test_a_proof_of_something_else_is_no_proof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer = made(small().raw)
    if change == "canary":
        monkeypatch.setattr(canary, "VERSION", canary.VERSION + 1)
    if change == "library":
        monkeypatch.setattr(encoders, "_version", lambda _: "9.9")
    again = made(orjson.dumps(tokenizer.json) + (b" " if change == "tokenizer" else b""))
    if change == "form":
        again.encode_matched("<s>")
    assert len(proofs(tmp_path)) == 2


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"key": 1, "fault": null}', b"\xff" * 100]
)
def test_a_damaged_proof_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made(small().raw)
    [kept] = proofs(tmp_path)
    sound = kept.read_bytes()
    kept.write_bytes(content)
    assert made(small().raw).backend == "gigatoken"
    assert kept.read_bytes() == sound


def test_a_cache_that_cannot_be_written_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    for place in (tmp_path / "file", Path("/proc/nowhere")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        assert made(small().raw).backend == "gigatoken"
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(closed))
    assert made(small().raw).backend == "gigatoken"
    assert os.access(closed, os.R_OK)


def test_a_sampled_document_that_differs_stops_with_its_name_and_the_remedy() -> None:
    tokenizer = made(small().raw)
    tokenizer.verify("the quick <s> brown", "source web: document 7")
    vars(tokenizer)["_document"] = lying({})
    with pytest.raises(
        InputError,
        match=r"^source web: document 7: gigatoken gives other ids .*; set tokenizer.backend: tok",
    ):
        tokenizer.verify("the quick", "source web: document 7")


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"^verify_every: must be 0 \(never\) or more, got -1"):
        TokenizerSettings("x", verify_every=-1)


def test_an_encoder_that_remembers_too_much_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    # Below 520 MiB it stays; what an empty process holds already (490) is not for it to mend.
    held = iter([100, 500, 530, 490, 550, 590, 460])
    monkeypatch.setattr(encoders, "resident", lambda: next(held) << 20)
    loaded: list[int] = []

    def load() -> Callable[[str], Ids]:
        loaded.append(1)
        return lambda text: np.array([len(loaded)], np.uint32)

    encode = encoders.Renewed(load)
    text = "x" * (encoders.CHECK_CHARACTERS + 1)
    told = [int(encode(part)[0]) for part in ("x", text, text, "x", text, text)]
    assert told == [1, 1, 2, 2, 2, 3]
    assert next(held, None) is None


def test_resident_memory_is_told_in_bytes() -> None:
    assert 10 << 20 < encoders.resident() < 16 << 30
