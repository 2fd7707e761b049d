"""Tokenizers that people use give the ids of their own unmodified files.

FUZZED=20000 SAMPLED=0 is the full size: that many fuzzed strings, and all documents of the
development corpus, whole.
"""

import os
import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import tokenizers
import zstandard
from hypothesis import given, settings

from crystalmix.prep.documents.source import Source
from crystalmix.prep.fim.document_fim import DocumentFim, FimSettings
from crystalmix.prep.tokenizer.canary_texts import DOCUMENTS
from crystalmix.prep.tokenizer.metadata_head import HeadEncoder, Metadata
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, _loaded
from helpers.materials import document, shared, texts
from helpers.real_tokenizers import PACKAGES, real

each = pytest.mark.parametrize("name", PACKAGES)
FAST = [name for name in PACKAGES if name not in {"claude", "unigram", "bert"}]
BLOCKS = 0x110000 >> 8
FUZZED = int(os.environ.get("FUZZED", "1000"))
SAMPLED = int(os.environ.get("SAMPLED", "6"))  # documents of each file of the corpus, 0 for all
MOST = 6000 if SAMPLED else None  # characters of each


@pytest.fixture(autouse=True, scope="module")
def memory() -> Iterator[None]:
    """Let go of the tokenizers, some of which take a GB, after the last test."""
    yield
    _loaded.cache_clear()
    unmodified.cache_clear()
    corpus.cache_clear()


@lru_cache(maxsize=2)
def unmodified(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Return the file as Hugging Face loads it, special tokens in texts left alone."""
    model = tokenizers.Tokenizer.from_str(tokenizer.raw.decode())
    model.encode_special_tokens = True
    return model


def differing(tokenizer: Tokenizer, samples: list[str]) -> list[str]:
    model = unmodified(tokenizer)
    return [
        text
        for text in samples
        if tokenizer.encode(text).tolist() != model.encode(text, add_special_tokens=False).ids
    ]


def fuzzed(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield texts of characters of every Unicode block, assigned or not, with added tokens."""
    rng = random.Random(7)
    names = [*tokenizer.added][:200]
    for number in range(FUZZED):
        blocks = [number * 17 % BLOCKS, *rng.choices(range(BLOCKS), k=2)]
        pieces = [chr(rng.choice(blocks) << 8 | rng.randrange(256)) for _ in range(12)]
        pieces += rng.choices([" ", "  ", "\n", "\t", "a", "The", "1", "'s", ".", "e\u0301"], k=6)
        pieces += [chr(rng.randrange(0x300, 0x370)), chr(rng.randrange(0x20, 0x7F))]
        pieces += rng.choices(names, k=rng.randrange(2))
        rng.shuffle(pieces)
        yield "".join(piece for piece in pieces if not "\ud800" <= piece <= "\udfff")


@lru_cache(maxsize=1)
def corpus() -> list[str]:
    """Return the first documents of every file of the development corpus."""
    samples: list[str] = []
    folder = shared().parent / "corpora" / "dev"
    for path in sorted(folder.rglob("*.zst")):
        with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = [orjson.loads(line) for line in islice(file, SAMPLED or None)]
        samples += [(line.get("text") or line.get("content") or "")[:MOST] for line in lines]
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path, columns=["content"]).slice(0, SAMPLED or None)
        samples += [(text or "")[:MOST] for text in table["content"].to_pylist()]
    assert len(samples) > 200
    return samples


@each
def test_documents_and_fuzzed_strings_have_the_ids_of_the_unmodified_file(name: str) -> None:
    tokenizer = real(name)
    assert tokenizer.backend == ("gigatoken" if name in FAST else "tokenizers")
    assert differing(tokenizer, [*fuzzed(tokenizer)]) == []
    assert differing(tokenizer, [*tokenizer.added][:500]) == []
    assert differing(tokenizer, corpus()) == []


@pytest.mark.parametrize("text", ["\U0001faef", "a\ufbcfb", "x\u032c\u0c3cy", "\u0897\u0300"])
@each
def test_characters_that_are_newer_than_a_librarys_tables_are_those_of_the_reference(
    name: str, text: str
) -> None:
    assert differing(real(name), [text, f" {text} 's", text * 3, f"1{text}2\n"]) == []


@each
@settings(max_examples=25, deadline=None)
@given(text=texts)
def test_pieces_of_a_text_have_the_ids_of_the_reference_too(name: str, text: str) -> None:
    tokenizer = real(name)
    ids = tokenizer.reference("piece").encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_piece(text).tolist() == ids


@each
def test_fim_and_heads_of_metadata_keep_their_controls_apart_from_text(name: str) -> None:
    tokenizer = real(name)
    head, prefix, middle, suffix, *_ = [*tokenizer.specials, *tokenizer.added] * 4
    named = TokenizerSettings(
        tokenizer.settings.path, fim_prefix=prefix, fim_middle=middle, fim_suffix=suffix
    )
    tokenizer = Tokenizer(named, tokenizer.raw)
    source = Source("web", files=("*.jsonl",), metadata=(head,))
    plain = "".join(DOCUMENTS).replace("<", "")
    text = f"{head}a/b.py\n{plain}"
    encoded = HeadEncoder(tokenizer, Metadata(tokenizer, source))(document(text))
    assert encoded.ids[0] == tokenizer.added[head]
    assert encoded.controls == int(tokenizer.is_control[encoded.ids].sum())
    fim = DocumentFim(tokenizer, FimSettings(1.0), 1, "web", 0, Metadata(tokenizer, source))
    for number in range(20):
        permuted = fim(document(f"{text}{number}", number))
        assert permuted.controls == int(tokenizer.is_control[permuted.ids].sum())
        marks = [tokenizer.special[f"fim_{part}"] for part in ("prefix", "middle", "suffix")]
        assert all((permuted.ids == mark).sum() >= 1 for mark in marks)


@each
def test_the_parts_that_a_file_has_are_found_among_its_special_tokens_first(name: str) -> None:
    tokenizer = real(name)
    hidden = {tokenizer.added[special] for special in tokenizer.specials}
    spelt = {tokenizer.added[control] for control in tokenizer.spelt_controls}
    assert {*tokenizer.controls.tolist()} <= hidden | spelt
    if name == "gemma3":
        assert tokenizer.special["bos"] == tokenizer.added["<bos>"]
    table = np.zeros(tokenizer.vocab, bool)
    table[[*(hidden - spelt)]] = True
    for literal in [*tokenizer.added][:500]:
        assert not table[tokenizer.encode(literal)].any()
